"""What a report is made of: the files of a run directory, without what is damaged in them.

A reader here returns what is sound, in the form that its docstring says. What is left out gets one line a
file on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus_jax import files
from janus_jax.errors import UserError, one_line
from janus_jax.processing import load_image
from janus_jax.run.report.curves import Steps
from janus_jax.run.scores import sound_scores
from janus_jax.training.metrics import HELD_OUT, is_number, read_records
from janus_jax.untrusted import is_file, printable, understanding

_ASKED = ("image", "question", "answer", "truth", "right")


def part(what: str | Path, default: Any, make: Callable[..., Any], *args: Any) -> Any:
    """`make(*args)`, or `default`, with a warning, if `what` holds or is something unexpected.

    Raises:
      UserError: the disk is full.
    """
    try:
        with understanding(what):
            return make(*args)
    except (UserError, OSError) as error:
        if files.is_disk_full(error):
            raise
        _warn(f"{error}" if str(what) in str(error) else f"{what}: {error}")
        return default


def read_config(run_dir: Path) -> dict[str, Any]:
    """config.json; its "eval", "stages", and every stage's "options" are dicts."""
    path = run_dir / "config.json"
    config = _json(path, dict)
    wrong = [k for k in ("eval", "stages") if not isinstance(config.get(k) or {}, dict)]
    config = {k: v for k, v in config.items() if k not in wrong}
    stages = {}
    for name, stage in (config.get("stages") or {}).items():
        sound = isinstance(stage, dict) and isinstance(stage.get("options") or {}, dict)
        if sound:
            stages[name] = stage
        else:
            wrong.append(f"stages.{name}")
    warn_of(path, wrong)
    return config | {"eval": config.get("eval") or {}, "stages": stages}


def read_order(run_dir: Path) -> list[str]:
    """stages.json."""
    path = run_dir / "stages.json"
    names = _json(path, list)
    warn_of(path, [i for i, name in enumerate(names) if not isinstance(name, str)])
    return [name for name in names if isinstance(name, str)]


def read_scores(run_dir: Path) -> dict[str, Any]:
    """scores.json, as `sound_scores` leaves it."""
    path = run_dir / "scores.json"
    scores, wrong = sound_scores(_json(path, dict))
    warn_of(path, wrong)
    return scores


Evaluations = list[dict[str, Any]]


def read_log(run_dir: Path) -> tuple[dict[str, Steps], dict[str, Evaluations]]:
    """What metrics.jsonl has of each stage.

    Returns:
      Stage -> its steps: every field but the stage's name is a number. And stage -> its losses of held-out data,
      by step: dicts of "step", "losses" and "sources", name -> number.
    """
    path = run_dir / "metrics.jsonl"
    stages: dict[str, Steps] = {}
    seen: dict[str, Evaluations] = {}
    wrong: set[str] = set()
    for record in part(path, [], read_records, path):
        if HELD_OUT in record:
            seen.setdefault(record["stage"], []).append(_evaluation(record))
            continue
        sound = {k: v for k, v in record.items() if k == "stage" or is_number(v)}
        wrong |= record.keys() - sound.keys()
        stages.setdefault(record["stage"], []).append(sound)
    warn_of(path, sorted(wrong))
    return stages, {name: sorted(found, key=lambda x: x["step"]) for name, found in seen.items()}


def _evaluation(record: dict[str, Any]) -> dict[str, Any]:
    found = record[HELD_OUT]
    sources = found.get("sources")
    numbers = lambda fields: {k: v for k, v in fields.items() if is_number(v)}
    return {
        "step": record["step"],
        "losses": numbers(found),
        "sources": numbers(sources if isinstance(sources, dict) else {}),
    }


def read_changes(run_dir: Path) -> list[dict[str, Any]]:
    """changes.jsonl: a dict of "time", "at" (a dict), "changes" (field -> [was, now]), "allowed" (a list)."""
    path = run_dir / "changes.jsonl"
    return part(path, [], files.read_json_lines, path, _is_change)


def read_questions(run_dir: Path) -> list[dict[str, Any]]:
    """questions.json: dicts with all that a question has."""
    path = run_dir / "questions.json"
    questions = _json(path, list)
    sound = [isinstance(q, dict) and q.keys() >= set(_ASKED) for q in questions]
    warn_of(path, [i for i, fine in enumerate(sound) if not fine])
    return [q for q, fine in zip(questions, sound, strict=True) if fine]


Samples = dict[str, dict[str, Any]]


def read_samples(run_dir: Path) -> Samples:
    """The objects in samples/*.json by the name of the file; "prompts", if there are some, are a list of texts."""
    found = {}
    for path in sorted((run_dir / "samples").glob("*.json")):
        record = found[path.name] = dict(_json(path, dict))
        prompts = record.get("prompts", [])
        if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
            warn_of(path, ["prompts"])
            del record["prompts"]
    return found


def picture_shape(path: Path) -> float | None:
    """Width of a picture by its height; None if it cannot be read."""
    picture = part(path, None, load_image, path)
    return picture and picture.width / picture.height


def _json(path: Path, kind: type) -> Any:
    """What a file holds; an empty `kind` if it is not there or damaged."""
    read = lambda: files.read_json(path, kind) if is_file(path) else kind()
    return part(path, kind(), read)


def _is_change(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and "time" in record
        and isinstance(record.get("at"), dict)
        and isinstance(record.get("changes"), dict)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in record["changes"].values())
        and isinstance(record.get("allowed"), list)
    )


def warn_of(path: Path, wrong: list[Any]) -> None:
    """Says which entries of a file are not in the report; nothing if all are."""
    if wrong:
        shown = ", ".join(printable(w, 60) for w in wrong[:5]) + (" ..." if len(wrong) > 5 else "")
        _warn(f"{path} is damaged, it holds values that make no sense (entry {shown})")


def _warn(problem: str) -> None:
    print(f"warning: not in the report: {one_line(ValueError(problem))}", file=sys.stderr)
