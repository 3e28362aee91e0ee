"""Model directories: everything that sampling needs, in one place.

    model/                              run/  (written by training)
      janus.json                          janus.json
      tokenizer.json                      tokenizer.json
      checksums.json                      checksums.json            of the two
      params/                             stages.json               stage names, in order
                                          checkpoints/STAGE/STEP/params/

`janus.json` holds {"format": "janus_jax", "version": 1, "config": JanusConfig, "processor": {...},
"origin": {...}}. Both kinds load with `load_model`; what is not finished is never seen.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from janus_jax import gcs
from janus_jax.adapters import plain
from janus_jax.checkpoints import checksums, storage
from janus_jax.checkpoints.lazy import read_lazily
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.files import DamagedError, atomic_write, read_json, read_text
from janus_jax.models import JanusModel, init_params, unstack_layers
from janus_jax.places import checked
from janus_jax.untrusted import JSON_BYTES, check_tree, is_file, printable, shown, understanding

METADATA = "janus.json"
TOKENIZER = "tokenizer.json"
PARAMS = "params"
STAGES = "stages.json"
CHECKPOINTS = "checkpoints"
FORMAT, VERSION = "janus_jax", 1
EXTRAS = "aux"  # parameters that only training uses
_PARTS = {METADATA, TOKENIZER, PARAMS, checksums.NAME}
_LEFT = re.compile(r"\.(janus|tokenizer|checksums)\.json\.\d+\.tmp")  # by a write that was killed


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """What `load_model` found.

    Attributes:
      config: the architecture, in the layer layout of `params`.
      processor: fields of the processor config.
      tokenizer_json: text of the tokenizer file.
      params: nested dicts of host numpy arrays, in the dtype they were saved in; or of `LazyArray`s.
      origin: where the weights come from; of a training run also "stage" and "step".
      check: to be called when lazy arrays have been loaded: raises a UserError for what was found in them.
    """

    config: JanusConfig
    processor: dict[str, Any]
    tokenizer_json: str
    params: dict[str, Any]
    origin: dict[str, Any]
    check: Callable[[], None] = lambda: None


def write_metadata(
    directory: str | Path,
    config: JanusConfig,
    processor: Mapping[str, Any],
    tokenizer_json: str,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Writes `janus.json`, `tokenizer.json` and their checksums; makes the directory if needed.

    Of several processes only the first one writes.

    Raises:
      UserError: the disk is full.
    """
    if jax.process_index() != 0:
        return
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.to_dict(),
        "processor": dict(processor),
        "origin": dict(origin or {}),
    }
    atomic_write(directory / TOKENIZER, tokenizer_json)
    atomic_write(directory / METADATA, _metadata_text(metadata) + "\n")
    checksums.write(directory, (METADATA, TOKENIZER))


