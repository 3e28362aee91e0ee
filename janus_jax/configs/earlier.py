"""Configs of earlier versions: where their fields went, and their config.json in today's layout."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from janus_jax.errors import UserError

# Pattern of a field's name -> where it went.
_MOVED = {
    r"world(\.(?P<field>\w+))?": (
        "the options of each source and benchmark: config.stages.STAGE.sources.LABEL.options.world"
        "{.field}, config.eval.benchmarks[N].world{.field}, and config.builtin_tokenizer.objects"
    ),
    r"stages\.(?P<stage>\w+)\.scenes\.condition_dropout": (
        "config.stages.{stage}.condition_dropout"
    ),
    r"stages\.(?P<stage>\w+)\.scenes\.tasks(\.(?P<field>\w+))?": (
        "config.stages.{stage}.sources.LABEL.options.kinds{.field}"
    ),
    r"stages\.(?P<stage>\w+)\.scenes(\.(?P<field>[\w.]+))?": (
        "config.stages.{stage}.sources.LABEL.options{.field}"
    ),
    r"eval\.(?P<field>prompts|cfg_weights)": "config.eval.benchmarks[N].{field} of emoji/geneval",
    r"eval\.(?P<field>questions)": "config.eval.benchmarks[N].{field} of emoji/questions",
}
# Options of the built-in scenes that each task reads.
_READS = {
    "und": ("detailed", "describe", "questions", "yes_no"),
    "text": ("detailed", "describe", "questions", "yes_no", "chat", "drawings"),
    "gen": ("detailed",),
    "pictures": (),
    "pairs": (),
}
_STAGE_0 = {"vq": ("pictures",), "siglip": ("pairs",)}
_ADDED_LATER = {"questions": 1, "yes_no": 0.0, "chat": False, "drawings": 0.3, "detailed": 0.0}


def where_it_went(field: str) -> str:
    """One line about a field of an earlier version, by its dotted name; "" for any other name."""
    for pattern, place in _MOVED.items():
        if match := re.fullmatch(pattern, field):
            found = match.groupdict()
            last = f".{found['field']}" if found.get("field") else ""
            place = place.replace("{.field}", last).format_map(found)
            return f"config.{field} has moved to {place}"
    return ""


def check_moved(config: ConfigDict) -> None:
    """Raises UserError for a config, such as one's own, that still sets a field that has moved."""
    names = [name for name in ("world",) if name in config]
    names += [f"eval.{n}" for n in ("prompts", "questions", "cfg_weights") if n in config.eval]
    names += [f"stages.{n}.scenes" for n, stage in config.stages.items() if "scenes" in stage]
    if names:
        raise UserError(where_it_went(names[0]))


def upgraded(fields: dict[str, Any]) -> dict[str, Any]:
    """The config.json of a run in today's layout: the same data, scores and words.

    What is not of the earlier layout, or damaged, is returned as it is.
    """
    world, stages = fields.get("world"), fields.get("stages")
    if not isinstance(world, dict) or "objects" not in world or not isinstance(stages, dict):
        return fields
    if not all(isinstance(s, dict) and _is_old(s.get("scenes")) for s in stages.values()):
        return fields
    new = copy.deepcopy(fields)
    del new["world"]
    new["builtin_tokenizer"] = {"name": "emoji", "objects": world["objects"]}
    for stage in new["stages"].values():
        scenes = _ADDED_LATER | stage.pop("scenes")
        stage["condition_dropout"] = scenes.get("condition_dropout", 0.1)
        stage["sources"] = {
            task: _source(task, scenes, world) for task in _tasks(stage.get("objective", ""))
        }
    if isinstance(new.get("data"), dict):
        new["data"].setdefault("too_long", "error")
    if isinstance(new.get("eval"), dict):
        new["eval"] = _benchmarks(new["eval"], world)
    return new


def _is_old(scenes: Any) -> bool:
    return isinstance(scenes, dict) and isinstance(scenes.get("tasks"), dict)


def _tasks(objective: str) -> tuple[str, ...]:
    return _STAGE_0.get(objective, ("und", "text", "gen"))


def _source(task: str, scenes: Mapping[str, Any], world: Mapping[str, Any]) -> dict[str, Any]:
    options = {"world": dict(world), "kinds": dict(scenes["tasks"])}
    options |= {name: scenes[name] for name in _READS[task] if name in scenes}
    return {"name": "emoji", "task": task, "weight": 1.0, "options": options}


def _benchmarks(settings: Mapping[str, Any], world: Mapping[str, Any]) -> dict[str, Any]:
    """`eval` as it is now: the counts and guidance of the earlier version are those of benchmarks."""
    kept = {k: v for k, v in settings.items() if k not in ("prompts", "questions", "cfg_weights")}
    prompts, questions = settings.get("prompts", 0), settings.get("questions", 0)
    weights = list(settings.get("cfg_weights", []))
    weights = weights if len(weights) > 1 else []  # of a single one nothing was chosen
    found = []
    if prompts:
        found = [
            {"name": "emoji/geneval", "prompts": prompts, "cfg_weights": weights},
            {"name": "emoji/questions", "questions": questions},
            {"name": "emoji/judge", "pictures": prompts},
        ]
    return kept | {"benchmarks": [benchmark | {"world": dict(world)} for benchmark in found]}
