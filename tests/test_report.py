"""report.md: what a whole run, and what any part of one, turns into."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.run.report import write_report
from janus_jax.run.scores import ScoreStore

KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HELD_OUT = ("two_object", "colors", "position", "color_attr")
PROMPTS = [f"prompt {i}" for i in range(11)]


def geneval(plain, strict=0.5, kinds=KINDS):
    scores = {k: {"plain": plain, "strict": strict, "count": 25} for k in kinds}
    return scores | {"mean": {"plain": plain, "strict": strict}}


def asked(accuracy):
    scores = {k: {"accuracy": accuracy, "majority": 0.3, "count": 25} for k in ("colour", "yes_no")}
    scores["yes_no"] |= {"precision": 0.91, "recall": 0.82, "f1": 0.86}
    return scores | {"mean": {"accuracy": accuracy, "majority": 0.3}}


def steps(stage, count, **losses):
    return [
        {
            "stage": stage,
            "step": i + 1,
            "grad_norm": 1.0,
            "tokens": 100.0,
            "tokens_per_s": 50.0 if i == 0 else 1234.0,  # the first one compiles
            "data_wait": 0.1,
            **{name: at(i) for name, at in losses.items()},
        }
        for i in range(count)
    ]


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def write_run(tmp_path):
    """A small run of three stages with everything in it."""
    records = steps("vq", 40, loss=lambda i: 4.0 if i < 20 else 1.5, psnr=lambda i: 20.0)
    records += steps("encoder", 30, loss=lambda i: 3.0 / (i + 1), accuracy=lambda i: 0.75)
    records += steps(
        "stage3",
        60,
        loss=lambda i: 2.0,
        # Every other batch has no question: 0 is not a loss then.
        loss_und=lambda i: 0.5 * (i % 2),
        loss_text=lambda i: 0.0,
        loss_gen=lambda i: 3.25,
    )
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    write(tmp_path / "stages.json", ["vq", "encoder", "stage3"])
    note, settings = "the scores mean nothing", {"vq": {"steps": 40}, "encoder": {"steps": 99}}
    write(tmp_path / "config.json", {"name": "small", "eval": {"note": note}, "stages": settings})
    judge = {
        "true": geneval(1.0, 1.0),
        "shuffled": geneval(0.02, 0.01),
        "reconstructed": geneval(0.98, 0.97),
        "reconstructed_held_out": geneval(0.96, 0.95, HELD_OUT),
    }
    final = {
        "train_seconds": 90.4,
        "scoring_seconds": 30.0,
        "peak_memory_gib": 1.62,
        "guidance": {"2.0": geneval(0.71), "1.5": geneval(0.74), "10.0": geneval(0.66)},
        "cfg_weight": 1.5,
        "mini_geneval": geneval(0.77, 0.69),
        "mini_geneval_held_out": geneval(0.55, 0.44, HELD_OUT),
        "questions": asked(0.88),
        "questions_held_out": asked(0.79),
    }
    vq = {"judge": judge, "train_seconds": 89.6, "scoring_seconds": 2.0, "peak_memory_gib": 0.9}
    write(tmp_path / "scores.json", {"vq": vq, "stage3": final})
    for name in ("vq_000040", "stage3_000050", "stage3_000060"):
        write(tmp_path / "samples" / f"{name}.json", {"prompts": PROMPTS})
        Image.new("RGB", (4 * 6, 3 * 6)).save(tmp_path / "samples" / f"{name}.png")  # 4 x 3 tiles
    Image.new("RGB", (6, 6)).save(tmp_path / "samples" / "stage3_question.png")  # no grid
    question = {"image": "samples/a.png", "question": "a | b?", "answer": "yes", "truth": "no"}
    write(tmp_path / "questions.json", [question | {"right": False}])
    return tmp_path


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def whole(whole_run):
    """The report of a whole run."""
    return report(whole_run)


def report(run):
    path = write_report(run)
    assert path == run / "report.md"
    return path.read_text()


def row(text, first):
    """The cells after `first` in the only table row that starts with it."""
    found = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    assert len(found) == 1, found
    return [cell.strip() for cell in found[0].strip("|").split(" | ")][1:]


def section(text, title):
    return text.split(f"{title}\n", 1)[1].split("\n#", 1)[0]


def test_the_note_comes_first(whole):
    lines = [line for line in whole.splitlines() if line]
    assert lines[0] == "# Run small"
    assert lines[1] == "> **the scores mean nothing**"


def test_stage_table(whole):
    text = section(whole, "## Stages")
    assert row(text, "vq")[:5] == ["40", "90", "1234", "4.000 -> 1.500", "psnr 20.000"]
    assert row(text, "vq")[5:] == ["-", "-", "-"]
    assert row(text, "encoder")[:3] == ["30 of 99", "-", "1234"]
    assert row(text, "stage3")[4] == "gen 3.250, und 0.500"  # no text in this mixture
    assert row(text, "stage3")[5:] == ["0.77", "0.77", "0.88"]
    assert "Training took 3.0 minutes, scoring 0.5." in text
    assert "1.62 GiB" in text


def test_curves_have_a_panel_for_each_stage(whole, whole_run):
    assert "](report_losses.png)" in whole
    with Image.open(whole_run / "report_losses.png") as image:
        image.load()
        assert image.width > 2 * image.height  # three panels side by side
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


def test_samples_are_the_newest_with_prompts_laid_out_as_the_pictures(whole):
    text = section(whole, "## Samples")
    assert "](samples/stage3_000060.png)" in text and "stage3_000050" not in text
    assert row(text, "prompt 4") == ["prompt 5", "prompt 6", "prompt 7"]
    assert row(text, "prompt 8")[:2] == ["prompt 9", "prompt 10"]


def test_drawing_is_shown_next_to_its_ceiling(whole):
    text = section(whole, "## Drawing: mini-GenEval")
    cells = ["0.77 / 0.69", "0.55 / 0.44", "0.98 / 0.97", "0.96 / 0.95", "1.00 / 1.00"]
    assert row(text, "position") == [*cells, "0.02 / 0.01"]
    assert row(text, "counting")[1] == "-"  # nothing to hold out
    assert row(text, "mean")[0] == "0.77 / 0.69"
    assert "25 of each kind: one standard error is up to 0.10." in text


def test_guidance_is_sorted_and_the_chosen_one_marked(whole):
    text = section(whole, "### Guidance")
    weights = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")]
    assert weights[2:] == ["| **1.5**", "| 2.0", "| 10.0"]
    assert row(text, "10.0")[:2] == ["0.66", "0.50"]


def test_questions_against_majority(whole):
    text = section(whole, "## Understanding: questions")
    assert row(text, "colour") == ["0.88", "0.30", "0.79", "0.30"]
    assert row(text, "seen") == ["0.91", "0.82", "0.86"]
    text = section(whole, "### Some questions with their answers")
    assert '| <img src="samples/a.png" width="96"> | a \\| b? | yes | no | no |' in text


def test_one_unscored_stage_makes_a_report(run):
    for name in ("scores.json", "questions.json", "config.json", "stages.json"):
        (run / name).unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:40]) + '\n{"stage": "vq", "st')  # killed
    text = report(run)
    assert row(text, "vq") == ["40", "-", "1234", "4.000 -> 1.500", "psnr 20.000", "-", "-", "-"]
    assert "samples/vq_000040.png" in text
    assert "mini-GenEval\n" not in text and "Understanding" not in text


def test_scores_without_metrics_make_a_report(run):
    (run / "metrics.jsonl").unlink()
    text = report(run)
    assert row(section(text, "## Stages"), "vq")[:2] == ["-", "90"]
    assert "report_losses.png" not in text


def test_an_empty_directory_says_so_and_none_is_refused(tmp_path):
    assert "Nothing has been trained yet." in report(tmp_path)
    with pytest.raises(UserError, match="not a directory"):
        write_report(tmp_path / "missing")


def test_writing_again_replaces_and_leaves_nothing_behind(run):
    first = report(run)
    assert report(run) == first
    assert not list(run.glob("*.tmp"))


@pytest.mark.heavy
def test_damaged_files_are_left_out_with_a_warning(run, capsys):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[5:5] = ["garbage", "[]", "3", '{"stage": "vq"}', '{"stage": "vq", "step": 1, "lo']
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert row(report(run), "stage3")[0] == "60"  # nothing after the garbage is lost
    for name in ("scores.json", "config.json", "stages.json", "questions.json"):
        for text in ("", "{", "3"):
            (run / name).write_text(text)
            assert "## Losses" in report(run)
            assert f"{name} " in capsys.readouterr().err


def test_a_stage_that_diverged_is_named_first(run):
    assert "diverged" not in report(run)
    records = steps("encoder", 60, loss=lambda i: 3.0 if i < 30 else 1e14)
    with (run / "metrics.jsonl").open("a") as file:
        for record in records[30:]:
            file.write(json.dumps(record) + "\n")
    text = report(run)
    assert text.index("> **encoder diverged**: from step 31 to the end") < text.index("## Stages")
    assert "(1e+14, it had been about 0.2)" in text


def test_changes_of_the_config_are_shown(run):
    assert "## Changes" not in report(run)
    record = {"time": "noon", "at": {"vq": 40}, "changes": {"a.rate": [1.0, 0.5], "b": [1, 2]}}
    text = json.dumps(record | {"allowed": ["a.rate"]}) + '\n{"time": "cut sh'
    (run / "changes.jsonl").write_text(text)
    changed = section(report(run), "## Changes")
    assert "| noon | vq 40 | a.rate | 1.0 | 0.5 | yes |" in changed
    assert "| noon | vq 40 | b | 1 | 2 | no |" in changed


# Damage of every part. A report is written all the same, and whatever is said is a line a problem.

BYTES = {
    "empty": b"",
    "garbage": b"\xff\xfe{",
    "deep": b"[" * 10**5,
    "zeros": bytes(100),
    **{text: text.encode() for text in ("[]", "{}", "3", "null", '"x"', "[1, [2]]", "[{}]")},
    **{text: text.encode() for text in ('{"stages": [1]}', '{"stage3": []}', '{"prompts": 1}')},
}
VALUES = [None, [], {}, "x", "\ud800", -1, True, float("inf"), 10**400, [1, [2]], {"a": {"b": "c"}}]


def as_directory(path):
    path.unlink()
    path.mkdir()


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def as_link(path):
    path.unlink()
    path.symlink_to("nowhere")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


WAYS = {name: lambda path, data=data: path.write_bytes(data) for name, data in BYTES.items()}
WAYS |= {"directory": as_directory, "pipe": as_pipe, "link": as_link, "half": half}
WAYS |= {"missing": Path.unlink}
FILES = ["config.json", "stages.json", "metrics.jsonl", "scores.json", "questions.json"]
FILES += ["changes.jsonl", "samples/stage3_000060.json", "samples/stage3_000060.png"]
CHANGED = {"time": "noon", "at": {"vq": 40}, "changes": {"a": [1, 2]}, "allowed": ["a"]}


def with_value(value, path, new):
    """A copy of a JSON value with `new` in the place that `path` leads to; Ellipsis removes it."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = with_value(value[path[0]], path[1:], new)
    if copy[path[0]] is ...:
        del copy[path[0]]
    return copy


