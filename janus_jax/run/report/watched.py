"""What a run draws and answers, step by step: the same prompts and questions with the weights of then."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from janus_jax.files import atomic_write
from janus_jax.processing import load_image
from janus_jax.run.report import files
from janus_jax.run.report.markdown import table
from janus_jax.untrusted import is_file, printable

STEPS, ROWS = 5, 12  # that are shown at most; the first and the last step always are
ANSWERED = 4  # steps of the table of answers
_TILE, _MARGIN, _NUMBER = (
    160,
    24,
    30,
)  # pixels: of a picture, of the line above, of the column with the number
_LETTERS = 300  # of a text
_PICTURE = re.compile(r"samples/[\w.-]+\.png")
_ARE = {
    "given": "as the config gives them",
    "held out": "of records that are held out of training",
    "trained on": "of records that it trains on",
    "of a benchmark": "of a benchmark",
}
Settings = Mapping[str, Any]  # `stages` of the config
_PLACEHOLDER = "<image_placeholder>"


def what_it_draws(
    run_dir: Path, samples: files.Samples, order: Sequence[str], settings: Settings
) -> str:
    """A section with a picture of each stage, report_drawn_STAGE.png, which is written; "" where nothing is drawn.

    A row is a prompt, a column a step, the first one the true picture where it is known. Of other prompts than
    those of the newest step nothing is shown.
    """
    parts = [
        files.part(run_dir / "samples", "", _drawn, run_dir, samples, s, settings) for s in order
    ]
    parts = [part for part in parts if part]
    if not parts:
        return ""
    note = (
        "Each prompt with the same seed every time: from column to column only the weights differ."
    )
    return "\n\n".join(["## What it draws", note, *parts])


def what_it_answers(
    run_dir: Path, samples: files.Samples, order: Sequence[str], settings: Settings
) -> str:
    """A section with a table of each stage; "" where nothing was asked."""
    parts = [
        files.part(run_dir / "samples", "", _answered, run_dir, samples, s, settings) for s in order
    ]
    parts = [part for part in parts if part]
    return "\n\n".join(["## What it answers", *parts]) if parts else ""


def _drawn(run_dir: Path, samples: files.Samples, stage: str, settings: Settings) -> str:
    directory, png = run_dir / "samples", io.BytesIO()
    grids = {
        step: (path, record)
        for step, record in _of_steps(samples, stage, ".json")
        if _has_layout(record) and is_file(path := directory / f"{stage}_{step:06d}.png")
    }
    if not grids:
        return ""
    _, newest = grids[max(grids)]
    asked = list(dict.fromkeys(newest["prompts"]))
    prompts = asked[:ROWS]
    # Chosen before any is read: there may be hundreds.
    steps = [step for step, (_, record) in grids.items() if set(prompts) & set(record["prompts"])]
    steps = _spread(steps, STEPS)
    columns = {_said(step, steps, stage, settings): _tiles(*grids[step]) for step in steps}
    true = samples.get(f"{stage}_true.json", {})
    if _has_layout(true) and set(prompts) & set(true["prompts"]):
        columns = {"true": _tiles(directory / f"{stage}_true.png", true), **columns}
    columns = {name: tiles for name, tiles in columns.items() if tiles}
    if not columns:
        return ""
    rows = [[tiles.get(prompt) for tiles in columns.values()] for prompt in prompts]
    _sheet(rows, list(columns)).save(png, format="PNG")
    picture = run_dir / f"report_drawn_{stage}.png"
    atomic_write(picture, png.getvalue())
    lines = "\n".join(f"{number}. {_text(prompt)}" for number, prompt in enumerate(prompts, 1))
    if more := len(asked) - len(prompts):
        lines += f"\n\nAnd {more} more in samples/."
    heading, shown = _heading(stage, "prompts", newest), ", ".join(columns)
    return f"{heading} Columns: {shown}.\n\n![{shown}]({picture.name})\n\n{lines}"


def _answered(run_dir: Path, samples: files.Samples, stage: str, settings: Settings) -> str:
    found: dict[int, dict[tuple[str, str], Mapping[str, Any]]] = {}
    newest: dict[str, Any] = {}
    for step, record in _of_steps(samples, stage, "_answers.json"):
        if "answers" not in record:  # it is damaged, which has been said
            continue
        entries = record["answers"]
        sound = isinstance(entries, list) and all(map(_is_answer, entries))
        if not sound:
            files.warn_of(run_dir / "samples" / f"{stage}_{step:06d}_answers.json", ["answers"])
            continue
        found[step] = {(e["image"], e["question"]): e for e in entries}
        newest = record
    if not found:
        return ""
    asked = found[max(found)]
    steps = _spread(sorted(s for s in found if asked.keys() & found[s].keys()), ANSWERED)
    has_truth = any(entry["truth"] for entry in asked.values())
    header = ["picture", "question", *(["true answer"] if has_truth else [])]
    header += [_said(step, steps, stage, settings) for step in steps]
    rows = []
    for key, entry in asked.items():
        # The picture stands beside the question, where else its place would be named.
        question = key[1].removeprefix(_PLACEHOLDER).lstrip()
        row = [f'<img src="{key[0]}" width="96">', _text(question)]
        row += [_text(entry["truth"] or "-")] if has_truth else []
        answers = (found[step].get(key) for step in steps)
        rows.append([*row, *("-" if a is None else _text(a["answer"]) for a in answers)])
    return f"{_heading(stage, 'questions', newest)}\n\n{table(header, rows)}"


def _heading(stage: str, kind: str, record: Mapping[str, Any]) -> str:
    """Which stage, and whose prompts or questions."""
    are = _ARE.get(str(record.get("are")))
    return f"Stage {_text(stage)}, {kind} {are}." if are else f"Stage {_text(stage)}."


def _of_steps(samples: files.Samples, stage: str, end: str) -> list[tuple[int, dict[str, Any]]]:
    """(step, object) of samples/STAGE_STEP and an end of the name, by step."""
    name = re.compile(rf"{re.escape(stage)}_([0-9]{{6,18}}){re.escape(end)}", re.ASCII)
    found = ((name.fullmatch(file), record) for file, record in samples.items())
    return sorted(((int(m[1]), record) for m, record in found if m), key=lambda x: x[0])


def _has_layout(record: Mapping[str, Any]) -> bool:
    """Whether the .json of a grid says how it is laid out; those of old runs do not."""
    columns = record.get("columns")
    return bool(record.get("prompts")) and type(columns) is int and columns > 0


def _tiles(path: Path, record: Mapping[str, Any]) -> dict[str, Image.Image]:
    """Prompt -> picture of a grid; nothing where that cannot be read."""
    sheet = files.part(path, None, load_image, path)
    if sheet is None:
        return {}
    prompts = record["prompts"]
    columns = min(record["columns"], len(prompts))
    side, tiles = sheet.width // columns, {}
    for i, prompt in enumerate(prompts):
        x, y = i % columns * side, i // columns * side
        tiles.setdefault(prompt, sheet.crop((x, y, x + side, y + side)))
    return tiles


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly, the first and the last among them."""
    if len(steps) <= most:
        return steps
    last = len(steps) - 1
    return [steps[round(i * last / (most - 1))] for i in range(most)]


