"""What a report shows of the prompts and questions that were looked at while a stage trained."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from janus_jax.run.report import write_report
from janus_jax.run.samples import write_grid

PROMPTS = [
    "a red cat",
    "an <b>owl</b> | *here*",
    "a dog",
    "\x1b[31ma car",
    "a hat",
    "a cup",
    "a bee",
]
HOSTILE = "a | b <img src=x>\x1b[0m\nc"


def answers(step, count=2):
    return [
        {
            "image": f"samples/lm_asked_{i}.png",
            "question": f"what {HOSTILE} {i}?",
            "truth": "a cat" if i else None,
            "answer": f"{HOSTILE} at {step}",
        }
        for i in range(count)
    ]


def shade(step, number):
    return np.full((8, 8, 3), 20 * number % 256 + step // 10, np.uint8)


def write_run(path, steps=(0, 20, 40), prompts=PROMPTS, true=True):
    """A run of stage lm whose picture of a prompt has a shade of its own at each step."""
    (path / "samples").mkdir(parents=True, exist_ok=True)
    (path / "stages.json").write_text('["lm"]')
    (path / "config.json").write_text('{"stages": {"lm": {"steps": 40, "options": {}}}}')
    losses = [{"stage": "lm", "step": step, "loss": 1.0} for step in range(1, max(steps) + 1)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in losses))
    settings = {"are": "held out", "columns": 6, "seed": 0}
    for step in steps:
        pictures = [shade(step, number) for number in range(len(prompts))]
        write_grid(path, f"lm_{step:06d}", pictures, 6, prompts, settings)
        found = {"are": "trained on", "answers": answers(step)}
        (path / "samples" / f"lm_{step:06d}_answers.json").write_text(json.dumps(found))
    if true:
        white = [np.full((8, 8, 3), 255 - i, np.uint8) for i in range(len(prompts))]
        write_grid(path, "lm_true", white, 6, prompts, {"columns": 6})
    return path


def report(path):
    return write_report(path).read_text()


def section(text, title):
    return text.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def tiles(path, columns):
    """The shade in the middle of each picture, row by row."""
    with Image.open(path / "report_drawn_lm.png") as image:
        sheet = np.asarray(image.convert("L"))
    return [
        [int(sheet[24 + 160 * row + 78, 30 + 160 * column + 78]) for column in range(columns)]
        for row in range((len(sheet) - 24) // 160)
    ]


def test_a_row_is_a_prompt_and_a_column_a_step(tmp_path):
    text = section(report(write_run(tmp_path)), "What it draws")
    assert "Stage lm, prompts of records that are held out of training." in text
    assert "![true, before, step 20, end, step 40](report_drawn_lm.png)" in text
    found = tiles(tmp_path, 4)
    assert found == [[255 - i, 20 * i, 20 * i + 2, 20 * i + 4] for i in range(len(PROMPTS))]
    assert "1. a red cat\n2. an &lt;b&gt;owl&lt;/b&gt; | *here*\n" in text
    assert "\x1b" not in text and "## Samples" not in text


def test_of_many_steps_the_first_and_the_last_are_shown(tmp_path):
    text = report(write_run(tmp_path, steps=range(0, 40, 2), true=False))
    # It has not come to its end: 38 of 40.
    assert "Columns: before, step 10, step 20, step 28, step 38." in text
    assert [len(row) for row in tiles(tmp_path, 5)] == [5] * len(PROMPTS)


def test_other_prompts_of_earlier_steps_are_not_shown(tmp_path):
    write_run(tmp_path, steps=(0, 10), prompts=["something else", "a dog"])
    text = section(report(write_run(tmp_path, steps=(20, 40))), "What it draws")
    assert "something else" not in text and "Columns: true, before, step 10, step 20" in text
    found = tiles(tmp_path, 5)
    assert found[0][1:] == [255, 255, 2, 4] and found[2][1:] == [20, 21, 42, 44]


def test_answers_are_a_table(tmp_path):
    text = section(report(write_run(tmp_path)), "What it answers")
    assert "Stage lm, questions of records that it trains on." in text
    header, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert header == "| picture | question | true answer | before | step 20 | end, step 40 |"
    assert len(rows) == 2 and rows[0].startswith(
        '| <img src="samples/lm_asked_0.png" width="96"> | what'
    )
    assert rows[0].count(" | - | ") == 1 and rows[1].count(" | a cat | ") == 1
    # Nothing of a text is a cell, a tag or a line of its own.
    assert all(row.replace("\\|", "").count("|") == 7 for row in rows)
    assert text.count("<") == 2 and "\x1b" not in text


def test_a_run_without_them_has_no_such_section(tmp_path):
    write_run(tmp_path)
    for path in (tmp_path / "samples").iterdir():
        path.unlink()
    # A grid as earlier versions wrote it.
    write_grid(tmp_path, "lm_000040", [shade(0, 0)] * 2, 6, ["a", "b"])
    text = report(tmp_path)
    assert "What it" not in text and "](samples/lm_000040.png)" in text
    assert not (tmp_path / "report_drawn_lm.png").exists()


def test_more_prompts_than_rows_are_also_seen_in_the_newest_grid(tmp_path):
    text = report(write_run(tmp_path, prompts=[f"prompt {i}" for i in range(15)]))
    assert "And 3 more in samples/." in text and "](samples/lm_000040.png)" in text


BROKEN = [
    "[]",
    "{",
    '{"prompts": 3, "columns": 6}',
    '{"prompts": ["a"], "columns": 0}',
    '{"prompts": ["a"], "columns": "x"}',
    '{"prompts": ["a"], "columns": 6, "are": []}',
    '{"prompts": ["a red cat"], "columns": 99999}',
]
ENTRY = {"image": "samples/a.png", "question": "a", "answer": "b", "truth": None}
BAD = [{"image": 'x" onerror="'}, {"image": "../../a.png"}, {"answer": 3}, {"truth": []}]
BROKEN += [json.dumps({"answers": [ENTRY | bad]}) for bad in BAD]
BROKEN += ['{"answers": 3}', '{"answers": [3]}']


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", ["lm_000020.json", "lm_000040_answers.json", "lm_true.json"])
def test_what_is_damaged_is_left_out(broken, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("janus_jax.run.report.run.draw_curves", lambda *_: None)  # it takes long
    write_run(tmp_path)
    (tmp_path / "samples" / name).write_text(broken)
    text = report(tmp_path)
    assert "## What it draws" in text and "## What it answers" in text
    assert "onerror" not in text and "../" not in text
    assert capsys.readouterr().err.count("\n") <= 1


def test_what_is_no_picture_is_left_out(tmp_path, capsys):
    write_run(tmp_path)
    (tmp_path / "samples" / "lm_000020.png").write_bytes(b"\x89PNG")
    (tmp_path / "samples" / "lm_000000.png").unlink()
    os.mkfifo(tmp_path / "samples" / "lm_000000.png")
    text = report(tmp_path)
    assert capsys.readouterr().err.count("\n") == 1 and "What it answers" in text
