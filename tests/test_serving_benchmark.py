"""The measurement of a server: what it makes of answers, and that it sees what must not be."""

import asyncio
import collections
import json
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from dummies_serving import FakeEngine, app_of, events_of, picture, server_of, wait_for

from benchmarks.paths import ROOT
from benchmarks.serving import asks, lag, load, queueing, report, run, soak
from benchmarks.serving.checks import Same, check_ended
from benchmarks.serving.client import Answer, connect, send
from benchmarks.serving.server import Server
from janus_jax.errors import UserError
from janus_jax.serving import jobs


class Counting(FakeEngine):
    """Tells what a real engine does of its jobs."""

    def __init__(self, script=None):
        super().__init__(script)
        self.ended = collections.Counter()
        self.lock = threading.Lock()

    def submit(self, job, on_event, deadline=None):
        kind = "draw" if isinstance(job, jobs.DrawJob) else "chat"

        def note(event):
            with self.lock:
                if isinstance(event, jobs.Finished):
                    self.ended[kind, "finished"] += 1
                elif isinstance(event, jobs.Failed):
                    self.ended[kind, event.kind] += 1
            on_event(event)

        with self.lock:
            self.ended[kind, "taken"] += 1
        try:
            return super().submit(job, note, deadline)
        except jobs.QueueFull:
            with self.lock:
                self.ended[kind, "taken"] -= 1
            raise

    def stats(self):
        found = {}
        with self.lock:
            for kind in ("draw", "chat"):
                names = ("finished", "cancelled", "deadline", "error")
                done = {name: self.ended[kind, name] for name in names}
                running = self.ended[kind, "taken"] - sum(done.values())
                found[kind] = {"waiting": 0, "running": running, **done}
        return found


@pytest.fixture
def serve():
    """Runs `use(server)` on a server of an engine."""

    def go(engine, use):
        with server_of(app_of(engine)) as (_, port):
            return asyncio.run(use(Server(f"http://127.0.0.1:{port}")))

    return go


def ask_all(*some, **options):
    async def use(server):
        async with connect(server.url) as client:
            return [await send(client, ask, 10, **options) for ask in some]

    return use


def test_a_stream_and_an_answer_have_the_same_digest(serve):
    both = [make(5, stream=stream) for make in (asks.draw, asks.chat) for stream in (True, False)]
    drawn, drawn_at_once, said, said_at_once = serve(FakeEngine(), ask_all(*both))
    assert all(answer.good for answer in (drawn, drawn_at_once, said, said_at_once))
    assert drawn.digest == drawn_at_once.digest != said.digest == said_at_once.digest
    assert drawn.tokens == drawn_at_once.tokens == 100 and said.tokens == said_at_once.tokens == 3
    assert 0 < drawn.first <= drawn.seconds and drawn_at_once.first is None
    other = serve(FakeEngine(), ask_all(asks.draw(6)))[0]
    assert other.digest != drawn.digest


def test_every_wrong_request_is_refused_as_expected(serve):
    wrong = [asks.bad(number) for number in range(12)]
    answers = serve(FakeEngine(), ask_all(*wrong))
    assert check_ended(answers).passed
    assert {answer.status for answer in answers} == {400, 404}


def test_what_ends_otherwise_is_told(serve):
    def fails(job):
        if job.seed == 1:
            return jobs.QueueFull(3)
        events = [jobs.Preview(0, picture(9), 1, 2)] if job.seed == 2 else []
        return [*events, jobs.Failed("error", "it broke")]

    answers = serve(FakeEngine(fails), ask_all(*[asks.draw(n) for n in (1, 2, 3)]))
    full, within, before = answers
    assert full.refused and full.retry_after == "3" and check_ended([full]).passed
    assert (within.status, within.code, within.good) == (200, "internal_error", False)
    assert before.status == 500
    found = check_ended(answers)
    assert not found.passed and "3 requests, 2 did not" in found.about
    assert not check_ended([]).passed