def places(value, path=()):
    """Every place in a JSON value; of siblings with the same form, the first two."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items)[: 2 if len(path) > 1 else None]:
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


@pytest.fixture
def quick(monkeypatch):
    """No curves: they take most of a report's time."""
    monkeypatch.setattr("janus_jax.run.report.run.draw_curves", lambda stages, path: None)


def read_scores(run):
    return ScoreStore(run).read()


def check_report(run, capfd):
    """One report, a line for each thing that is not in it, and scores that are sound or refused."""
    capfd.readouterr()
    write_report(run)
    text = (run / "report.md").read_text()
    assert text.startswith("# Run ")
    out, err = capfd.readouterr()
    assert out == "" and all(line.startswith("warning: ") for line in err.splitlines()), err
    try:
        scores = read_scores(run)
    except UserError as error:
        assert "\n" not in str(error) and "scores.json" in str(error)
    else:
        for entry in scores.values():
            entry.get("train_seconds", 0.0) + 1.0
    return text, err


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_any_file_may_be_damaged(run, quick, capfd, name, way):
    write(run / "changes.jsonl", CHANGED)
    before = check_report(run, capfd)
    assert before[1] == "" and "stage3_000060" in before[0] and "| noon |" in before[0]
    WAYS[way](run / name)
    text, err = check_report(run, capfd)
    assert text.count("\n## ") >= before[0].count("\n## ") - 3
    if name.endswith("60.png"):
        assert "stage3_000050.png" in text  # the one before
    # What is only missing, or cut short in its last line, is no damage.
    harmless = way in ("missing", "{}", "[]") or (name.endswith("l") and way in BYTES | {"half": 0})
    if not harmless and way not in BYTES:
        assert err.count("\n") == 1 and name in err


