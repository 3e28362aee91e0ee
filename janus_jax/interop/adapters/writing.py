"""The leaves of an adapter to a directory in the layout of PEFT."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from janus_jax.adapters import split_lora
from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.files import atomic_write
from janus_jax.interop.adapters.modules import kernel_shape, torch_modules
from janus_jax.interop.adapters.reading import FILES
from janus_jax.interop.adapters.settings import CONFIG
from janus_jax.interop.conversion.convert import flatten
from janus_jax.interop.conversion.names import HF, NameTable, Slot
from janus_jax.interop.conversion.output_dir import check_output_dir, contents, write_output_dir
from janus_jax.interop.conversion.write import check_apart
from janus_jax.models import Params, unstack_layers
from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE

# What AutoPeftModel needs to know to load the base model itself.
_AUTO_MAPPING = {
    "base_model_class": "JanusForConditionalGeneration",
    "parent_library": "transformers.models.janus.modeling_janus",
}


def write_adapter(
    params: Params,
    config: JanusConfig,
    directory: str | Path,
    base: str | None = None,
    table: NameTable = HF,
) -> dict[str, int]:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, which `peft.PeftModel.from_pretrained` loads.

    An adapter on the kernel of query, key and value of the vision tower, which are three modules in transformers,
    becomes three with the same A.

    Args:
      params: an adapter, or parameters with one; either layer layout, arrays or lazy ones.
      config: the architecture.
      directory: the new directory; an adapter that is there is replaced.
      base: what `base_model_name_or_path` shall be: a directory or hub id.
      table: whose names the modules get: `names.HF` (transformers) or `names.OFFICIAL` (deepseek-ai/Janus).

    Returns:
      {"modules": ..., "parameters": ..., "bytes": ...}, bytes of all tensors.

    Raises:
      UserError: there is no adapter in `params`, it does not fit the architecture, a value is not finite, the
        place is taken by something else, or the disk is full; nothing is left.
    """
    adapter, _ = split_lora(params)
    if not adapter:
        raise UserError("there is no adapter in these parameters, so there is none to write")
    layers = _layers(adapter, config)
    tensors: dict[str, np.ndarray] = {}
    numbers: dict[str, tuple[int, float]] = {}  # module -> rank, alpha
    names: dict[str, str] = {}  # module -> its native layer
    for path, leaves in layers.items():
        for name, slot in torch_modules(path, table):
            for half, value in _factors(slot, leaves).items():
                tensors[f"base_model.model.{name}.lora_{half}.weight"] = value
            numbers[name] = leaves[LORA_A].shape[-1], _alpha(leaves)
            names[name] = path
    settings = _settings(numbers, _targets(names, config), base, table)
    with write_output_dir(directory, is_adapter_directory) as new:
        new.mkdir()
        atomic_write(new / CONFIG, json.dumps(settings, indent=2) + "\n")
        try:
            save_file(dict(sorted(tensors.items())), new / FILES[0], metadata={"format": "pt"})
        except SafetensorError as error:  # no OSError, not even if the disk is full
            raise OSError(str(error)) from error
    return {
        "modules": len(numbers),
        "parameters": sum(x.size for x in tensors.values()),
        "bytes": sum(x.nbytes for x in tensors.values()),
    }


def check_adapter_destination(source: str | Path, directory: str | Path) -> None:
    """Checks, before anything is read, that `write_adapter` can write to a directory.

    Raises:
      UserError: it lies in the model that is read, is taken by something else, or cannot be written.
    """
    check_apart(source, directory)
    check_output_dir(directory, is_adapter_directory)


def is_adapter_directory(directory: Path) -> bool:
    """Whether it holds an adapter as `write_adapter` writes it, and nothing else."""
    return {path.name for path in contents(directory)} == {CONFIG, FILES[0]}