def test_a_picture_too_few_is_broken(serve):
    script = lambda job: [jobs.Picture(0, picture(1)), jobs.Finished("stop", 1, 1)]
    (answer,) = serve(FakeEngine(script), ask_all(asks.draw(1, 2, stream=False)))
    assert answer.ended == "broken" and "1 pictures instead of 2" in answer.problem


def test_who_gives_up_is_no_fault_and_who_waits_for_ever_is(serve):
    engine = FakeEngine()
    engine.go.clear()
    (aborted,) = serve(engine, ask_all(asks.draw(1), abort=0.2))
    wait_for(lambda: engine.cancelled)
    assert aborted.ended == "aborted" and check_ended([aborted]).passed

    async def short(server):
        async with connect(server.url) as client:
            return await send(client, asks.chat(1, stream=False), 0.2)

    stuck = serve(engine, short)
    assert stuck.ended == "stuck" and not check_ended([stuck]).passed


def test_a_server_that_is_not_there_is_broken_and_no_url():
    answer = asyncio.run(ask_all(asks.draw(1))(Server("http://127.0.0.1:9")))[0]
    assert answer.ended == "broken"
    with pytest.raises(UserError, match=r"--url http://127\.0\.0\.1:9: nothing answers"):
        asyncio.run(Server("http://127.0.0.1:9/").wait_ready(1))


def test_other_bytes_for_an_equal_request_are_found():
    answer = lambda number, digest: Answer(asks.draw(number), "answered", 1.0, 200, digest=digest)
    same = Same()
    same.add([answer(1, "a"), answer(2, "b")], "alone")
    same.add([answer(1, "a")], "among 8")
    assert same.check("x").passed and same.check("x").about == "2 requests, 3 answers"
    same.add([answer(2, "c")], "among 8")
    assert not same.check("x").passed and "draw 2: alone b, among 8 c" in same.check("x").about


def test_compilations_after_ready_are_counted(tmp_path, serve):
    log = tmp_path / "log"
    line = "WARNING:jax._src.dispatch:Finished XLA compilation of jit(f) in 0.1 sec\n"
    log.write_text(line * 3)

    async def use(server):
        watched = Server(server.url, log=log)
        await watched.wait_ready(5)
        before = soak.check_compiled(watched)
        with log.open("a") as file:
            file.write("something else\n" + line)
        return before, soak.check_compiled(watched), soak.check_compiled(server)

    before, after, unknown = serve(FakeEngine(), use)
    assert before.passed is True and before.about == "3 programs before, 0 after"
    assert after.passed is False and unknown.passed is None
    log.write_text("")
    assert (
        serve(FakeEngine(), use)[0].passed is None
    )  # a counter that counts nothing proves nothing


def test_a_soak_sees_all_ends(serve, monkeypatch):
    engine = Counting()
    use = lambda server: soak.measure(server, 30, 4, 1, 10, 64, quiet=True)
    found = serve(engine, use)
    held = {check.name: check.passed for check in found["checks"]}
    assert held.pop("nothing compiled after /ready") is None
    assert held.pop("memory does not grow after the first third") is None
    held.pop("what nobody waits for is cancelled")  # an engine that needs no time ends before
    assert set(held.values()) == {True}
    assert sum(found["ended"].values()) == 30 and found["ended"]["200"] > 10


def test_a_soak_finds_answers_that_depend_on_others(serve):
    count = iter(range(10**6))

    def drifts(job):
        for event in events_of(job):
            last = isinstance(event, jobs.Picture)
            yield jobs.Picture(event.index, picture(next(count) % 256)) if last else event

    found = serve(Counting(drifts), lambda server: soak.measure(server, 5, 2, 1, 10, 64, True))
    wrong = [check for check in found["checks"] if check.passed is False]
    assert [check.name for check in wrong] == ["the same answers before, among others and after"]
    assert "reference draw 1: alone before" in wrong[0].about