@pytest.mark.heavy
@pytest.mark.parametrize("name", [n for n in FILES if n.endswith(".json")])
def test_any_value_may_be_another(run, quick, capfd, name):
    value = json.loads((run / name).read_text())
    for place in places(value):
        for new in [*VALUES, ...][: None if place else -1]:
            write(run / name, with_value(value, place, new))
            text, err = check_report(run, capfd)
            assert err.count("\n") <= 2, (place, new, err)
            assert "## Stages" in text and "](samples/" in text, (place, new)


def test_any_value_of_a_line_may_be_another(run, quick, capfd):
    for name in ("metrics.jsonl", "changes.jsonl"):
        path = run / name
        lines = path.read_text().splitlines() if path.exists() else [json.dumps(CHANGED)] * 3
        for place in places(json.loads(lines[1])):
            for new in [*VALUES, ...][: None if place else -1]:
                bad = json.dumps(with_value(json.loads(lines[1]), place, new))
                path.write_text("\n".join([lines[0], bad, *lines[2:], ""]))
                err = check_report(run, capfd)[1]
                assert err.count("\n") <= 1, (name, place, new, err)
        path.write_text("\n".join([*lines, ""]))


@pytest.mark.parametrize("name", ["$\\frac$", "\ud800", "a|b", ""])
def test_stage_names_that_cannot_be_drawn_cost_the_curves_alone(run, capfd, name):
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text.replace('"vq"', json.dumps(name)))
    assert "| encoder |" in check_report(run, capfd)[0]


