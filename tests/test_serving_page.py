"""The page without a browser: what its handlers show for every event, and when they cancel."""

import asyncio
import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("starlette")

from dummies_serving import CARD, FakeEngine, file_of, picture, wait_for
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.serving import jobs
from janus_jax.serving.http.context import Context
from janus_jax.serving.http.fetching import Fetcher
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.page.chat import Turn, ask, ask_again
from janus_jax.serving.page.draw import draw, number_of
from janus_jax.serving.page.files import PictureFiles, harmless
from janus_jax.serving.page.markup import cards_of, line_of
from janus_jax.serving.page.sessions import Sessions, Visit


@pytest.fixture
def files(tmp_path):
    return PictureFiles(tmp_path)


@contextlib.contextmanager
def context_of(engine, **limits):
    with ThreadPoolExecutor(2) as pool:
        limits = Limits(**limits)
        yield Context(engine, CARD, limits, pool, Fetcher((), limits))


async def all_of(views):
    return [view async for view in views]


def drawing(engine, form, files, **limits):
    """All views of a drawing."""
    with context_of(engine, **limits) as context:
        return asyncio.run(all_of(draw(form, Visit(), context, files)))


def asking(engine, files, turns, question, *paths, settings=None, **limits):
    """All views of an answer."""
    with context_of(engine, **limits) as context:
        views = ask(turns, question, paths, settings or {}, Visit(), context, files)
        return asyncio.run(all_of(views))


def steps(*events):
    """A script whose events come one after the other, as far apart as a view takes."""

    def script(job):
        for event in events:
            yield event
            time.sleep(0.08)

    return script


def upload(files, data=None, name="tree.png"):
    path = files.directory / name
    path.write_bytes(file_of() if data is None else data)
    return str(path)


def test_pictures_grow_and_are_kept(files):
    shown = [
        jobs.Preview(0, picture(255), 4, 16),
        jobs.Preview(1, picture(200), 4, 16),
        jobs.Preview(0, picture(100), 8, 16),
        jobs.Picture(1, picture(11)),
        jobs.Picture(0, picture(10)),
        jobs.Finished("stop", 5, 32),
    ]
    engine = FakeEngine(steps(*shown))
    form = {"prompt": "a <b> cat/../x", "n": 2, "seed": 9, "guidance_scale": 2, "top_k": None}
    *before, last = drawing(engine, form, files)
    assert engine.jobs == [jobs.DrawJob("a <b> cat/../x", 2, 9, cfg_weight=2.0, previews=3)]
    lines = [view.line for view in before]
    assert lines[0].startswith("Waiting for the model")
    assert "0 of 2 pictures, 8 of 32 codes" in lines and "1 of 2 pictures, 24 of 32 codes" in lines
    assert all(view.running and not view.failed and view.seed == 9 for view in before)
    sources = {view.cards[0].source for view in before}
    assert len(sources) >= 3 and "" in sources  # nothing, a quarter, a half
    assert not last.running and last.line.startswith("2 pictures in ")
    for index, drawn in enumerate(last.drawn):
        assert (drawn.prompt, drawn.seed, drawn.index) == ("a <b> cat/../x", 9, index)
        assert drawn.file.endswith(f"a_b_cat_x_seed9_{index}.png") and files.is_there(drawn.file)
        with Image.open(drawn.file) as image:
            np.testing.assert_array_equal(np.asarray(image), picture(10 + index))


def test_only_the_newest_is_shown_where_many_events_come_at_once(files):
    many = [jobs.Preview(0, picture(i), i, 200) for i in range(1, 200)]
    engine = FakeEngine(lambda job: iter([*many, jobs.Picture(0, picture(1)), jobs.Finished()]))
    views = drawing(engine, {"prompt": "a"}, files)
    assert len(views) < 20 and views[-1].drawn


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (None, None),
        (" ", None),
        (" 7 ", 7),
        ("0", 0),
        ("0.5", 0.5),
        ("x", "x"),
        ("1e999", float("inf")),
    ],
)
def test_numbers_that_are_typed(text, number):
    assert number_of(text) == number and type(number_of(text)) is type(number)


def test_a_seed_is_made_where_none_is_given(files):
    seeds = {drawing(FakeEngine(), {"prompt": "a", "seed": None}, files)[-1].seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": "a", "n": 11}, "n must be from 1 to 10"),
        ({"prompt": "a", "seed": -1}, "seed must be from 0"),
        ({"prompt": "a", "seed": "x"}, "seed must be a whole number"),
        ({"prompt": "a", "top_p": float("nan")}, "top_p must be above 0"),
        ({"prompt": "a", "seed": 2**32}, "seed must be from 0"),
        ({"prompt": "a", "top_p": 0}, "top_p must be above 0"),
        ({"prompt": "a", "temperature": -0.5}, "temperature must be from 0"),
        ({"prompt": "a" * 101}, "at most 100 are taken"),
        ({"prompt": "\ud800"}, "half of a character"),
    ],
)
def test_a_form_that_is_wrong_is_one_line(files, form, words):
    engine = FakeEngine()
    (view,) = drawing(engine, form, files, text=100)
    assert view.failed and not view.running and words in view.line and "\n" not in view.line
    assert view.cards == () and not engine.jobs