def test_a_soak_finds_a_job_that_never_ends(serve, monkeypatch):
    monkeypatch.setattr(soak, "DRAIN", 0.2)
    engine = Counting()
    engine.ended["draw", "taken"] = 1
    found = serve(engine, lambda server: soak.measure(server, 5, 2, 1, 10, 64, True))
    assert [c.name for c in found["checks"] if c.passed is False] == [
        "waiting and running go back to 0"
    ]


def test_growth_is_a_line_through_the_last_two_thirds():
    seen = [(0, 500.0), (10, 900.0)] + [(done, 900 + 0.1 * done) for done in range(100, 301)]
    found = soak._growth(seen)
    assert found["growth_mib"] == pytest.approx(20) and found[
        "mib_per_1000_requests"
    ] == pytest.approx(100)
    assert not soak._check_memory(found, 19).passed and soak._check_memory(found, 21).passed
    assert soak._check_memory(soak._growth([(0, 1.0)]), 1).passed is None


def test_the_load_of_two_servers_and_its_table(serve):
    async def use(server):
        return await load.measure(server, server, [2], 1, 2, 10, quiet=True)

    found = serve(FakeEngine(), use)
    assert len(found["rows"]) == 4 * 2 * 2 and all(c.passed for c in found["checks"])
    row = next(r for r in found["rows"] if r["kind"] == "draw" and r["clients"] == 2)
    assert row["good"] == 2 and len(row["rates"]) == 2 and row["first_token"] is None
    assert row["first_partial"]["max"] <= row["latency"]["max"]
    alone = next(r for r in found["ratios"] if r["kind"] == "mix" and r["clients"] == 1)
    assert alone["rate_of_one_client"] == {"median": 1, "min": 1, "max": 1}
    found["checks"] = [check.to_dict() for check in found["checks"]]
    text = report.show({"sections": {"load": found}})
    assert "chat with a picture" in text and "one by one" in text and "yes" in text


@pytest.mark.parametrize("kind", ["deadline", "error"])
def test_a_burst_is_answered_refused_or_too_late(serve, kind):
    def busy(job):
        if job.seed % 3 == 1:
            return jobs.QueueFull(2)
        return [jobs.Failed(kind, "it took too long")] if job.seed % 3 == 2 else events_of(job)

    found = serve(Counting(busy), lambda server: queueing.measure(server, 0.1, 10))
    third = queueing.BURST // 3
    late = "504" if kind == "deadline" else "500"
    assert found["statuses"] == {"200": third, "429": third, late: third}
    assert found["retry_after_s"] == [2] and found["refused_after"]["max"] > 0
    failed = [check.name for check in found["checks"] if check.passed is False]
    assert failed == (
        []
        if kind == "deadline"
        else [
            "every request is answered with 200, 429 or 504",
            "what is too late is 504",
        ]
    )


def test_ratios_are_of_the_same_round():
    middle = lambda seconds: {"p50": seconds}
    run_of = lambda rate, seconds: {
        "requests_per_s": rate,
        "cpu_s_per_request": 1 / rate,
        "latency": middle(seconds),
        "first_token": middle(seconds),
        "first_partial": None,
    }
    runs = {
        ("draw", 1, load.TOGETHER): [run_of(2, 0.5), run_of(1, 1)],
        ("draw", 8, load.TOGETHER): [run_of(6, 2), run_of(4, 4)],
        ("draw", 8, load.ONE_BY_ONE): [run_of(3, 8), run_of(1, 8)],
    }
    eight = load._ratios(runs)[1]
    assert eight["rate_of_one_client"] == {"median": 3.5, "min": 3, "max": 4}
    assert eight["rate_of_one_by_one"] == {"median": 3, "min": 2, "max": 4}
    assert eight["cpu_of_one_by_one"] == {"median": 3, "min": 2, "max": 4}
    assert eight["latency_of_one_by_one"] == {"median": 3, "min": 2, "max": 4}
    assert eight["first_partial_of_one_by_one"] is None


