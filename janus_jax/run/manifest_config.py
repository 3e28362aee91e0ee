"""The sources of a manifest in the place of those that the stages of a config have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from janus_jax.data import TASKS, make_source
from janus_jax.data.manifest import (
    FILES,
    TASK_WORDS,
    ManifestSource,
    parse_sources,
    read_manifest,
)
from janus_jax.errors import UserError, nearest
from janus_jax.training.stages import OBJECTIVE_TASKS

_WORDS = {task: word for word, task in TASK_WORDS.items()}


def with_manifest(config: ConfigDict) -> ConfigDict:
    """A config whose stages read what its manifest, or `data.sources`, names.

    The content of the manifest becomes that of the config, so a run knows it, and a change of it is a change
    of the run. A stage takes the sources of the tasks that it has a ratio for. One that this process does not
    run, and that the manifest has not everything for, keeps its own.

    Args:
      config: of the run; stays as it is.

    Raises:
      UserError: no such file, or one line about what is wrong with a source.
    """
    path, inline = config.data.get("manifest", ""), config.data.get("sources", ())
    if not path and not inline:
        return config
    if path and inline:
        raise UserError("config.data has both a manifest and sources: give one of them")
    if path:
        found = read_manifest(path)
    else:
        entries = [e.to_dict() if isinstance(e, ConfigDict) else e for e in inline]
        found = parse_sources(entries, Path.cwd(), "config.data")
    for source in found:
        make_source(FILES, source.task, source.options, where=source.where)
    # What else is wrong with the config has messages of its own.
    names = [
        name
        for name in config.stage_order
        if {"objective", "ratio"} <= set(config.stages.get(name, ()))
    ]
    for source in found:
        for name in source.stages or ():
            if name not in names:
                raise UserError(f"{source.where}: stages: no stage {name!r}.{nearest(name, names)}")
    config = ConfigDict(config.copy_and_resolve_references())
    for name in names:
        stage, runs = config.stages[name], config.only_stage in ("", name)
        sources = _sources(found, name, stage, runs, path or "config.data.sources")
        if sources:
            with stage.unlocked():
                stage.sources = ConfigDict(sources)
    return config


def _sources(
    found: Sequence[ManifestSource], name: str, stage: ConfigDict, runs: bool, where: str
) -> dict[str, Any]:
    """label -> fields of the sources of one stage; {} for one that keeps its own."""
    special = OBJECTIVE_TASKS.get(stage.objective, "")
    needed = ["gen"] if special else [t for t, s in zip(TASKS, stage.ratio, strict=False) if s > 0]
    usable = [s for s in found if s.stages is None or name in s.stages]
    for task in needed:
        if not any(s.task == task and s.weight > 0 for s in usable):
            if not runs:
                return {}
            reads = "trains on pictures" if special else "has a ratio for it"
            raise UserError(
                f"{where}: no source with the task {_WORDS[task]}, and {name} {reads}: add one, or "
                + (
                    "leave the stage out of config.stage_order"
                    if special
                    else f"set config.stages.{name}.ratio"
                )
            )
    return {s.name: s.entry(special) for s in usable if s.task in needed}
