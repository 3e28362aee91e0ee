"""The notebooks: both forms of each say the same, and they run from end to end on tiny checkpoints."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.data import make_source
from janus_jax.inference import Janus
from janus_jax.processing import build_word_tokenizer

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SAMPLING, TUNING = (NOTEBOOKS / f"{name}.py" for name in ("janus_pro_colab", "finetune_colab"))
GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"


def cells_of(path):
    """[(is markdown, source)] of the percent format."""
    body = path.read_text().split("\n# ---\n", 1)[1]
    cells = []
    for part in re.split(r"^# %%", body, flags=re.M)[1:]:
        head, _, source = part.partition("\n")
        markdown = "[markdown]" in head
        lines = [re.sub(r"^# ?", "", line) for line in source.splitlines()]
        kept = lines if markdown else [re.sub(r"^# (?=[!%])", "", x) for x in source.splitlines()]
        cells.append((markdown, "\n".join(kept).strip()))
    return cells


def run_cells(path, monkeypatch, values, until=None):
    """Runs the code, but for shell lines, as with JANUS_NAME set to `values`; returns its names.

    With `until`, up to the first cell that has this text.
    """
    monkeypatch.chdir(ROOT)
    for name, value in values.items():
        monkeypatch.setenv(f"JANUS_{name}", str(value))
    names = {"__name__": "notebook"}
    for markdown, text in cells_of(path):
        if not markdown and not text.startswith("!"):
            exec(compile(text, str(path), "exec"), names)
            if until and until in text:
                break
    return names


def test_every_notebook_has_both_forms():
    names = {path.stem for path in NOTEBOOKS.iterdir()}
    assert names == {SAMPLING.stem, TUNING.stem}


@pytest.mark.parametrize("path", [SAMPLING, TUNING], ids=lambda path: path.stem)
def test_both_forms_have_the_same_cells(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text())
    cells = [(c["cell_type"] == "markdown", "".join(c["source"])) for c in notebook["cells"]]
    assert cells == cells_of(path)
    assert all(not c.get("outputs") for c in notebook["cells"])  # nothing of anybody's machine
    assert len({c["id"] for c in notebook["cells"]}) == len(cells)


@pytest.mark.slow
def test_sampling_runs_on_a_tiny_checkpoint(tmp_path, monkeypatch, capsys):
    source = tmp_path / "official"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, source / name)
    tokenizer = build_word_tokenizer("a red cat what is it ? and now".split())
    (source / "tokenizer.json").write_text(tokenizer.to_json())
    values = {
        "SRC": source,
        "MODEL": tmp_path / "model",
        "EXPECTED": GOLDEN / "expected.npz",
        "PROMPT": "a red cat",
        "QUESTIONS": "what is it?|and now?",
        "BIG": source,
    }
    names = run_cells(SAMPLING, monkeypatch, values)
    printed = capsys.readouterr().out
    assert "all 12 recorded keys agree (float32)" in printed
    assert len(names["pictures"]) == 4 and names["sheet"].size == (128, 128)
    assert len(names["answers"]) == 2 and "ask: device" in printed
    assert "int8 cache and weights" in printed and len(names["big_pictures"]) == 1


def tuning_values(model, place):
    return {
        "MODEL": model,
        "PICTURES": place / "pictures",
        "MANIFEST": place / "pictures.json",
        "LOOK": place / "look",
        "RUN": place / "run",
        "MERGED": place / "merged",
        "EXPORT": "janus_jax",  # PyTorch's formats have no place for the tiny image tokenizer
        "RECIPE": "finetune:lora_smoke",
        "STEPS": 12,
        "FLAGS": "--config.stages.finetune.learning_rate=1e-2 --config.stages.finetune.accumulate=1",
        "PROMPTS": "a red owl with a blue pig",
        "QUESTION": "describe the picture.",
        "QUESTIONS": "describe the picture.|what is it?",
    }


@pytest.mark.heavy
@pytest.mark.subprocess
def test_tuning_runs_on_the_smoke_model(smoke_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = run_cells(TUNING, monkeypatch, tuning_values(smoke_model, tmp_path))
    printed = capsys.readouterr().out
    # Twenty pictures were made, all of them are used, and the page shows them.
    kinds = [path.suffix for path in (tmp_path / "pictures").iterdir()]
    assert kinds.count(".png") == kinds.count(".txt") == 20
    assert (tmp_path / "look" / "rejected.jsonl").read_text() == ""
    shown = names["page"]._repr_html_()
    assert shown.startswith("<iframe sandbox srcdoc=") and "&lt;html" in shown
    assert "describe the picture." in shown
    # Trained: the loss of what is held out falls.
    losses = [losses["loss"] for losses in names["seen"].values()]
    assert list(names["seen"]) == [0, 2, 4, 6, 8, 10, 12] and losses[-1] < losses[0] - 0.3
    assert f"step 12: loss {losses[-1]:.3f}" in printed and names["curve"].width > 300
    # Before and after: four held-out pictures, and a prompt of one's own.
    assert len(names["examples"]) == 4 and len(names["prompts"]) == 5
    side = names["before"][0].size[0]
    assert names["sheet"].size == (5 * side, 5 * side)
    arrays = {name: np.stack(names[name]) for name in ("before", "after")}
    assert (arrays["before"] != arrays["after"]).any(axis=(1, 2, 3)).all()
    sheet = np.asarray(names["sheet"]).reshape(5, side, 5, side, 3).swapaxes(1, 2)
    np.testing.assert_array_equal(sheet[:, 1:3].reshape(arrays["before"].shape), arrays["before"])
    np.testing.assert_array_equal(sheet[:, 3:].reshape(arrays["after"].shape), arrays["after"])
    assert (sheet[4, 0] == 255).all() and (sheet[0, 0] != 255).any()
    assert len(names["said_after"]) == 8 and names["said_after"] != names["said_before"]
    assert printed.count("  before: ") == printed.count("  after:  ") == 8
    # What is taken away draws the same.
    merged = Janus.load(tmp_path / "merged").generate(names["prompts"][0], n=2, seed=0)
    np.testing.assert_array_equal(np.stack(merged), arrays["after"][:2])
    with zipfile.ZipFile(names["archive"]) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())


def test_tuning_takes_a_zip_of_pictures(smoke_model, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        for name in ("mine/1.txt", "__MACOSX/mine/._1.png", "../outside.txt"):
            archive.writestr(name, "a red owl")
        Image.new("RGB", (8, 8), "red").save(tmp_path / "1.png")
        archive.write(tmp_path / "1.png", "mine/1.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    values = tuning_values(smoke_model, tmp_path)
    names = run_cells(TUNING, monkeypatch, values, until="MANIFEST.write_text")
    unpacked = {path.name for path in tmp_path.iterdir()}
    assert "pictures" in unpacked and "outside.txt" not in unpacked
    source = make_source("files", "gen", names["files"])
    assert len(source) == 1 and source[0].prompt == "a red owl"