def _said(step: int, steps: Sequence[int], stage: str, settings: Settings) -> str:
    if step == 0:
        return "before"
    ended = step == steps[-1] and step == (settings.get(stage) or {}).get("steps")
    return f"end, step {step}" if ended else f"step {step}"


def _sheet(rows: Sequence[Sequence[Image.Image | None]], columns: Sequence[str]) -> Image.Image:
    """The pictures, with what a column is above it and the number of a row beside it."""
    size = (_NUMBER + len(columns) * _TILE, _MARGIN + len(rows) * _TILE)
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(14)
    pen = ImageDraw.Draw(sheet)
    for column, text in enumerate(columns):
        pen.text((_NUMBER + column * _TILE + 3, 4), text, fill="black", font=font)
    for number, row in enumerate(rows):
        y = _MARGIN + number * _TILE
        pen.text((4, y + 4), str(number + 1), fill="black", font=font)
        for column, tile in enumerate(row):
            if tile is not None:
                tile = tile.resize((_TILE - 4, _TILE - 4), Image.Resampling.BICUBIC)
                sheet.paste(tile, (_NUMBER + column * _TILE, y))
    return sheet


def _is_answer(entry: Any) -> bool:
    """Whether an entry of STAGE_STEP_answers.json is one that can be shown."""
    return (
        isinstance(entry, dict)
        and all(isinstance(entry.get(k), str) for k in ("image", "question", "answer"))
        and isinstance(entry.get("truth", 0), str | None)
        and _PICTURE.fullmatch(entry["image"]) is not None
    )


def _text(value: Any) -> str:
    """A text of anyone in Markdown, without tags."""
    return html.escape(" ".join(printable(value, _LETTERS).split()), quote=False)