@pytest.mark.parametrize("loss", [float("inf"), float("nan"), -1.0, 0, 1e308, 2**62])
def test_any_number_is_a_loss(run, capfd, loss):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[3] = json.dumps(json.loads(lines[3]) | {"loss": loss})
    (run / "metrics.jsonl").write_text("\n".join(lines))
    assert "## Losses" in check_report(run, capfd)[0]


def test_where_curves_cannot_be_written_they_are_left_out(run, capfd):
    (run / "report_losses.png").mkdir()
    text, err = check_report(run, capfd)
    assert "## Losses" not in text and "report_losses.png" in err


@pytest.mark.parametrize("text", ['{"stage3": []}', '{"vq": {"train_seconds": "x"}}', "[]", "\xff"])
def test_scores_that_a_run_cannot_use_are_refused_with_advice(tmp_path, text):
    (tmp_path / "scores.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"scores\.json.*: move it away, and stages are scored again"
    ):
        read_scores(tmp_path)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_scores_that_cannot_be_read_need_not_be_moved_away(run, quick, monkeypatch, capfd, code):
    def fail(path, *args):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr("janus_jax.untrusted.open", fail, raising=False)
    with pytest.raises(UserError) as error:
        read_scores(run)
    text, path = str(error.value), str(run / "scores.json")
    assert text.startswith(f"cannot read {path}: {os.strerror(code)}; ")
    assert text.count(path) == text.count(os.strerror(code)) == 1
    assert "move it away" not in text and "Errno" not in text
    assert "mini-GenEval\n" not in check_report(run, capfd)[0]


def test_steps_that_were_left_out_are_named_and_count_in_no_mean(run):
    before = row(report(run), "stage3")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    left = {"loss": float("nan"), "grad_norm": float("nan"), "skipped": 1.0}
    at = next(i for i, line in enumerate(lines) if json.loads(line)["stage"] == "stage3")
    records = [json.loads(line) | {"skipped": 0.0} for line in lines]
    records[at + 7] |= left
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    text = report(run)
    assert "> **stage3**: 1 of 60 steps were left out" in text and "(step 8)." in text
    assert row(text, "stage3") == before and "nan" not in text and "skipped" not in text