def _layers(adapter: Params, config: JanusConfig) -> dict[str, dict[str, np.ndarray]]:
    """Native path of a layer -> the leaves of its adapter, which fit the architecture."""
    load = lambda x: np.asarray(x.load() if hasattr(x, "load") else x)
    try:
        unrolled = unstack_layers(jax.tree.map(load, adapter), config)
    except ValueError as error:
        raise UserError(f"the adapter is not one of {config.name}: {error}") from error
    found: dict[str, dict[str, np.ndarray]] = {}
    for path, value in flatten(unrolled).items():
        layer, _, leaf = path.rpartition("/")
        found.setdefault(layer, {})[leaf] = np.asarray(value)
    for path, leaves in found.items():
        if set(leaves) != {LORA_A, LORA_B, LORA_SCALE}:
            raise UserError(f"the adapter on {path} has {', '.join(sorted(leaves))} alone")
        (inputs, rank), (also, outputs) = leaves[LORA_A].shape, leaves[LORA_B].shape
        if (inputs, outputs) != kernel_shape(path, config) or rank != also:
            raise UserError(
                f"the adapter is not one of {config.name}: on {path} its factors are {[inputs, rank]} and "
                f"{[also, outputs]}"
            )
        if not all(np.isfinite(x.astype(np.float32)).all() for x in leaves.values()):
            raise UserError(f"the adapter on {path} has values that are not finite")
    return found


def _factors(slot: Slot, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """lora_A [r, in] and lora_B [out, r] of a torch module."""
    a, b = leaves[LORA_A], slot.cut(leaves[LORA_B])
    return {half: np.ascontiguousarray(slot.layout.to_torch(x)) for half, x in (("A", a), ("B", b))}


def _alpha(leaves: Mapping[str, np.ndarray]) -> float:
    """The alpha with which PEFT gets the scale of a layer; the roundest that does."""
    scale, rank = np.float32(leaves[LORA_SCALE]), leaves[LORA_A].shape[-1]
    exact = float(scale) * rank
    for alpha in (round(exact, digits) for digits in (0, 2, 4, 6)):
        if np.float32(alpha / rank) == scale:
            return int(alpha) if alpha == int(alpha) else alpha
    return exact


def _settings(
    numbers: Mapping[str, tuple[int, float]], targets: str, base: str | None, table: NameTable
) -> dict[str, Any]:
    ranks, alphas = ({n: pair[i] for n, pair in numbers.items()} for i in (0, 1))
    rank, alpha = (Counter(x.values()).most_common(1)[0][0] for x in (ranks, alphas))
    return {
        "alpha_pattern": {n: x for n, x in sorted(alphas.items()) if x != alpha},
        "auto_mapping": _AUTO_MAPPING if table is HF else None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": {n: x for n, x in sorted(ranks.items()) if x != rank},
        "revision": None,
        "target_modules": targets,
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _targets(names: Mapping[str, str], config: JanusConfig) -> str:
    """A regular expression of exactly these modules.

    A list of names such as "q_proj" would be one of ends of names, and in transformers the vision tower has a
    q_proj as well.

    Args:
      names: torch module -> its native layer.
      config: the architecture.
    """
    plain: list[str] = []
    layers: dict[
        tuple[str, str, int], list[int]
    ] = {}  # (before the index, after, count) -> indices
    for name, path in names.items():
        part, is_layer = path.split("/")[0], re.match(r"\w+/(layers|blocks)_\d+/", path)
        found = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
        if is_layer and found:
            count = getattr(config, part).layers
            layers.setdefault((found[1], found[3], count), []).append(int(found[2]))
        else:
            plain.append(re.escape(name))
    together: dict[tuple[str, str], list[str]] = {}
    for (head, tail, count), indices in layers.items():
        every = sorted(indices) == list(range(count))
        index = r"\d+" if every else _either(map(str, sorted(indices)))
        together.setdefault((head, index), []).append(re.escape(tail))
    stacks = [
        rf"{re.escape(head)}\.{index}\.{_either(tails)}"
        for (head, index), tails in together.items()
    ]
    return "|".join([*stacks, *plain])


def _either(texts: Any) -> str:
    texts = list(texts)
    return texts[0] if len(texts) == 1 else f"({'|'.join(texts)})"
