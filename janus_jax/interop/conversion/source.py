"""A model on disk in any format, opened without reading its weights.

Formats: "official" (deepseek-ai/Janus), "hf" (transformers' `JanusForConditionalGeneration`) and "janus_jax"
(native model and run directories). Which one it is, `config.json` and the names of the tensors say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax.checkpoints import LazyArray, load_model
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.interop.configs.hf import config_from_hf
from janus_jax.interop.configs.official import config_from_official
from janus_jax.interop.configs.processor import read_processor
from janus_jax.interop.conversion.convert import Plan, check, flatten, make_plan
from janus_jax.interop.conversion.foreign import (
    explain_files,
    explain_names,
    is_adapter,
    refuse_quantized,
)
from janus_jax.interop.conversion.names import HF, OFFICIAL, NameTable
from janus_jax.interop.conversion.tensor_files import CheckpointFiles
from janus_jax.models import unstack_layers
from janus_jax.processing import ProcessorConfig, Tokenizer
from janus_jax.untrusted import is_file, printable, read_text, shown, understanding

NATIVE = "janus_jax"


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened model.

    Attributes:
      directory: where it is.
      format: "official", "hf" or "janus_jax".
      config: the architecture, with unrolled layers.
      arrays: native (unrolled) path -> array to be read later; nothing has been read yet, except of
        "janus_jax", which is read whole.
      bad: names of the tensors with values that are not finite, as far as arrays have been loaded.
      adapter: the directory of one that has been added to the arrays; "" without.
    """

    directory: Path
    format: str
    config: JanusConfig
    arrays: Mapping[str, LazyArray]
    bad: list[str]
    adapter: str = ""

    def processor(self, tokenizer_file: Path | None = None) -> tuple[ProcessorConfig, Tokenizer]:
        """Tokenizer and settings; see `configs.read_processor` for what is refused."""
        if self.format == NATIVE:
            fields, text = read_metadata(self.directory)
            own = (
                Tokenizer.from_file(tokenizer_file) if tokenizer_file else Tokenizer.from_json(text)
            )
            return ProcessorConfig.from_dict(fields), own
        with understanding(f"{self.directory}/processor_config.json or preprocessor_config.json"):
            return read_processor(self.directory, self.config, tokenizer_file)

    def check_finite(self) -> None:
        """Raises a UserError if an array that was loaded has a value that is not finite."""
        check({"non-finite": sorted(self.bad)} if self.bad else {}, self.config)


def is_native(directory: Path) -> bool:
    """Whether it is a native model or run directory."""
    return is_file(directory / "janus.json")


def is_torch(directory: Path) -> bool:
    """Whether it looks like a PyTorch checkpoint, or an adapter of one."""
    return not is_native(directory) and (
        is_file(directory / "config.json") or is_adapter(directory)
    )


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
    if is_native(directory):
        return _open_native(directory)
    config, table = _read_config(directory, name or directory.resolve().name.lower())
    files = CheckpointFiles(directory)
    _check_count(files, config)
    plan = make_plan({n: files[n].shape for n in files}, config, table)
    if plan.problems:
        _explain(files, plan, table)
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
        problems = {k: [printable(n, 120) for n in names] for k, names in problems.items()}
        with understanding(directory, limit=1500):
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


def read_metadata(directory: Path) -> tuple[dict[str, Any], str]:
    """(processor fields, tokenizer JSON) of a native directory."""
    metadata = read_json(directory / "janus.json", dict)
    return metadata["processor"], read_text(directory / "tokenizer.json")


def _open_native(directory: Path) -> Source:
    loaded = load_model(directory)
    params = unstack_layers(loaded.params, loaded.config)
    bad: list[str] = []

    def lazy(path: str, value: np.ndarray) -> LazyArray:
        load: Callable[[], np.ndarray] = lambda: _finite(path, value, bad)
        return LazyArray(value.shape, value.dtype, load, (path,))

    arrays = {path: lazy(path, np.asarray(value)) for path, value in flatten(params).items()}
    return Source(directory, NATIVE, loaded.config.replace(scan_layers=False), arrays, bad)


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


def _explain(files: CheckpointFiles, plan: Plan, table: NameTable) -> None:
    """Raises a UserError with a better reason than a list of names, if there is one."""
    if reason := explain_names(files, table):
        raise UserError(f"{files.directory}: {reason}")
    head = [slot.name for slot in table.to_torch("decoder/lm_head/kernel")]
    if plan.problems == {"missing": head}:
        raise UserError(
            f"{files.directory} lacks {head[0]}: weights without one are of a model with tied embeddings, "
            "or were saved by a tool that took it for one; those of Janus are not tied, so save it again"
        )


def _check_count(files: CheckpointFiles, config: JanusConfig) -> None:
    """Raises a UserError if a list of what is missing would be out of all proportion."""
    if config.least_arrays > 2 * len(files) + 1000:
        raise UserError(
            f"{files.directory}/config.json describes {config.decoder.layers} decoder layers, "
            f"{config.siglip.layers} vision layers and {config.vq.num_res_blocks} num_res_blocks, more than "
            f"{config.least_arrays} tensors, but the weights are {len(files)}: they do not belong together"
        )


def _read_config(directory: Path, name: str) -> tuple[JanusConfig, NameTable]:
    """The architecture, and the format of the names, that `config.json` names."""
    path = directory / "config.json"
    if not is_file(path):
        raise UserError(
            explain_files(directory)
            or f"{directory} is no model: it has neither janus.json nor config.json"
        )
    values = read_json(path, dict)
    with understanding(path):
        refuse_quantized(values, path)
        kind = values.get("model_type")
        table = (
            {"janus": HF, "multi_modality": OFFICIAL}.get(kind) if isinstance(kind, str) else None
        )
        if table is None:
            raise UserError(
                f"{path}: model_type {shown(kind)} is no Janus; it must be 'multi_modality' (official) or "
                "'janus' (transformers)"
            )
        read = config_from_hf if table is HF else config_from_official
        return read(values, name=printable(name, 200)), table
