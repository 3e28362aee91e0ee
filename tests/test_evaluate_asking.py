"""Asking benchmarks: the right questions, once each, whatever kills the process or cannot be asked."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import base64_png, tsv_rows, write_layout, write_tsv
from data_files import picture
from dummies_answering import Answerer, Rows
from dummies_drawing import Killed

from janus_jax.errors import UserError
from janus_jax.evaluation.asking import ask, make_task
from janus_jax.evaluation.predictions import AppendedLines, Predictions
from janus_jax.evaluation.running import run
from janus_jax.evaluation.understanding import get_protocol, make_prompt, open_benchmark
from janus_jax.evaluation.understanding.items import Items, Picture
from janus_jax.evaluation.understanding.layouts import make_item

ROOT = Path(__file__).parent.parent
MODEL = {"checkpoint": "models/dummy", "fingerprint": "1"}


def task_of(tmp_path, benchmark="pope", protocol="paper", limit=None):
    rules = get_protocol(protocol, benchmark)
    (path,), _ = write_layout(benchmark, "tsv", tmp_path / benchmark)
    return make_task(open_benchmark(benchmark, path, split=rules.split), rules, limit)


def lines_of(place):
    return [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]


def test_every_question_is_asked_in_the_words_and_template_of_the_protocol(tmp_path):
    task, predictor = task_of(tmp_path, "mmmu", "vlmevalkit"), Answerer()
    run(predictor, [task], tmp_path / "out", MODEL, batch_size=5)
    assert predictor.templates == [("deepseek_old", "")]
    assert sorted(predictor.asked) == sorted(
        make_prompt(i, task.protocol).question for i in task.items
    )
    assert predictor.settings[0] == {"max_new_tokens": 2048, "temperature": 0.0}
    assert {line["index"] for line in lines_of(tmp_path / "out")} == set(task.items.indices)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two tasks, and the numbers of a run of both that nothing ended."""
    place = tmp_path_factory.mktemp("whole")
    tasks = [task_of(place, "pope"), task_of(place, "mme")]
    return tasks, [n.value for n in run(Answerer(), tasks, place / "out", MODEL).numbers]