def save_model(
    directory: str | Path,
    config: JanusConfig,
    processor: Mapping[str, Any],
    tokenizer_json: str,
    params: Mapping[str, Any],
    origin: Mapping[str, Any] | None = None,
    save: Callable[[Path, Any], None] | None = None,
) -> None:
    """Writes a model directory next to its place and renames it, so no half of one ever loads.

    An earlier model in the same place is replaced, if nothing else is there. For jobs of one process.

    Args:
      directory: the new model directory.
      config: the architecture; `params` must be its tree (either layer layout, as the config says).
      processor: fields of the processor config, JSON-ready.
      tokenizer_json: text of the tokenizer file.
      params: parameters; a top-level "aux" is left out.
      origin: free JSON-ready facts about where the weights come from.
      save: writes the parameters; `streaming.save_lazily` where they are not in memory. The default
        writes arrays.

    Raises:
      UserError: the place is taken by something else, `params` do not fit, or the disk is full.
    """
    directory = Path(os.path.abspath(directory))
    _check_free(directory)
    params = {key: value for key, value in params.items() if key != EXTRAS}
    _check_fit(params, config, "the parameters to save")
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with storage.writing(directory, "nothing there was changed", params):
            write_metadata(temporary, config, processor, tokenizer_json, origin)
            (save or storage.save_tree)(temporary / PARAMS, params)
            checksums.write(temporary, (METADATA, TOKENIZER, PARAMS))
        _replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_model(
    directory: str | Path,
    step: int | None = None,
    stage: str | None = None,
    verify: bool = True,
    lazily: bool = False,
) -> LoadedModel:
    """Loads a model directory or a training run directory.

    Args:
      directory: what `save_model` wrote, or the directory (or gs://bucket/run) of a training run.
      step: of a run, which checkpoint; by default the newest whole one of its last stage that has
        one: damaged ones are passed over with a line on stderr.
      stage: of a run, which stage; by default the last one.
      verify: compare the files with the checksums that were written with them.
      lazily: parameters are `LazyArray`s, to be loaded one at a time.

    Raises:
      UserError: the directory is missing, empty, of another kind or damaged; the run has no
        finished checkpoint, stage or step like that; the parameters do not fit the config.
    """
    directory = checked(directory, "the model")
    metadata = _read_metadata(directory)
    config = JanusConfig.from_dict(metadata["config"])
    tokenizer = directory / TOKENIZER
    if not is_file(tokenizer):
        raise UserError(f"{directory} has no {TOKENIZER}; copy it from the model it was made of")
    tokenizer_json = read_text(tokenizer)
    origin = dict(metadata.get("origin", {}))
    if (directory / PARAMS).is_dir():
        if step is not None or stage is not None:
            raise UserError(
                f"{directory} is a model, not a training run: it has no stages or steps"
            )
        try:
            params = _read_params(directory, config, verify, lazily=lazily)
        except DamagedError as error:
            raise DamagedError(f"{error}; copy or convert the model again") from error
    else:
        stage, step, params = _read_step(directory, config, step, stage, verify, lazily)
        origin.update(stage=stage, step=step)
    if verify:
        _warn_of_edits(directory)
    return LoadedModel(config, metadata["processor"], tokenizer_json, params, origin)


def _read_params(
    directory: Path,
    config: JanusConfig,
    verify: bool,
    step: int | None = None,
    lazily: bool = False,
) -> dict[str, Any]:
    path = directory / PARAMS
    _check_files(path)
    if verify and (reason := checksums.damage(directory, PARAMS, step)):
        raise DamagedError(f"{directory} is damaged: {reason}")
    with understanding(path):
        shapes = storage.read_shapes(path)
        used = plain({k: v for k, v in shapes.items() if k != EXTRAS})
        _check_fit(used, config, str(path))
        for name, leaf in storage.flatten(used).items():
            if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
                raise DamagedError(f"{path} is damaged: {name} has dtype {leaf.dtype}")
    params = (read_lazily if lazily else storage.read_tree)(path, shapes)
    params.pop(EXTRAS, None)
    return plain(params)


def _read_step(
    directory: Path,
    config: JanusConfig,
    step: int | None,
    stage: str | None,
    verify: bool,
    lazily: bool = False,
) -> tuple[str, int, dict[str, Any]]:
    """(stage, step, parameters) of the step that was asked for, or of the newest whole one."""
    damaged: dict[tuple[str, int], DamagedError] = {}
    while True:
        # Listed again after each failure: a run that still trains deletes its oldest step.
        steps = find_steps(directory, stage)
        left = [s for s in steps if s not in damaged and step in (None, s[1])]
        if not left:
            break
        found = left[0]
        path = directory / CHECKPOINTS / found[0] / str(found[1])
        try:
            params = _read_params(path, config, verify, found[1], lazily)
        except DamagedError as error:
            if step is not None and path.exists():
                raise
            damaged[found] = error
            continue
        for which, error in damaged.items():
            if which in steps:
                print(
                    f"warning: {error}; step {found[1]} of {found[0]} is used instead",
                    file=sys.stderr,
                )
        return *found, params
    if damaged:
        reasons = "; ".join(map(str, damaged.values()))
        raise DamagedError(f"no whole checkpoint is left in {directory} ({reasons})")
    have: dict[str, list[str]] = {}
    for name, number in sorted(steps, key=lambda found: found[1]):
        have.setdefault(name, []).append(str(number))
    names = dict.fromkeys(name for name, _ in steps)
    have = "; ".join(f"{name}: {', '.join(have[name])}" for name in names)
    raise UserError(f"{directory} has no checkpoint of step {step}; it has {have}")