FAILURES = [
    (jobs.QueueFull(3), "no room"),
    (UserError("the prompt is too long"), "the prompt is too long"),
    (ValueError("a secret"), "the server has a fault"),
    ([jobs.Failed("deadline", "it took too long")], "it took too long"),
    ([jobs.Failed("error", "out of memory")], "out of memory"),
]


@pytest.mark.parametrize(("script", "words"), FAILURES)
def test_what_goes_wrong_is_one_line(files, script, words):
    drawn = drawing(FakeEngine(lambda job: script), {"prompt": "a"}, files)[-1]
    before = (Turn("hello", (), "hi"),)
    path = upload(files)
    answered = asking(FakeEngine(lambda job: script), files, before, "what?", path)[-1]
    for view in (drawn, answered):
        assert view.failed and not view.running and words in view.line
        assert "secret" not in view.line
    assert answered.turns == before and answered.refused  # nothing is lost


def test_what_was_drawn_before_a_failure_stays(files):
    done = [jobs.Picture(0, picture(1)), jobs.Failed("error", "broken")]
    view = drawing(FakeEngine(lambda job: iter(done)), {"prompt": "a", "n": 2}, files)[-1]
    assert view.failed and [drawn.index for drawn in view.drawn] == [0]


def test_who_waits_is_told_how_many_are_before(files, monkeypatch):
    monkeypatch.setattr("janus_jax.serving.page.following.TICK", 0.02)

    class Busy(FakeEngine):
        waiting = 2  # before this one

        def stats(self):
            return {"draw": {"waiting": self.waiting}}

    engine = Busy(lambda job: iter([jobs.Preview(0, picture(1), 1, 16), jobs.Finished()]))
    begin = threading_event_of(engine)

    async def run(context):
        views = draw({"prompt": "a"}, Visit(), context, files)
        first = await anext(views)
        engine.waiting = 6  # later ones, and this one
        second = await anext(views)
        engine.waiting = 2  # one of the two before has begun
        third = await anext(views)
        engine.ready = False
        fourth = await anext(views)
        begin.set()
        rest = [view async for view in views]
        return [view.line for view in (first, second, third, fourth)], rest

    with context_of(engine) as context:
        lines, rest = asyncio.run(run(context))
    assert lines[0] == lines[1] == "Waiting for the model, 2 waiting before you"
    assert lines[2] == "Waiting for the model, 1 waiting before you"
    assert lines[3].startswith("The model is being compiled") and not rest[-1].running


def threading_event_of(engine):
    """Set it to let the engine begin."""
    begin, script = threading.Event(), engine.script

    def later(job):
        begin.wait(10)
        yield from script(job)

    engine.script = later
    return begin


JOBS = {
    "draw": lambda context, visit, files: draw({"prompt": "a"}, visit, context, files),
    "chat": lambda context, visit, files: ask((), "hello", (), {}, visit, context, files),
}


@pytest.mark.parametrize("kind", JOBS)
@pytest.mark.parametrize("how", ["leave", "close"])
def test_who_goes_or_says_stop_frees_the_place(files, kind, how):
    engine = FakeEngine()
    engine.go.clear()  # after its first event, which is a preview or a word

    async def run(context):
        sessions = Sessions()
        with sessions.visit("mine", kind) as visit, sessions.visit("other", kind) as other:
            views = JOBS[kind](context, visit, files)
            await anext(views)
            await asyncio.to_thread(wait_for, lambda: engine.jobs)
            if how == "close":
                await views.aclose()
                left = []
            else:
                sessions.leave("mine", "another kind")
                assert (await anext(views)).running
                sessions.leave("mine", kind)
                left = [view async for view in views]
            await asyncio.to_thread(wait_for, lambda: engine.cancelled)
            waits = asyncio.create_task(other.receive())
            await asyncio.sleep(0)
            assert not waits.done()
            waits.cancel()
        return left

    with context_of(engine) as context:
        left = asyncio.run(run(context))
    if how == "leave":
        assert left[-1].line == "Stopped." and not left[-1].failed and not left[-1].running


