"""An adapter in the layout of PEFT, read for the layers of a model."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from janus_jax.adapters import attach_lora, merge_lora
from janus_jax.checkpoints import LoadedModel
from janus_jax.config import JANUS_PRO_7B, JanusConfig
from janus_jax.errors import UserError, nearest
from janus_jax.interop.adapters.modules import (
    Module,
    dense_names,
    find_module,
    is_unused,
    kernel_shape,
    unwrapped,
)
from janus_jax.interop.adapters.settings import AdapterSettings, read_settings
from janus_jax.interop.conversion.convert import expected_shapes, flatten, nest
from janus_jax.interop.conversion.source import Source, is_native
from janus_jax.interop.conversion.tensor_files import CheckpointFiles
from janus_jax.models import Params
from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE
from janus_jax.places import checked
from janus_jax.untrusted import is_file, printable, understanding

FILES = ("adapter_model.safetensors", "adapter_model.bin")
# "MODULE.lora_A.weight"; as long as it is in a PEFT model, the name of the adapter is in it, such as "default".
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(\.[^.]+)?\.weight")
# PEFT also saves frozen weights where the head of the language model has an adapter: they are those of the base.
_COPY = re.compile(r"(?P<module>.+)\.base_layer\.weight")


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Both factors of one torch module.

    Attributes:
      name: of the module, as the file calls it.
      module: which it is.
      tensors: "A" and "B" -> the name of the tensor.
    """

    name: str
    module: Module
    tensors: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Files:
    """An adapter's directory, of which no values have been read yet."""

    directory: Path
    settings: AdapterSettings
    tensors: CheckpointFiles
    pairs: list[_Pair]
    copies: dict[str, Module]  # tensor -> whose weight in the base model it is


def check_adapter(directory: str | Path, model: str | Path) -> None:
    """Looks for all that can be wrong with an adapter before its model is opened; reads no values.

    Args:
      directory: of the adapter.
      model: what it is to be added to: a directory or a hub id.

    Raises:
      UserError: see `read_adapter`; or the model is the run that has trained it, and has it already.
    """
    _open(Path(directory))
    run, inside = Path(os.path.realpath(model)), Path(os.path.realpath(directory))
    if run in inside.parents and is_native(run):
        raise UserError(
            f"{model} has {directory} in its weights already, as it has trained it: leave the adapter out, or "
            "give the model that the run began with"
        )


def read_adapter(directory: str | Path, config: JanusConfig) -> Params:
    """Reads `adapter_config.json` and `adapter_model.safetensors` (or `.bin`) as PEFT writes them.

    Modules may have the names of the official model or of transformers', with or without
    `base_model.model.` before and the adapter's name inside; also those of an official model's `language_model`
    that was adapted alone.

    Args:
      directory: of the adapter.
      config: the architecture that it is for.

    Returns:
      The leaves of the adapter, in the unrolled layout, as numpy arrays in the dtype of the file: `lora_a` [I, r],
      `lora_b` [r, O] and `lora_scale` [] (float32). Adapters on the query, key and value of transformers' vision
      tower are one on the kernel that has all three, of the sum of their ranks.

    Raises:
      UserError: the directory holds no adapter, a damaged one, one of another kind than LoRA, or one that is not
        for this model; one line.
    """
    files = _open(Path(directory))
    with understanding(files.directory):
        _check_shapes(files, config)
        layers: dict[str, list[_Pair]] = {}
        for pair in files.pairs:
            layers.setdefault(pair.module.path, []).append(pair)
        adapter = nest({p: _leaves(files, layers[p]) for p in sorted(layers)})
    tensors = flatten(adapter)
    if not any(np.any(value) for path, value in tensors.items() if path.endswith(LORA_B)):
        print(
            f"warning: {printable(files.directory)} changes nothing: every lora_B is zero, as before the first "
            "step of training",
            file=sys.stderr,
        )
    return adapter


def with_adapter(loaded: LoadedModel, directory: str | Path) -> LoadedModel:
    """A model with an adapter in its kernels; lazy ones stay lazy.

    Raises:
      UserError: see `read_adapter`.
    """
    adapter = read_adapter(directory, loaded.config)
    params = merge_lora(attach_lora(loaded.params, adapter))
    origin = loaded.origin | {"adapter": str(directory)}
    return dataclasses.replace(loaded, params=params, origin=origin)