def _warn_of_edits(directory: Path) -> None:
    """Metadata or a tokenizer that differ from what was written may be damaged, or edited on purpose."""
    if reason := checksums.damage(directory, METADATA) or checksums.damage(directory, TOKENIZER):
        print(f"warning: {directory}: {reason}: it was edited, or is damaged", file=sys.stderr)


def _check_files(path: Path) -> None:
    """Raises a UserError for what Orbax and TensorStore would wait for, or read into memory whole."""
    if gcs.is_gcs(path):  # which holds objects, and nothing to wait for
        return
    check_tree(path)
    for file in (*path.glob("_*METADATA"), *path.glob("array_metadatas/*")):
        if is_file(file):
            read_json(file)
    for file in path.glob("**/manifest.ocdbt"):
        if file.stat().st_size > JSON_BYTES:
            raise UserError(f"{file} is damaged: a manifest is never that large")


def foreign_parts(directory: Path, paths: Iterable[Path] | None = None) -> list[str]:
    """What would be lost if a model took the place of a directory: all that `save_model` did not write.

    Args:
      directory: it exists; without a native `janus.json`, everything in it is foreign.
      paths: what in it to look at; by default all.

    Returns:
      Names relative to `directory`, sorted; also of files in `params/` that the checksums do not list (in a
      model without checksums all of these are taken for native).
    """
    names = {path.name for path in (directory.iterdir() if paths is None else paths)}
    if METADATA not in names or not _is_metadata(directory / METADATA):
        return sorted(names)
    foreign = [name for name in names - _PARTS if not _LEFT.fullmatch(name)]
    if PARAMS in names and (known := checksums.listed(directory)) is not None:
        inside = (p for p in (directory / PARAMS).rglob("*") if p.is_symlink() or not p.is_dir())
        foreign += {path.relative_to(directory).as_posix() for path in inside} - known
    return sorted(foreign)