@pytest.mark.parametrize("seed", range(30))
def test_after_a_kill_at_any_point_no_question_is_asked_twice(tmp_path, whole, seed):
    rng = random.Random(seed)
    tasks, numbers = whole
    out, size = tmp_path / "out", rng.randint(1, 5)
    first = Answerer(kill_at=rng.randint(1, 24 // size))
    with pytest.raises(Killed):
        run(first, tasks, out, MODEL, batch_size=size)
    known = (out / "predictions.jsonl").read_bytes()
    cut = rng.randint(0, 40)  # what was not on disk when the machine stopped
    (out / "predictions.jsonl").write_bytes(known[: max(len(known) - cut, 0)])
    kept = known[: max(len(known) - cut, 0)].count(b"\n")
    second = Answerer()
    outcome = run(second, tasks, out, MODEL, batch_size=rng.randint(1, 5))
    assert outcome.complete and outcome.asked == len(second.asked) == 24 - kept
    keys = [(line["benchmark"], line["index"]) for line in lines_of(out)]
    assert len(keys) == len(set(keys)) == 24
    assert [n.value for n in outcome.numbers] == numbers


@pytest.mark.slow
@pytest.mark.subprocess
def test_sigkill_leaves_answers_that_go_on(tmp_path):
    rows = [dict(r, index=f"{r['index']}/{n}") for n in range(40) for r in tsv_rows("pope")]
    path = write_tsv(tmp_path / "POPE.tsv", rows)
    code = (
        "import sys; sys.path[:0] = [sys.argv[3]]\n"
        "from test_evaluate_asking import *\n"
        "class Slow(Answerer):\n"
        "    def answer(self, *args, **settings):\n"
        "        time.sleep(0.004)\n"
        "        return super().answer(*args, **settings)\n"
        "rules = get_protocol('paper', 'pope')\n"
        "task = make_task(open_benchmark('pope', sys.argv[1]), rules)\n"
        "print(run(Slow(), [task], sys.argv[2], MODEL, batch_size=2).asked)\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", code, path, str(out), str(ROOT / "tests")]
    kills = 0
    for delay in (0.02, 0.1, 0.2, 0.05, 0.15, 0.3):
        before = len(lines_of(out)) if (out / "predictions.jsonl").exists() else 0
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None:
            found = out / "predictions.jsonl"
            if found.exists() and found.read_bytes().count(b"\n") > before:
                break
            time.sleep(0.005)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    kept = (out / "predictions.jsonl").read_bytes().count(b"\n")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert kills >= 3 and kept < 480 and int(done.stdout) == 480 - kept
    indices = [line["index"] for line in lines_of(out)]
    assert len(indices) == len(set(indices)) == 480


def test_pictures_that_cannot_be_read_are_wrong_and_listed(tmp_path):
    rows = tsv_rows("pope")
    rows[0]["image"] = base64_png(0)[:40]
    rows[5]["image"] = (
        "bm8gcGljdHVyZSBhdCBhbGwsIG5vdCBldmVuIGEgbGl0dGxlIG9uZSwgdHJ1bHkgbm90IG9uZSBvZiB0aGVt"
    )
    path = write_tsv(tmp_path / "POPE.tsv", rows)
    task = make_task(open_benchmark("pope", path), get_protocol("paper", "pope"))
    truths = {make_prompt(i, task.protocol).question: i.answer for i in task.items}
    predictor = Answerer(truths.__getitem__)
    outcome = run(predictor, [task], tmp_path / "out", MODEL, batch_size=4)
    (result,) = outcome.results
    assert set(result.unreadable) == {"random/1", "popular/6"} and len(predictor.asked) == 10
    assert result.scores.tables["pope"]["overall"]["accuracy"] == pytest.approx(100 * 10 / 12)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores["benchmarks"]["paper/pope"]["unreadable"]) == set(result.unreadable)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Pictures that cannot be read" in page and "random/1" in page
    assert run(Answerer(kill_at=1), [task], tmp_path / "out", MODEL).asked == 0


def test_pictures_that_could_not_be_read_are_looked_for_again(tmp_path):
    paths, pictures = write_layout("pope", "json", tmp_path / "pope")
    rules, out = get_protocol("paper", "pope"), tmp_path / "out"
    hidden = tmp_path / "pope" / "pictures" / "COCO_val2014_000000000003.jpg"
    hidden.rename(tmp_path / "away.jpg")
    (result,) = run(
        Answerer(), [make_task(open_benchmark("pope", paths, pictures), rules)], out, MODEL
    ).results
    assert len(result.unreadable) == 1 and len(lines_of(out)) == 11
    with open(out / "predictions.jsonl", "a") as file:  # as older versions wrote
        (index,) = result.unreadable
        line = {"protocol": "paper", "benchmark": "pope", "index": index, "unreadable": "x"}
        file.write(json.dumps(line) + "\n")
    (tmp_path / "away.jpg").rename(hidden)
    again = run(Answerer(), [make_task(open_benchmark("pope", paths, pictures), rules)], out, MODEL)
    assert again.asked == 1 and not again.results[0].unreadable


def test_without_any_picture_nothing_is_asked(tmp_path):
    paths, pictures = write_layout("pope", "json", tmp_path / "pope")
    rules, out = get_protocol("paper", "pope"), tmp_path / "out"
    task = make_task(open_benchmark("pope", paths), rules)
    with pytest.raises(UserError) as error:
        run(Answerer(kill_at=1), [task], out, MODEL)
    for part in ("COCO_val2014_000000000000.jpg", str(tmp_path / "pope"), "--images"):
        assert part in str(error.value)
    assert lines_of(out) == []
    run(Answerer(), [make_task(open_benchmark("pope", paths, pictures), rules)], out, MODEL)
    # What is answered can be scored where the pictures are gone.
    assert run(Answerer(kill_at=1), [task], out, MODEL).asked == 0


def test_a_question_that_cannot_be_asked_does_not_stop_the_others(tmp_path):
    def reply(text):
        if "thing 11 " in text:
            raise UserError("the question is too long")
        return "Yes"

    outcome = run(Answerer(reply), [task_of(tmp_path)], tmp_path / "out", MODEL, batch_size=12)
    assert outcome.results[0].failed == {"adversarial/12": "the question is too long"}
    assert outcome.complete and outcome.results[0].scores.counts["missing"] == 1


def test_a_model_that_cannot_be_asked_anything_ends_at_once(tmp_path):
    def reply(text):
        raise UserError("not even one answer fits into memory")

    task = task_of(tmp_path)
    with pytest.raises(UserError, match="not even one answer fits"):
        run(Answerer(reply), [task], tmp_path / "out", MODEL)
    assert lines_of(tmp_path / "out") == []
    # What is left of a run that went well may be what cannot be asked.
    run(Answerer(), [make_task(task.items, task.protocol, 11)], tmp_path / "out", MODEL)
    assert len(run(Answerer(reply), [task], tmp_path / "out", MODEL).results[0].failed) == 1


def test_a_limit_keeps_together_what_is_counted_together(tmp_path):
    mme, mmbench = task_of(tmp_path, "mme", limit=7), task_of(tmp_path, "mmbench", limit=9)
    assert len(mme.indices) == 6 and len({i.split("#")[0] for i in mme.indices}) == 3
    assert len(mmbench.indices) == 8 and len({int(i) % 10**6 for i in mmbench.indices}) == 2
    assert len(task_of(tmp_path, "mme", limit=1).indices) == 2
    assert task_of(tmp_path, limit=12).partial is task_of(tmp_path, limit=99).partial is False


def test_a_limit_draws_no_pattern_and_a_larger_one_goes_on(tmp_path):
    rows = [dict(r, index=f"{r['index']}/{n}") for n in range(20) for r in tsv_rows("pope")]
    items = open_benchmark("pope", write_tsv(tmp_path / "POPE.tsv", rows))
    few, more = (make_task(items, get_protocol("paper", "pope"), n).indices for n in (60, 120))
    truths = [items.find(index).answer for index in few]
    assert 15 < truths.count("Yes") < 45 and set(few) < set(more) and len(more) == 120


def test_a_damaged_line_is_asked_again_and_a_half_one_is_cut(tmp_path, capsys):
    task, out = task_of(tmp_path), tmp_path / "out"
    run(Answerer(), [task], out, MODEL)
    lines = (out / "predictions.jsonl").read_text().splitlines(keepends=True)
    (out / "predictions.jsonl").write_text(
        "".join([*lines[:3], "\x00\x00\n", *lines[4:], lines[3][:9]])
    )
    again = Answerer()
    assert run(again, [task], out, MODEL).asked == 1
    assert "left out 1 of its 12 lines" in capsys.readouterr().err
    assert (out / "predictions.jsonl").read_text().splitlines(keepends=True)[-1] == lines[3]


def test_two_processes_do_not_answer_into_one_file(tmp_path):
    with (
        AppendedLines(tmp_path / "a.jsonl", lambda value: True),
        pytest.raises(UserError, match="another process is adding"),
    ):
        AppendedLines(tmp_path / "a.jsonl", lambda value: True)
    AppendedLines(tmp_path / "a.jsonl", lambda value: True).close()


def test_a_last_line_longer_than_what_is_read_at_once_is_cut_whole(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with Predictions(path) as predictions:
        predictions.add([dict(protocol="p", benchmark="b", index="1", answer="x")])
    with open(path, "a") as file:
        file.write('{"protocol": "' + "y" * 200_000)
    with Predictions(path) as predictions:
        assert predictions.done("p", "b") == {"1": ("answer", "x")}
    assert path.read_bytes().endswith(b"}\n") and os.path.getsize(path) < 100


def test_memory_stays_flat_over_ten_thousand_questions():
    encoded = picture(kind="PNG")
    large = np.zeros((120, 120, 3), np.uint8)

    class Large(Picture):
        def __call__(self):
            assert encoded
            return large.copy()

    rows = Rows(
        10_000,
        lambda i: {
            "index": f"{i // 2}#{i % 2}",
            "question": f"Is it {i}?",
            "answer": ["Yes", "No"][i % 2],
            "category": "OCR",
            "image_path": f"{i // 2}.png",
        },
        Large("x", lambda: encoded),
    )
    items = Items("mme", rows, make_item("mme"))
    task = make_task(items, get_protocol("paper", "mme"))
    peaks = []

    def add(lines):
        peaks.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        ask(Answerer(lambda text: "Yes"), task, {}, 50, add)
    finally:
        tracemalloc.stop()
    # Two batches of pictures are 4 MB; all of them would be 430 MB.
    assert len(peaks) == 200 and max(peaks) < min(peaks[:5]) + 20 * 2**20