def source_with_adapter(source: Source, directory: str | Path) -> Source:
    """As `with_adapter`, for a model that is to be converted.

    Raises:
      UserError: see `read_adapter`.
    """
    adapter = read_adapter(directory, source.config)
    params = merge_lora(attach_lora(nest(source.arrays), adapter))
    return dataclasses.replace(source, arrays=flatten(params), adapter=str(directory))


def _open(directory: Path) -> _Files:
    if str(directory).startswith("gs:/"):
        raise UserError(
            f"the adapter {directory}: adapters are read from directories; copy it to this machine (gcloud "
            "storage cp -r), or give a directory where the bucket is mounted"
        )
    directory = checked(directory, "the adapter")
    if not directory.is_dir():
        raise UserError(f"no such directory: {directory}")
    if is_native(directory):
        raise UserError(
            f"{directory} is a model or a training run, not an adapter: those that a run has trained are in "
            "RUN/adapter/STAGE, or are written by janus-convert (python convert_torch_weights.py) --to peft"
        )
    settings = read_settings(directory)
    if not any(is_file(directory / name) for name in FILES):
        raise UserError(f"{directory} has no {FILES[0]}: copy it from where the adapter comes from")
    tensors = CheckpointFiles(directory, [(name, f"{name}.index.json") for name in FILES])
    with understanding(directory):
        copies = {
            t: find_module(unwrapped(m["module"])) for t in tensors if (m := _COPY.fullmatch(t))
        }
        copies = {tensor: module for tensor, module in copies.items() if module}
        pairs = _pairs(directory, [tensor for tensor in tensors if tensor not in copies])
        return _Files(directory, settings, tensors, pairs, copies)


def _pairs(directory: Path, tensors: Collection[str]) -> list[_Pair]:
    """The pairs of factors, in the order of the file."""
    if not tensors:
        raise UserError(
            f"{directory} has no tensors in its weights: it was saved when the adapter was not in the model (such "
            "as after merging), or by a process that does not have it; save it again"
        )
    found: dict[tuple[str, tuple[int, int]], _Pair] = {}
    for tensor in tensors:
        match = _KEY.fullmatch(tensor)
        if not match:
            raise UserError(f"{directory}: {_other(tensor)}")
        name = unwrapped(match["module"])
        module = find_module(name)
        if module is None and is_unused(name):
            continue
        if module is None:
            raise UserError(
                f"{directory}: {printable(name, 120)} is no module of Janus.{_like(name)}"
            )
        if not module.dense:
            raise UserError(
                f"{directory}: {printable(name, 120)} is no linear layer, and adapters on others are not read: "
                "merge it into its base model with PEFT (merge_and_unload) and convert that model"
            )
        pair = found.setdefault((module.path, module.slot.part), _Pair(name, module, {}))
        other = pair.tensors.setdefault(match["half"], tensor)
        if other != tensor:
            raise UserError(
                f"{directory}: {printable(tensor, 120)} and {printable(other, 120)} are the same factor: it must "
                "hold one adapter"
            )
    for pair in found.values():
        for half, there in (("A", "B"), ("B", "A")):
            if half not in pair.tensors:
                raise UserError(
                    f"{directory} is damaged: {printable(pair.name, 120)} has lora_{there}, but no lora_{half}"
                )
    return list(found.values())


def _other(tensor: str) -> str:
    """What a tensor is that is neither of both factors."""
    name = printable(tensor, 120)
    if "lora_magnitude_vector" in tensor:
        return f"{name} is of DoRA, which is not read: merge it with PEFT (merge_and_unload) first"
    if "lora_embedding_" in tensor:
        return (
            f"{name} is of an adapter on an embedding, which is not read: merge it with PEFT first"
        )
    if "modules_to_save" in tensor or tensor.endswith(".bias"):
        return f"{name} is a whole parameter beside the adapter, which is not read: merge it with PEFT first"
    return f"{name} is no factor of LoRA: names end in .lora_A.weight or .lora_B.weight"