def test_lateness_is_judged_on_a_machine_that_is_free_only():
    row = lambda late, own, others: (
        lag._judge(
            {"work": "x", "delay": {"p99": late}, "own": {"p99": own}, "cores": {"others": others}}
        ).passed
    )
    assert row(0.04, 0.02, 0.9) is True
    assert row(0.06, 0.001, 0.0) is False
    assert row(0.06, 0.02, 0.0) is None and row(0.06, 0.001, 0.5) is None


def test_a_loop_that_is_held_up_is_seen_by_the_probe(serve):
    class Holding(FakeEngine):
        """The first job holds up the event loop of the server."""

        def submit(self, job, on_event, deadline=None):
            if not self.jobs:
                on_event.__self__._loop.call_soon_threadsafe(time.sleep, 0.3)
            return super().submit(job, on_event, deadline)

    use = lambda server: lag._probed(server, asks.draw, 1, 0.5, 10)
    probed, answers = serve(Holding(), use)
    assert probed["delay"]["max"] > 0.25 and len(answers) > 1
    assert probed["asked"] > 10


def flags_of(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    return run.parse_flags()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "give --checkpoint DIR, or --url"),
        (("--checkpoint", "a", "--url", "b"), "one of them"),
        (("--checkpoint", "a", "--pid", "3"), "--url"),
        (("--url", "b", "--log", "/no/such"), "there is no such file"),
        (("--url", "b", "--out", "/no/such/x.json"), "there is no directory"),
        (("--url", "b", "--levels", "1,x"), "--levels must be"),
        (("--url", "b", "--rounds", "0"), "--rounds must be 1 or more, got 0"),
        (("--url", "b", "--seconds", "nan"), "--seconds must be above 0"),
        (("--url", "b", "--sections", "lode"), "Did you mean 'load'"),
    ],
)
def test_bad_flags_are_one_line(monkeypatch, flags, message):
    with pytest.raises(UserError, match=message) as error:
        flags_of(monkeypatch, *flags)
    assert "\n" not in str(error.value)


def test_quick_is_smaller_where_no_flag_says_otherwise(monkeypatch, capsys):
    flags = flags_of(
        monkeypatch, "--url", "b", "--quick", "--rounds", "5", "--sections", "stop,load"
    )
    assert (flags.levels, flags.rounds, flags.requests) == ([1, 4], 5, run._QUICK["requests"])
    assert flags.sections == ["load"] and "left out" in capsys.readouterr().err
    assert flags_of(monkeypatch, "--url", "b").levels == [1, 8, 32]


@pytest.mark.subprocess
def test_a_server_that_ends_at_once_is_told_with_its_last_line(tmp_path):
    from benchmarks.serving.server import started

    async def use():
        async with started("none", tmp_path, "x", ["--queue", "0"]) as server:
            await server.wait_ready(60)

    with pytest.raises(UserError, match="the server has ended: error: --queue must be"):
        asyncio.run(use())


@pytest.mark.slow
def test_all_sections_on_a_model_of_random_numbers(smoke_model, tmp_path):
    out = tmp_path / "serving.json"
    command = [sys.executable, "-m", "benchmarks.serving.run", "--checkpoint", str(smoke_model)]
    command += ["--quick", "--quiet", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    found = json.loads(out.read_text())
    assert set(found["sections"]) == set(run.SECTIONS), done.stderr
    failed = [
        (name, check)
        for name, section in found["sections"].items()
        for check in section["checks"]
        # How late /health is depends on the machine.
        if check["passed"] is False and "/health" not in check["name"]
    ]
    assert failed == []
    assert found["sections"]["soak"]["programs"]["at_start"] > 10
    assert {"429", "504"} <= set(found["sections"]["queue"]["statuses"])
    assert "requests/s" in done.stdout and "Retry-After" in done.stdout
