"""PyTorch checkpoints used directly: read where they are, or converted once and found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax.checkpoints import BEST, LoadedModel, best_step, load_model
from janus_jax.console import printable
from janus_jax.errors import UserError, one_line
from janus_jax.interop.conversion.convert import nest
from janus_jax.interop.conversion.hub import is_hub_id, local_directory, repository_directory
from janus_jax.interop.conversion.output_dir import is_being_written, remove_stale_staging
from janus_jax.interop.conversion.source import Source, is_native, is_torch, open_source
from janus_jax.interop.conversion.write import origin_of, write_native
from janus_jax.places import probe, user_cache

# Set it to keep converted models elsewhere.
ENVIRONMENT = "JANUS_JAX_CACHE"
# Raised when the same files are read as another model, so that what an earlier version made of them is not found.
_READS = 2


def cache_directory() -> Path | None:
    """Where converted models are kept: $JANUS_JAX_CACHE, or janus_jax in the user's cache directory;
    None for a user who has neither."""
    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen) if chosen else user_cache()


def load_checkpoint(
    src: str | Path,
    step: int | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> LoadedModel:
    """Loads whatever a model can be read from.

    A conversion is kept in the cache. Where that cannot be written it stays in memory, with a warning.

    Args:
      src: a native model directory; a training run, or a directory of its checkpoints, such as
        RUN/checkpoints/STAGE/STEP; PyTorch weights in either format, or a hub id.
      step: of a training run; by default the newest. "best": that with the lowest loss (`checkpoints.best_step`).
      revision: branch, tag or commit of a hub id; by default its newest state.
      token: of the hub.
      cache_dir: where conversions are kept; by default `cache_directory()`.
      **options: of `checkpoints.load_model`.

    Raises:
      UserError: the checkpoint cannot be found, downloaded, converted or loaded.
    """
    native = _load_native(src, step, revision, options)
    if native is not None:
        return native
    name = str(src)
    found = _find(name, revision, token, cache_dir)
    _check_no_step(name, step, options)
    if isinstance(found, Path):
        return load_model(found, **options)
    source, place = found
    processor, tokenizer = source.processor()
    obstacle = _obstacle(place, sum(array.nbytes for array in source.arrays.values()))
    if not obstacle:
        return load_model(_convert(name, source, place), **options)
    print(f"warning: {printable(obstacle)}; {printable(name)} is converted anew", file=sys.stderr)
    in_turn = sorted(source.arrays.items(), key=lambda item: item[1].turn)
    params = nest({path: array.load() for path, array in in_turn})
    source.check_finite()
    return LoadedModel(
        source.config, processor.to_dict(), tokenizer.to_json(), params, origin_of(source)
    )


def open_checkpoint(
    src: str | Path,
    step: int | str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> LoadedModel:
    """As `load_checkpoint`, but the parameters are `LazyArray`s, and nothing is converted.

    PyTorch weights are read where they are; of a conversion that is kept already, that is read.

    Returns:
      The model; call `check` when all its arrays have been loaded.

    Raises:
      UserError: the checkpoint cannot be found, downloaded or opened; later, in `load`, it is damaged.
    """
    native = _load_native(src, step, revision, options | {"lazily": True})
    if native is not None:
        return native
    name = str(src)
    found = _find(name, revision, token, cache_dir)
    _check_no_step(name, step, options)
    if isinstance(found, Path):
        return load_model(found, lazily=True, **options)
    source, _ = found
    processor, tokenizer = source.processor()
    return LoadedModel(
        source.config,
        processor.to_dict(),
        tokenizer.to_json(),
        nest(source.arrays),
        origin_of(source),
        source.check_finite,
    )


def native_directory(src: str | Path) -> Path:
    """The native directory for `src`: itself, or what it was converted to, now or earlier.

    Args:
      src: a native directory, or of PyTorch weights in either format, or a hub id. Anything else is
        returned as it is, so that its reader says what is wrong with it.

    Raises:
      UserError: the checkpoint cannot be downloaded or converted, or the cache cannot be written.
    """
    name = str(src)
    if not _is_foreign(name):
        return Path(name)
    found = _find(name)
    if isinstance(found, Path):
        return found
    source, place = found
    obstacle = _obstacle(place, sum(array.nbytes for array in source.arrays.values()))
    if obstacle:
        raise UserError(f"{obstacle}; set {ENVIRONMENT} to a directory that can be written")
    return _convert(name, source, place)


def part_of_run(src: str | Path) -> tuple[Path, str | None, int | None] | None:
    """(run, stage, step) if `src` is the checkpoints/ of a training run, or a directory in it.

    Stage and step are None where `src` does not say which.
    """
    path = Path(os.path.abspath(src))
    for run in path.parents[:4]:
        inner = path.relative_to(run).parts
        if inner[0] == "checkpoints" and is_native(run):
            stage, step, *_ = (*inner[1:], None, None)
            if step is None or step.isdecimal():
                return run, stage, None if step is None else int(step)
    return None


def _load_native(
    src: str | Path, step: int | str | None, revision: str | None, options: dict[str, Any]
) -> LoadedModel | None:
    """The model of a native directory or of a part of a run; None for PyTorch weights."""
    part = part_of_run(src)
    if part and revision is None:
        run, stage, own = part
        if None not in (step, own) and step != own:
            raise UserError(f"{src} is step {own} of {run}, but step {step} is asked for")
        step = own if step is None else step
        return load_model(run, **_numbered(run, step, stage), **options)
    name = str(src)
    if revision is not None and not is_hub_id(name):
        raise UserError(f"revision is of a model of the hub, but {name} is none")
    if _is_foreign(name):
        return None
    return load_model(name, **options | _numbered(name, step, options.get("stage")))


def _numbered(run: str | Path, step: int | str | None, stage: str | None) -> dict[str, Any]:
    """The stage and the number of a step, which may be "best"."""
    if step == BEST:
        stage, step = best_step(run, stage)
    return {"step": step, "stage": stage}


def _check_no_step(name: str, step: int | str | None, options: dict[str, Any]) -> None:
    if step is not None or options.get("stage") is not None:
        raise UserError(f"{name} is a model, not a training run: it has no stages or steps")


def _is_foreign(name: str) -> bool:
    path = Path(name)
    return not is_native(path) and (is_hub_id(name) or is_torch(path))


def _find(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Path | tuple[Source, Path | None]:
    """The conversion that is there already, or what to convert and where to."""
    cache = cache_directory() if cache_dir is None else Path(cache_dir)
    try:
        directory = local_directory(name, revision, token)
    except UserError as error:
        # What was converted before may be of any revision.
        known = is_hub_id(name) and revision is None
        earlier = _converted_before(cache, name) if known else None
        if earlier is None:
            raise
        print(
            f"warning: {one_line(error)}; using what it was converted to before, "
            f"{printable(earlier)}",
            file=sys.stderr,
        )
        return earlier
    label = Path(name).name.lower()
    place = cache and cache / f"{label[:80]}-{_fingerprint(directory, revision)}"
    if place:
        remove_stale_staging(cache)
        with contextlib.suppress(OSError):  # a cache that cannot be read holds nothing
            _wait(place)
            if is_native(place):
                return place
    if not (directory / "tokenizer.json").is_file() and (directory / "config.json").is_file():
        raise UserError(
            f"{directory}/tokenizer.json does not exist; copy the tokenizer.json of the release there, "
            f"or convert it once: janus-convert (or python convert_torch_weights.py) --src {name} "
            "--dst DIR --tokenizer FILE"
        )
    return open_source(directory, name=label), place


def _convert(name: str, source: Source, place: Path) -> Path:
    print(f"converting {printable(name)} into {printable(place)}, once", file=sys.stderr)
    try:
        write_native(source, place, *source.processor())
    except OSError:
        if not is_native(place):  # else another process was faster
            raise
    return place


def _wait(place: Path) -> None:
    """Returns when no other process is converting into `place`."""
    if is_being_written(place):
        print(f"waiting for the process that writes {printable(place)}", file=sys.stderr)
    while is_being_written(place):
        time.sleep(0.5)


def _obstacle(place: Path | None, needed: int) -> str:
    """Why a conversion of so many bytes cannot be kept at `place`, or ""."""
    if place is None:
        return f"converted models are not kept: there is no home directory; set {ENVIRONMENT}"
    try:
        probe(place)
        around = next(p for p in place.absolute().parents if p.exists())
        free = shutil.disk_usage(around).free
    except OSError as error:
        return f"converted models are not kept: {place}: {error.strerror or error}"
    if needed > free:
        return (
            f"converted models are not kept: {place} needs {math.ceil(needed / 1e6)} MB, "
            f"{math.floor(free / 1e6)} MB are free"
        )
    return ""


def _converted_before(cache: Path | None, name: str) -> Path | None:
    """The newest conversion of a model of the hub, whose own files may be gone."""
    if cache is None:
        return None
    found = [p for p in _conversions(cache, name) if repository_directory(name) in _origin(p).parts]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def _conversions(cache: Path, name: str) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in cache.iterdir():
            if path.name.startswith(f"{Path(name).name.lower()[:80]}-") and is_native(path):
                yield path


def _origin(directory: Path) -> Path:
    """What a native model was converted from."""
    try:
        return Path(json.loads((directory / "janus.json").read_text())["origin"]["from"])
    except (OSError, ValueError, KeyError, TypeError):
        return Path()


def _fingerprint(directory: Path, revision: str | None = None) -> str:
    """Changes when a file of the checkpoint does: names, sizes and times of all of them; with the revision
    that was asked for; and with `_READS`."""
    files = sorted(p for p in directory.iterdir() if p.is_file())
    stats = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    asked = () if revision is None else (revision,)
    text = repr((_READS, str(directory.resolve()), stats, *asked))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
