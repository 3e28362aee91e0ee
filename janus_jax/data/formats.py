"""Formats by name, and the source that reads files in one of them.

A format is a container (`data.containers`: where records lie) and a layout (`data.layouts`: what a record means).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.data.containers import stores
from janus_jax.data.containers.base import MANY_OPEN, Container, Joined, Record
from janus_jax.data.containers.prepared import prepared_files, tokenizer_of
from janus_jax.data.examples import STAGE_0_TASKS, TASKS, Example, Rejected
from janus_jax.data.layouts import (
    LAYOUTS,
    LayoutOptions,
    class_value,
    is_id,
    layout_of,
    read_class_names,
)
from janus_jax.data.layouts.base import Draws, field, fields_of_template
from janus_jax.data.paths import find_paths, picture_roots
from janus_jax.errors import UserError, nearest

_PROBED = 20  # records that are looked at for fields that the options name
_DRAWN = ("gen", *STAGE_0_TASKS)
_ANY = (*TASKS, *STAGE_0_TASKS)
_NAMES_OF_TASKS = {"understanding": "und", "generation": "gen"}

# Options of layouts; those of containers are beside them below.
_CAPTIONED = ("image_field", "caption_field", "first_sentence", "prompt")
_SEEN = (*_CAPTIONED, "class_names", "min_rating", "layout")


@dataclasses.dataclass(frozen=True)
class Format:
    """What a name in a manifest stands for.

    Attributes:
      container: name of the container; "" chooses it by the suffix of the files.
      layout: name of the layout.
      tasks: that it has examples for.
      options: that it has beside path, image_root and system.
    """

    container: str
    layout: str
    tasks: tuple[str, ...] = _ANY
    options: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    "llava": Format("", "llava", ("und", "text"), ("image_field", "split")),
    "messages": Format("", "messages", _ANY, ("image_field", "split")),
    "webdataset": Format("tar", "auto", _ANY, _SEEN),
    "cauldron": Format("", "question_answer", ("und", "text"), ("min_rating", "split")),
    "parquet": Format("parquet", "auto", _ANY, (*_SEEN, "split")),
    "arrow": Format("parquet", "auto", _ANY, (*_SEEN, "split")),
    "csv": Format("table", "auto", _ANY, (*_SEEN, "delimiter")),
    "imagefolder": Format("folder", "auto", ("und", *_DRAWN), _SEEN),
    "generation_json": Format("", "generation_json", ("und", *_DRAWN), (*_CAPTIONED, "split")),
    "jsonl": Format("json_lines", "auto", _ANY, _SEEN),
    "text": Format("", "plain", ("text",), ("record", "caption_field", "split")),
    "array_record": Format("array_record", "auto", _ANY, _SEEN),
    "tfds": Format("tfds", "auto", _ANY, (*_SEEN, "name", "split")),
    "codes": Format("", "codes", ("gen",), ("caption_field", "prompt", "first_sentence", "split")),
    "prepared": Format("prepared", "prepared", TASKS),
}
FORMATS |= {
    **dict.fromkeys(("docmatix", "finevision"), FORMATS["cauldron"]),
    **dict.fromkeys(("sharegpt4o_image", "journeydb", "janus_pro_r1"), FORMATS["generation_json"]),
    "tsv": FORMATS["csv"],
    "json": FORMATS["jsonl"],
}

# Container -> (module, name of what opens one file).
_CONTAINERS = {
    "json_lines": ("json_lines", "JsonLines"),
    "tar": ("tar", "Tar"),
    "parquet": ("parquet", "Parquet"),
    "arrow": ("parquet", "Arrow"),
    "table": ("table", "Table"),
    "folder": ("folder", "open_folder"),
    "text": ("text", "TextFile"),
    **dict.fromkeys(("array_record", "prepared"), ("array_record", "ArrayRecord")),
}
_BY_SUFFIX = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json_lines"),
    **dict.fromkeys((".csv", ".tsv", ".tab"), "table"),
    **dict.fromkeys((".array_record", ".arrayrecord", ".riegeli"), "array_record"),
    **{".parquet": "parquet", ".arrow": "arrow", ".tar": "tar"},
    **dict.fromkeys((".txt", ".md"), "text"),
}


class FileSource:
    """A source of examples in files: `data.registry.SOURCES` has it as "files".

    Pictures stay encoded until they are needed. What is chosen at random for an example depends on the seed and
    its index only. It can be pickled and read by several threads.

    Args:
      task: of `data.examples.TASKS` or `STAGE_0_TASKS`.
      format: of `FORMATS`; "tfds:NAME" is the format tfds with this name.
      path: of files or directories: one or several, with `*`, `?`, `[...]`, `**` and `{a..b}`; for tfds the
        directory of datasets, or none.
      image_root: directory, or several, in which pictures that records name are; by default those of the files.
      prompt: see `layouts.base.LayoutOptions`, one or several.
      system: instead of the checkpoint's system prompt, where a record has none.
      seed: of what is chosen at random.
      **options: of the format.

    Raises:
      UserError: an unknown format or option, a task that the format has not, an impossible value, or no files;
        and once it is read: a file of another format, or without a record.
    """

    def __init__(
        self,
        task: str,
        format: str,
        path: str | Sequence[str] | None = None,
        image_root: str | Sequence[str] | None = None,
        prompt: str | Sequence[str] | None = None,
        system: str | None = None,
        seed: int = 0,
        **options: Any,
    ):
        name, spec = _find_format(format, options)
        task = _NAMES_OF_TASKS.get(task, task)
        if task not in spec.tasks:
            raise UserError(
                f"format {name!r} has no examples of task {task!r} ({', '.join(spec.tasks)})"
            )
        given = {"prompt": prompt, **options}
        given = {key: value for key, value in given.items() if value is not None}
        for option in given:
            if option not in spec.options:
                raise UserError(
                    f"format {name!r} has no option {option!r}.{nearest(option, spec.options)}"
                )
        self._format, self._spec, self._seed = name, spec, seed
        self._given = _checked(name, given)
        self._paths = _find(name, spec, task, path, self._given)
        self._options = LayoutOptions(
            task=task,
            roots=picture_roots(image_root, self._paths),
            prompt=_texts_of(prompt, "prompt"),
            system=_text_of(system, "system"),
            image_field=_texts_of(options.get("image_field"), "image_field"),
            caption_field=_texts_of(options.get("caption_field"), "caption_field"),
            first_sentence=self._given.get("first_sentence", 0.0),
            class_names=self._given.get("class_names"),
            min_rating=self._given.get("min_rating"),
        )
        self._layout = self._given.get("layout", spec.layout)
        self._container: Container | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._opened())

    def __getitem__(self, index: int) -> Example | Rejected:
        """The example at an index, or why there is none; pictures that cannot be decoded are found later."""
        record = self._opened()[int(index)]
        if isinstance(record, Rejected):
            return record
        draws = Draws(self._seed, int(index))
        return LAYOUTS[self._layout](record, self._options, draws)

    def describe(self, index: int) -> str:
        """Where the example is, such as "file, record 17"."""
        return self._opened().describe(int(index))

    @property
    def blocks(self) -> np.ndarray | None:
        """First indices of what is read in one piece, such as row groups of Parquet, ascending.

        An order that stays in one for a while reads much faster. None: any order is as fast.
        """
        return getattr(self._opened(), "blocks", None)

    @property
    def tokenizer(self) -> str:
        """Mark of the image tokenizer of its codes (`checkpoints.tokenizer_mark`); "" where none is known."""
        marks = {tokenizer_of(path) for path in self._paths if self._spec.container == "prepared"}
        return "" if not marks else marks.pop() if len(marks) == 1 else "several"

    @property
    def fingerprint(self) -> str:
        """Another one where other files are read, or files of another size or number of records."""
        sizes = [0 if os.path.isdir(path) else stores.size_of(path) for path in self._paths]
        names = [os.path.basename(path) for path in self._paths]
        known = repr((self._format, self._options.task, self._seed, names, sizes, len(self)))
        return hashlib.sha256(known.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _opened(self) -> Container:
        with self._lock:
            if self._container is None:
                container = self._open()
                self._probe(container)
                self._container = container
            return self._container

    def _open(self) -> Container:
        if self._spec.container == "tfds":
            from janus_jax.data.containers.tfds import Tfds

            path = self._paths[0] if self._paths else None
            name, split = self._given.get("name", ""), self._given.get("split", "train")
            return Tfds(name, path, split)
        kinds = {_container_of(path, self._spec.container) for path in self._paths}
        if len(kinds) > 1:
            raise UserError(
                f"format {self._format!r}: the files are of different kinds "
                f"({', '.join(sorted(kinds))}): make a source of each"
            )
        open_one = _opener(kinds.pop())
        at_most = getattr(open_one, "OPEN", MANY_OPEN)
        container_options = {
            option: self._given[option]
            for option in ("delimiter", "record")
            if option in self._given
        }
        if "delimiter" not in container_options and self._format == "tsv":
            container_options["delimiter"] = "\t"
        if hasattr(open_one, "shared"):  # what its files have in common
            container_options["groups"] = open_one.shared()
        if container_options:
            open_one = functools.partial(open_one, **container_options)
        return Joined(self._paths, open_one, at_most)

    def _probe(self, container: Container) -> None:
        """Raises UserError if the first records show that an option names what no record has."""
        found = [container[i] for i in range(min(len(container), _PROBED))]
        records = [record for record in found if not isinstance(record, Rejected)]
        if not records:
            return
        where = container.describe(0)
        for option in ("image_field", "caption_field"):
            for name in getattr(self._options, option):
                _check_field(name, records, f"{option}, {where}")
        for template in self._options.prompt:
            for name in set(fields_of_template(template)) - {"caption", "class"}:
                _check_field(name, records, f"prompt {template!r}, {where}")
        layout = self._layout
        if layout == "auto":
            layout = layout_of(records[0], self._options)
        if layout == "classes" and not self._options.class_names:
            found = class_value(records[0], self._options)
            if is_id(found):
                raise UserError(
                    f"{where}: its class is {found!r}, which says nothing: give class_names, a file or list of "
                    "the names of all classes, or caption_field, the field of the words"
                )


def _find_format(name: str, options: dict[str, Any]) -> tuple[str, Format]:
    """The format of a name; of "tfds:NAME", NAME becomes the option."""
    if isinstance(name, str) and name.startswith("tfds:"):
        if "name" in options:
            raise UserError(f"format {name!r} says the name already: leave out the option name")
        options["name"] = name[5:]
        name = "tfds"
    if not isinstance(name, str) or name not in FORMATS:
        raise UserError(
            f"no format {untrusted.shown(name)} ({', '.join(FORMATS)}).{nearest(str(name), FORMATS)}"
        )
    return name, FORMATS[name]


def _find(name: str, spec: Format, task: str, path: Any, options: Mapping[str, Any]) -> list[str]:
    if spec.container == "tfds":
        if path is not None and not isinstance(path, str):
            raise UserError("path of format 'tfds' must be one directory")
        if path is None and not options.get("name"):
            raise UserError("format 'tfds' needs a name, such as tfds:coco_captions, or a path")
        return [] if path is None else [os.path.expanduser(path)]
    if path is None:
        raise UserError(f"format {name!r} needs a path")
    if spec.container == "prepared":
        folders = find_paths(path, True, (), None)
        return [file for folder in folders for file in prepared_files(folder, task)]
    suffixes = tuple(s for s, kind in _BY_SUFFIX.items() if kind == spec.container)
    if spec.container == "parquet":
        suffixes = (".parquet", ".arrow")
    if not suffixes:
        suffixes = (".txt",) if name == "text" else tuple(_BY_SUFFIX)
    return find_paths(path, spec.container == "folder", suffixes, options.get("split"))


def _container_of(path: str, container: str) -> str:
    """By the suffix, where the format leaves it open or has two containers."""
    suffix = os.path.splitext(path)[1].lower()
    if container == "parquet":
        return "arrow" if suffix == ".arrow" else "parquet"
    return container or _BY_SUFFIX.get(suffix, "json_lines")


def _opener(container: str) -> Callable[..., Container]:
    import importlib

    module, name = _CONTAINERS[container]
    return getattr(importlib.import_module(f"janus_jax.data.containers.{module}"), name)


def _check_field(name: str, records: Sequence[Record], where: str) -> None:
    if all(field(record, name) is None for record in records):
        known = {key for record in records for key in record if not key.startswith("__")}
        raise UserError(
            f"{where}: no field {name!r} in the first records ({', '.join(sorted(known)[:20])})."
            f"{nearest(name, known)}"
        )


def _checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with values that are possible; `class_names` is read."""
    checked = dict(given)
    share = given.get("first_sentence", 0.0)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UserError(f"first_sentence must be a probability from 0 to 1, not {share!r}")
    rating = given.get("min_rating")
    limits = list(rating.values()) if isinstance(rating, Mapping) else [rating]
    if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in limits):
        raise UserError(
            f"min_rating must be a number, or one for each kind of rating, not {rating!r}"
        )
    if "layout" in given and given["layout"] not in LAYOUTS:
        raise UserError(
            f"no layout {given['layout']!r} ({', '.join(LAYOUTS)}).{nearest(str(given['layout']), LAYOUTS)}"
        )
    if "record" in given:
        from janus_jax.data.containers.text import RECORDS

        if given["record"] not in RECORDS:
            raise UserError(f"record must be one of {', '.join(RECORDS)}, not {given['record']!r}")
    delimiter = given.get("delimiter", ",")
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise UserError(f"delimiter must be one character, not {delimiter!r}")
    for option in ("name", "split"):
        if option in given and not isinstance(given[option], str):
            raise UserError(f"{option} must be a text, not {given[option]!r}")
    if "class_names" in given:
        checked["class_names"] = read_class_names(given["class_names"])
    return checked


def _text_of(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UserError(f"{name} must be a text, not {untrusted.shown(value)}")
    return value


def _texts_of(value: Any, name: str) -> tuple[str, ...]:
    values = (value,) if isinstance(value, str) else value
    if values is None:
        return ()
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise UserError(f"{name} must be a text or a list of texts, not {untrusted.shown(value)}")
    return tuple(values)