def _like(name: str) -> str:
    """The nearest name of a module of the largest released model."""
    return nearest(name[:200], dense_names(JANUS_PRO_7B))


def _check_shapes(files: _Files, config: JanusConfig) -> None:
    """Raises UserError unless every pair fits its layer in this model, and has the rank that the settings say."""
    for tensor, module in files.copies.items():
        shape = expected_shapes(config).get(module.slot.name)
        wanted = module.slot.torch_shape(shape) if shape else None
        if files.tensors[tensor].shape != wanted:
            raise UserError(
                f"{files.directory} is of another base model than {config.name}, or of one whose vocabulary was "
                f"resized: {printable(tensor, 120)} is {list(files.tensors[tensor].shape)}, but {config.name} has "
                f"{list(wanted) if wanted else 'no such layer'}"
            )
    for pair in files.pairs:
        kernel = kernel_shape(pair.module.path, config)
        name = printable(pair.name, 120)
        if kernel is None:
            raise UserError(
                f"{files.directory} is of another base model: {config.name} has no {name} (its language model has "
                f"{config.decoder.layers} layers, its vision tower {config.siglip.layers})"
            )
        outputs, inputs = pair.module.slot.torch_shape(kernel)
        shapes = {half: files.tensors[tensor].shape for half, tensor in pair.tensors.items()}
        rank = files.settings.rank_of(pair.name)
        wanted = {"A": (rank, inputs), "B": (outputs, rank)}
        if any(0 in shape for shape in shapes.values()):
            raise UserError(
                f"{files.directory}: {name} is empty, as DeepSpeed ZeRO-3 and FSDP save what they have cut: "
                "gather the adapter before it is saved"
            )
        for half, shape in shapes.items():
            if shape != wanted[half]:
                where = (
                    f"lora_{half} of {name} is {list(shape)}, but {list(wanted[half])} is needed"
                )
                fits = len(shape) == 2 and shape[half == "A"] == wanted[half][half == "A"]
                why = (
                    f"of another rank than adapter_config.json says ({rank})"
                    if fits
                    else f"of another base model than {config.name}, or damaged"
                )
                raise UserError(f"{files.directory} is {why}: {where}")


def _leaves(files: _Files, pairs: list[_Pair]) -> dict[str, np.ndarray]:
    """The leaves of one layer, of the pairs of its parts."""
    pairs = sorted(pairs, key=lambda pair: pair.module.slot.part)
    a, b = ([_read(files, pair, half) for pair in pairs] for half in "AB")
    scales = [np.float32(files.settings.scale_of(pair.name)) for pair in pairs]
    _, parts = pairs[0].module.slot.part
    same = all(scale == scales[0] for scale in scales)
    if len(pairs) == parts and same and all(np.array_equal(x, a[0]) for x in a):
        # One layer; or one that was cut into parts, all of which look at the same.
        return {LORA_A: a[0], LORA_B: np.concatenate(b, axis=-1), LORA_SCALE: np.asarray(scales[0])}
    # Side by side: each part has factors of its own, which are 0 for the others.
    if not same:
        b = [np.float32(x) * scale for x, scale in zip(b, scales, strict=True)]
    whole = np.zeros((sum(map(len, b)), parts * b[0].shape[-1]), np.result_type(*b))
    row = 0
    for pair, factor in zip(pairs, b, strict=True):
        column = pair.module.slot.part[0] * factor.shape[-1]
        whole[row : row + len(factor), column : column + factor.shape[-1]] = factor
        row += len(factor)
    scale = np.asarray(scales[0] if same else np.float32(1))
    return {LORA_A: np.concatenate(a, axis=-1), LORA_B: whole, LORA_SCALE: scale}


def _read(files: _Files, pair: _Pair, half: str) -> np.ndarray:
    """One factor in the native layout, [I, r] or [r, O]."""
    tensor = pair.tensors[half]
    value = np.ascontiguousarray(pair.module.slot.layout.to_native(files.tensors.read(tensor)))
    if not np.isfinite(value.astype(np.float32)).all():
        raise UserError(
            f"{files.directory}: {printable(tensor, 120)} has values that are not finite: the training diverged; "
            "take an earlier step"
        )
    return value
