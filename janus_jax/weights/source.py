"""A model on disk in any format, opened without reading its weights.

Formats: "official" (deepseek-ai/Janus), "hf" (transformers' `JanusForConditionalGeneration`) and "janus_jax"
(our model and run directories). Which one it is, `config.json` and the names of the tensors say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.checkpoints import load_model
from janus_jax.checkpoints.streaming import LazyArray
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.models import unstack_layers
from janus_jax.processing import ProcessorConfig, Tokenizer
from janus_jax.weights.convert import check, leaves, make_plan
from janus_jax.weights.files import CheckpointFiles, read_object
from janus_jax.weights.hf_config import config_from_hf
from janus_jax.weights.names import HF, OFFICIAL, TABLES, NameTable
from janus_jax.weights.official_config import config_from_official
from janus_jax.weights.processor_files import read_processor

OURS = "janus_jax"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened model.

    Attributes:
      directory: where it is.
      format: "official", "hf" or "janus_jax".
      config: the architecture, with unrolled layers.
      arrays: our (unrolled) path -> array to be read later; nothing has been read yet, except of
        "janus_jax", which is read whole.
      bad: names of the tensors with values that are not finite, as far as arrays have been loaded.
    """

    directory: Path
    format: str
    config: JanusConfig
    arrays: Mapping[str, LazyArray]
    bad: list[str]

    def processor(self, tokenizer_file: Path | None = None) -> tuple[ProcessorConfig, Tokenizer]:
        """Tokenizer and settings; see `processor_files.read_processor` for what is refused."""
        if self.format == OURS:
            fields, text = load_card(self.directory)
            own = (
                Tokenizer.from_file(tokenizer_file) if tokenizer_file else Tokenizer.from_json(text)
            )
            return ProcessorConfig.from_dict(fields), own
        return read_processor(self.directory, self.config, tokenizer_file)

    def check_finite(self) -> None:
        """Raises a UserError if an array that was loaded has a value that is not finite."""
        check({"non-finite": sorted(self.bad)} if self.bad else {}, self.config)


def is_ours(directory: Path) -> bool:
    """Whether it is a model or run directory of ours."""
    return (directory / "janus.json").is_file()


def is_torch(directory: Path) -> bool:
    """Whether it looks like a PyTorch checkpoint."""
    return (directory / "config.json").is_file() and not is_ours(directory)


def open_source(directory: str | Path, name: str | None = None) -> Source:
    """Opens a model directory of any format.

    Args:
      directory: the directory.
      name: what to call the model; by default the directory's name.

    Raises:
      UserError: there is no model, or it is damaged or not supported. Everything that is wrong with the
        tensors is in one message: missing, unexpected, doubled, of the wrong shape, not finite.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    if is_ours(directory):
        return _open_ours(directory)
    hf_or_official = _read_config(directory)
    name = name or directory.resolve().name.lower()
    table = {"janus": HF, "multi_modality": OFFICIAL}.get(hf_or_official.get("model_type"))
    if table is None:
        raise UserError(
            f"{directory}/config.json: model_type {hf_or_official.get('model_type')!r} is no Janus; it must "
            "be 'multi_modality' (official) or 'janus' (transformers)"
        )
    read = config_from_hf if table is HF else config_from_official
    config = read(hf_or_official, name=name)
    files = CheckpointFiles(directory)
    plan = make_plan({n: files[n].shape for n in files}, config, table)
    if not plan.sources:
        _explain_names(files, table)
    bad: list[str] = []
    reader = lambda tensor: _finite(tensor, files.read(tensor), bad)
    problems = dict(plan.problems)
    for path, parts in plan.sources.items():
        dtypes = {files[n].dtype for n, _ in parts}
        if len(dtypes) > 1:
            problems.setdefault("of mixed dtypes", []).append(
                f"{path} ({', '.join(sorted(dtypes))})"
            )
    if problems:
        for parts in plan.sources.values():
            for tensor, _ in parts:
                reader(tensor)
        check(problems | ({"non-finite": bad} if bad else {}), config)
    order = {n: i for i, n in enumerate(files)}

    def lazy(path: str) -> LazyArray:
        first = plan.sources[path][0][0]
        return LazyArray(
            shape=plan.shapes[path],
            dtype=np.dtype(files[first].numpy_dtype),
            load=lambda: plan.load(path, reader),
            turn=(files[first].file, order[first]),
        )

    return Source(directory, table.key, config, {p: lazy(p) for p in plan.shapes}, bad)


def load_card(directory: Path) -> tuple[dict[str, Any], str]:
    """(processor fields, tokenizer JSON) of a directory of ours."""
    card = read_object(directory / "janus.json")
    return card["processor"], (directory / "tokenizer.json").read_text(encoding="utf-8")


def _open_ours(directory: Path) -> Source:
    loaded = load_model(directory)
    params = unstack_layers(loaded.params, loaded.config)
    bad: list[str] = []

    def lazy(path: str, value: np.ndarray) -> LazyArray:
        load: Callable[[], np.ndarray] = lambda: _finite(path, value, bad)
        return LazyArray(value.shape, value.dtype, load, (path,))

    arrays = {path: lazy(path, np.asarray(value)) for path, value in leaves(params)}
    return Source(directory, OURS, loaded.config.replace(scan_layers=False), arrays, bad)


def _finite(name: str, value: np.ndarray, bad: list[str]) -> np.ndarray:
    """`value`; notes its name if something in it is not finite."""
    if value.dtype.itemsize == 2:
        # All exponent bits set, in either 16-bit format; many times faster than bfloat16's isfinite.
        exponent = np.uint16(0x7C00 if value.dtype == np.float16 else 0x7F80)
        found = bool(((value.view(np.uint16) & exponent) == exponent).any())
    else:
        found = not np.isfinite(value).all()
    if found:
        bad.append(name)
    return value


def _explain_names(files: CheckpointFiles, table: NameTable) -> None:
    """A config of one format beside weights of the other is worth its own message."""
    for other in TABLES.values():
        if other is not table and any(other.to_ours(n) for n in files):
            raise UserError(
                f"{files.directory}: config.json is of the {table.key} format, but the weights have "
                f"{other.key} names; take both from one repository"
            )


def _read_config(directory: Path) -> Mapping[str, Any]:
    path = directory / "config.json"
    if not path.is_file():
        raise UserError(f"{directory} is no model: it has neither janus.json nor config.json")
    return read_object(path)
