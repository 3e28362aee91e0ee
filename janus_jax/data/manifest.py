"""A manifest: a YAML file that says which files are the data of a run.

    sources:
      - name: captions
        task: generation          # or understanding, text
        format: webdataset
        path: shards/*.tar        # relative to the manifest
        weight: 2
        stages: [stage1, stage2]  # all, if left out
        epochs: 3                 # at most; then others of the task have its turns
        shuffle: false            # in the order of the files

Every other key, such as `image_root`, `prompt`, `system` or `min_rating`, is an option of the source, which
says what it knows.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from janus_jax import untrusted
from janus_jax.errors import UserError, nearest, one_line

# Words of a manifest -> tasks of the mixture.
TASK_WORDS = {"understanding": "und", "text": "text", "generation": "gen"}
# The registered source that reads files; `format` and `path` are its options.
FILES = "files"
_REQUIRED = ("name", "task", "format", "path")
_OURS = ("weight", "stages", "task", "epochs", "shuffle")  # what a source does not see
_COMMON = (*_REQUIRED, *_OURS, "image_root", "prompt", "system", "min_rating")
_PATHS = ("path", "image_root")
_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
# gs://bucket/x, tfds:coco_captions: no paths of this disk.
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]+:", re.ASCII)


@dataclasses.dataclass(frozen=True)
class ManifestSource:
    """One source of a manifest.

    Attributes:
      name: unique in the manifest.
      task: "und", "text" or "gen".
      weight: relative to the others of its task.
      options: of the source "files", with "format" and "path".
      stages: that read it; None for all.
      order: "epochs" and "shuffle" where they are given (`training.SourceSpec`).
      where: the manifest and the source, for messages.
    """

    name: str
    task: str
    weight: float
    options: Mapping[str, Any]
    stages: tuple[str, ...] | None
    order: Mapping[str, Any]
    where: str

    def entry(self, task: str = "") -> dict[str, Any]:
        """The fields of a source in a config; stage 0 calls the task of pictures otherwise."""
        options = {k: list(v) if isinstance(v, list) else v for k, v in self.options.items()}
        fields = dict(name=FILES, task=task or self.task, weight=self.weight, options=options)
        return fields | self.order


def read_manifest(path: str | Path) -> tuple[ManifestSource, ...]:
    """The sources of a manifest file.

    Raises:
      UserError: it cannot be read, or is no manifest; one line that names the source.
    """
    path = Path(path)
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: a manifest has the key sources, with a list of them")
    for key in found:
        if key != "sources":
            raise UserError(f"{path}: no key {key!r}.{nearest(str(key), ('sources',))}")
    return parse_sources(found.get("sources"), Path(os.path.abspath(path)).parent, str(path))


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; a key that is there twice is an error.

    Raises:
      UserError: it cannot be read or parsed; one line that names the file.
    """
    text = untrusted.read_text(path)
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{place}: no YAML: {one_line(Exception(error.problem))}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no YAML: {one_line(error)[:200]}") from error


def parse_sources(entries: Any, base: Path, where: str) -> tuple[ManifestSource, ...]:
    """Sources of the structure that a manifest has.

    Args:
      entries: a list of mappings.
      base: directory that paths are relative to.
      where: what holds it, for messages.

    Raises:
      UserError: see `read_manifest`.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise UserError(f"{where}: sources must be a list of sources, and not empty")
    found: dict[str, ManifestSource] = {}
    for number, entry in enumerate(entries, 1):
        source = _source(entry, base, where, number)
        if source.name in found:
            raise UserError(f"{source.where}: two sources have this name")
        found[source.name] = source
    for word, task in TASK_WORDS.items():
        weights = [source.weight for source in found.values() if source.task == task]
        if weights and not any(weights):
            raise UserError(f"{where}: every source of the task {word} has the weight 0")
    return tuple(found.values())


def _source(entry: Any, base: Path, where: str, number: int) -> ManifestSource:
    place = f"{where}: source {number}"
    if not isinstance(entry, Mapping):
        raise UserError(
            f"{place} must have the keys {', '.join(_REQUIRED)}, not {untrusted.shown(entry)}"
        )
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{place}: name must be a word of letters, digits, - and _, not {untrusted.shown(name)}"
        )
    place = f"{where}: source {name}"
    for key in entry:
        if not isinstance(key, str):
            raise UserError(f"{place}: a key must be a word, not {untrusted.shown(key)}")
    for key in entry:
        # What is no key of ours is an option of the source, unless it looks like one of ours.
        wanted = [k for k in _REQUIRED if k not in entry] + list(_OURS)
        if key not in _COMMON and (meant := get_close_matches(key, wanted, n=1, cutoff=0.75)):
            raise UserError(f"{place}: no key {key!r}. Did you mean {meant[0]!r}?")
    for key in _REQUIRED:
        if key not in entry:
            raise UserError(f"{place}: {key} is missing")
    task = entry["task"]
    if not isinstance(task, str) or task not in TASK_WORDS:
        words = ", ".join(TASK_WORDS)
        raise UserError(
            f"{place}: task must be one of {words}, not {untrusted.shown(task)}.{nearest(str(task), TASK_WORDS)}"
        )
    if not isinstance(entry["format"], str):
        raise UserError(f"{place}: format must be a name, not {untrusted.shown(entry['format'])}")
    weight = entry.get("weight", 1.0)
    if (
        not isinstance(weight, int | float)
        or isinstance(weight, bool)
        or not 0 <= weight < math.inf
    ):
        raise UserError(
            f"{place}: weight must be a finite number >= 0, not {untrusted.shown(weight)}"
        )
    _check_order(entry, place)
    stages = entry.get("stages")
    if stages is not None:
        words = isinstance(stages, Sequence) and not isinstance(stages, str)
        if not words or not stages or not all(isinstance(s, str) for s in stages):
            raise UserError(
                f"{place}: stages must be a list of names, not {untrusted.shown(stages)}"
            )
        stages = tuple(stages)
    order = {k: entry[k] for k in ("epochs", "shuffle") if k in entry}
    options = {k: v for k, v in entry.items() if k != "name" and k not in _OURS}
    for key in _PATHS:
        if key in options:
            options[key] = _resolved(options[key], base, f"{place}: {key}")
    if isinstance(options.get("class_names"), str):  # a file; names themselves are a list
        options["class_names"] = _resolved(options["class_names"], base, f"{place}: class_names")
    return ManifestSource(name, TASK_WORDS[task], float(weight), options, stages, order, place)


def _check_order(entry: Mapping[str, Any], place: str) -> None:
    if not isinstance(entry.get("shuffle", True), bool):
        raise UserError(
            f"{place}: shuffle must be true or false, not {untrusted.shown(entry['shuffle'])}"
        )
    epochs = entry.get("epochs", 1)
    number = isinstance(epochs, int | float) and not isinstance(epochs, bool)
    if not (number and 0 < epochs < math.inf):
        raise UserError(
            f"{place}: epochs must be a finite number above 0, not {untrusted.shown(epochs)}"
        )


def _resolved(value: Any, base: Path, where: str) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str) and value:
        return [_resolved(part, base, where) for part in value]
    if not isinstance(value, str) or not value:
        raise UserError(f"{where} must be a path, or a list of them, not {untrusted.shown(value)}")
    if _ELSEWHERE.match(value):
        return value
    return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


class _Loader(yaml.SafeLoader):
    """Safe, and a key that is there twice is an error: the first one would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} is there twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
