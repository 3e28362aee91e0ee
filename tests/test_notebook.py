"""The notebook: both its forms say the same, and it runs from end to end on a tiny checkpoint."""

import json
import re
import shutil
from pathlib import Path

import pytest

from janus_jax.processing import build_word_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT, PAIRED = (ROOT / "notebooks" / f"janus_pro_colab.{kind}" for kind in ("py", "ipynb"))
GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"


def cells_of_text():
    """[(is markdown, source)] of the percent format."""
    body = TEXT.read_text().split("\n# ---\n", 1)[1]
    cells = []
    for part in re.split(r"^# %%", body, flags=re.M)[1:]:
        head, _, source = part.partition("\n")
        markdown = "[markdown]" in head
        lines = [re.sub(r"^# ?", "", line) for line in source.splitlines()]
        kept = lines if markdown else [re.sub(r"^# (?=[!%])", "", x) for x in source.splitlines()]
        cells.append((markdown, "\n".join(kept).strip()))
    return cells


def test_both_forms_have_the_same_cells():
    notebook = json.loads(PAIRED.read_text())
    cells = [(c["cell_type"] == "markdown", "".join(c["source"])) for c in notebook["cells"]]
    assert cells == cells_of_text()
    assert all(not c.get("outputs") for c in notebook["cells"])  # nothing of anybody's machine


@pytest.mark.slow
def test_it_runs_on_a_tiny_checkpoint(tmp_path, monkeypatch, capsys):
    source = tmp_path / "official"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, source / name)
    tokenizer = build_word_tokenizer("a red cat what is it ? and now".split())
    (source / "tokenizer.json").write_text(tokenizer.to_json())
    monkeypatch.chdir(ROOT)
    for name, value in {
        "SRC": source,
        "MODEL": tmp_path / "model",
        "EXPECTED": GOLDEN / "expected.npz",
        "PROMPT": "a red cat",
        "QUESTIONS": "what is it?|and now?",
        "BIG": source,
    }.items():
        monkeypatch.setenv(f"JANUS_{name}", str(value))
    names = {"__name__": "notebook"}
    for markdown, text in cells_of_text():
        if not markdown and not text.startswith("!"):
            exec(compile(text, str(TEXT), "exec"), names)
    printed = capsys.readouterr().out
    assert "all 12 recorded keys agree (float32)" in printed
    assert len(names["pictures"]) == 4 and names["sheet"].size == (128, 128)
    assert len(names["answers"]) == 2 and "ask: device" in printed
    assert "int8 cache and weights" in printed and len(names["big_pictures"]) == 1