def test_an_answer_grows_and_the_conversation_goes_on(files):
    words = steps(jobs.Delta("a "), jobs.Delta("tree"), jobs.Finished("stop", 5, 2))
    engine = FakeEngine(words)
    path = upload(files)
    views = asking(engine, files, (), "what is it?", path, settings={"temperature": 0.5})
    answers = [view.turns[-1].answer for view in views]
    assert answers[0] == "" and "a " in answers and answers[-1] == "a tree"
    assert views[-1].line == "" and not views[-1].running and not views[-1].failed
    turns = views[-1].turns
    (shown,) = turns[0].pictures
    assert files.is_there(shown.file)
    with Image.open(shown.file) as image:
        assert image.size == (CARD.input_size,) * 2
    views = asking(engine, files, turns, "and this?", path, path)
    job = engine.jobs[-1]
    assert [message.role for message in job.messages] == ["user", "assistant", "user"]
    assert [len(message.pictures) for message in job.messages] == [1, 0, 2]
    np.testing.assert_array_equal(
        job.messages[0].pictures[0], engine.jobs[0].messages[0].pictures[0]
    )
    assert len(views[-1].turns) == 2


def test_the_last_question_is_asked_again(files):
    turns = (Turn("one", (), "1"), Turn("two", (), "2"))
    engine = FakeEngine()
    with context_of(engine) as context:
        views = asyncio.run(all_of(ask_again(turns, {"max_tokens": 1}, Visit(), context)))
        (none,) = asyncio.run(all_of(ask_again((), {}, Visit(), context)))
    assert views[-1].turns == (turns[0], Turn("two", (), "You said: two"))
    assert "cut" in views[-1].line and none.failed
    failing = FakeEngine(lambda job: [jobs.Failed("error", "broken")])
    with context_of(failing) as context:
        view = asyncio.run(all_of(ask_again(turns, {}, Visit(), context)))[-1]
    assert view.turns == turns and view.failed and not view.refused  # the old answer is back


def test_a_part_of_an_answer_stays_and_none_is_left_out_of_the_next_question(files):
    cut = FakeEngine(lambda job: [jobs.Delta("half"), jobs.Failed("deadline", "too late")])
    view = asking(cut, files, (), "one")[-1]
    assert view.turns == (Turn("one", (), "half"),) and view.failed and not view.refused
    silent = FakeEngine(lambda job: [jobs.Finished()])
    view = asking(silent, files, (), "two")[-1]
    assert view.line == "The model has no answer." and view.turns[-1].answer == ""
    asking(silent, files, view.turns, "three")
    assert [message.text for message in silent.jobs[-1].messages] == ["three"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"no picture", "is no picture that can be read"),
        (b"\x89PNG" + bytes(3000), "has more than"),
        (file_of(side=41), "41x41 pixels, at most 0.0016 megapixels"),
    ],
)
def test_pictures_have_the_limits_of_the_api(files, data, words):
    engine = FakeEngine()
    limits = {"picture_bytes": 2000, "picture_pixels": 1600}
    (view,) = asking(engine, files, (), "what?", upload(files, data, "ba\nd.png"), **limits)
    assert words in view.line and view.line.startswith("ba\\nd.png ") and view.refused
    assert "\n" not in view.line and not engine.jobs


def test_questions_have_the_limits_of_the_api(files, tmp_path_factory):
    engine, path = FakeEngine(), upload(files)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    elsewhere.write_bytes(file_of())
    link = files.directory / "link.png"
    link.symlink_to(elsewhere)
    old = (Turn("a" * 60, (), "b" * 60),)
    for turns, question, paths, words in (
        ((), " ", (), "write a question"),
        ((), " ", (path,), "write a question about the picture"),
        ((), "what?", (str(elsewhere),), "not there"),
        ((), "what?", (str(link),), "not there"),
        ((), "what?", (f"{files.directory}/../elsewhere0/secret.png",), "not there"),
        ((), "what?", (path,) * 3, "at most 2 are taken"),
        (old, "what?", (), "at most 100 are taken"),
        ((), "<image_placeholder>", (), "<image_placeholder>"),
    ):
        (view,) = asking(engine, files, turns, question, *paths, pictures=2, text=100)
        assert words in view.line and view.failed and view.refused and view.turns == turns
    assert not engine.jobs


def test_files_are_bounded_and_the_oldest_go(tmp_path):
    files = PictureFiles(tmp_path, most=250)
    paths = []
    for number in range(4):
        paths.append(files.save(bytes(100), "a"))
        os.utime(paths[-1], (number, number))
    files.trim()
    assert [files.is_there(path) for path in paths] == [False, False, True, True]
    assert len(list(tmp_path.iterdir())) == 2
    assert not files.holds("/etc/passwd") and not files.holds(f"{tmp_path}/../x")
    assert not files.holds("a\0b") and not files.holds("https://example.com/a.png")


def test_names_and_texts_are_harmless():
    assert harmless("../../etc/passwd\n\0") == "etc_passwd"
    assert harmless("é" * 5) == "picture" and len(harmless("a b " * 99)) <= 40
    assert "<script" not in line_of("<script>alert(1)</script>")
    assert 'class="line failed"' in line_of("x", failed=True)
    assert "grow" in cards_of((), 32, 32)