def abridged(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return printable(", ".join(names[:3])) + more


def finished_steps(directory: Path) -> list[int]:
    """The complete steps of a stage, ascending.

    Raises:
      UserError: it cannot be read.
    """
    with storage.reading(directory), gcs.asking(directory):
        if not directory.is_dir():
            return []
        found = [path for path in directory.iterdir() if path.name.isdecimal()]
        return sorted(
            int(path.name) for path in found if is_written(path) and (path / PARAMS).is_dir()
        )


def is_written(path: Path) -> bool:
    """Whether a step was written to its end: Orbax renames it into place then; in a bucket, marks it."""
    with gcs.asking(path):
        return (path / checksums.MARK if gcs.is_gcs(path) else path).exists()


def _read_metadata(directory: Path) -> dict[str, Any]:
    if not directory.exists():
        raise UserError(f"no such directory: {directory}")
    if not directory.is_dir():
        raise UserError(
            f"{directory} is a file; give the directory of a model or of a training run"
        )
    if not any(directory.iterdir()):
        raise UserError(f"{directory} is empty: not a model or a training run")
    path = directory / METADATA
    if not is_file(path):
        raise UserError(
            f"{directory} is not a model or a training run: it has no {METADATA} (the weights of the "
            "PyTorch release must be converted first)"
        )
    metadata = read_json(path)
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not the {METADATA} of a {FORMAT} model")
    version = metadata.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise UserError(
            f"{path} has format version {shown(version)}; this janus_jax reads up to {VERSION}"
        )
    for field in ("config", "processor"):
        if not isinstance(metadata.get(field), dict):
            raise UserError(f"{path} is damaged: it lacks {field!r}")
    if not isinstance(metadata.get("origin", {}), dict):
        raise UserError(
            f"{path} is damaged: 'origin' must be an object, not {shown(metadata['origin'])}"
        )
    return metadata


def _is_metadata(path: Path) -> bool:
    try:
        metadata = read_json(path)
    except UserError:
        return False
    return isinstance(metadata, dict) and metadata.get("format") == FORMAT


def _metadata_text(metadata: Mapping[str, Any]) -> str:
    text = json.dumps(metadata, indent=2, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a path in `origin` whose bytes are not UTF-8: escaped, it survives
        return json.dumps(metadata, indent=2)
    return text


def find_steps(directory: Path, stage: str | None) -> list[tuple[str, int]]:
    """(stage, step) of a training run's checkpoints, the last stage's newest first; never empty."""
    if not is_file(directory / STAGES):
        raise UserError(f"{directory} has neither {PARAMS}/ nor a finished checkpoint")
    names = read_json(directory / STAGES)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{directory / STAGES} must be a list of stage names")
    for name in names:  # a stage is a directory in this one, whatever a file says
        plain = Path(name).name == name and name not in ("", "..")
        if not (plain and name.isprintable() and len(name) <= 255):
            raise UserError(
                f"{directory / STAGES}: {shown(name)} cannot be the name of a stage: stages are "
                f"directories in {CHECKPOINTS}/"
            )
    if stage is not None and stage not in names:
        raise UserError(f"{directory} has no stage {stage!r}; its stages are {', '.join(names)}")
    begun = _names_in(directory / CHECKPOINTS)  # whatever the file lists, and however often
    steps = [
        (name, step)
        for name in dict.fromkeys(reversed(names))
        if stage in (None, name) and name in begun
        for step in reversed(finished_steps(directory / CHECKPOINTS / name))
    ]
    if not steps:
        which = f"stage {stage!r}" if stage else "the run"
        raise UserError(f"no finished checkpoint yet in {directory}: {which} has not saved one")
    return steps


def _names_in(directory: Path) -> set[str]:
    with storage.reading(directory), gcs.asking(directory):
        return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


def _check_fit(params: Any, config: JanusConfig, where: str) -> None:
    """Raises a UserError that names the first parameter that is not `config`'s."""
    found = storage.flatten(params)
    if not config.scan_layers and config.least_arrays > 2 * len(found) + 1000:
        raise UserError(
            f"{where} belongs to another architecture than its {METADATA} ({config.name}), which describes more "
            f"than {config.least_arrays} tensors, not {len(found)}"
        )
    wanted = storage.flatten(_expected(config))
    if difference := storage.first_difference(found, wanted):
        raise UserError(
            f"{where} belongs to another architecture than its {METADATA} ({config.name}): "
            f"{printable(difference, 200)}"
        )


def _expected(config: JanusConfig) -> Any:
    # Traced scanned, then unstacked: the depth of the model does not matter.
    scanned = config.replace(scan_layers=True)

    def init(key):
        params = init_params(JanusModel(scanned), key)
        return params if config.scan_layers else unstack_layers(params, config)

    return jax.eval_shape(init, jax.random.key(0))


def _check_free(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"cannot write a model to {directory}: it is a file")
    if foreign := foreign_parts(directory):
        raise UserError(
            f"cannot write a model to {directory}: it holds something else: {abridged(foreign)}"
        )


def _replace(temporary: Path, directory: Path) -> None:
    """Renames a finished directory into place; an older one steps aside first."""
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    if directory.exists():
        directory.rename(old)
    temporary.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
