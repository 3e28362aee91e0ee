"""What other tools make of a Janus checkpoint and this project does not read, with a message for each.

Adapters and prefixes: PEFT. Quantized weights: bitsandbytes, GPTQ, AWQ, FP8, GGUF.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import UserError
from janus_jax.interop.conversion.names import TABLES, NameTable
from janus_jax.untrusted import printable, shown

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_LORA = (".lora_", ".base_layer.", ".modules_to_save.")
# The last part of a name -> who writes it.
_QUANTIZED = {
    "SCB": "bitsandbytes, 8 bit",
    "weight_format": "bitsandbytes, 8 bit",
    "absmax": "bitsandbytes, 4 bit",
    "quant_map": "bitsandbytes, 4 bit",
    "nested_absmax": "bitsandbytes, 4 bit",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "g_idx": "GPTQ",
    "weight_packed": "compressed-tensors",
    "weight_scale": "FP8",
    "weight_scale_inv": "FP8",
}
_FOUR_BITS = ".quant_state.bitsandbytes__"
_FEW = 4  # so many unknown names are no other tool's work
_SAMPLE = 256  # names looked at to find a prefix
_DEPTH = 6  # parts of a prefix
_MERGE = "merge it into its base model first (PEFT: merge_and_unload) and save that model"
_GIVE_BASE = "give its base model as the checkpoint, and this directory as the adapter (--adapter)"
_DEQUANTIZE = "take the original weights, or dequantize them first"


def is_adapter(directory: Path) -> bool:
    """Whether there are the files of an adapter and none of a model."""
    return any((directory / name).exists() for name in _ADAPTERS)


def explain_files(directory: Path) -> str | None:
    """Why a directory has no weights that can be read; None if nothing is known."""
    if is_adapter(directory):
        return f"{directory} holds an adapter (LoRA), not a model: {_GIVE_BASE}"
    if any(directory.glob("*.gguf")):
        return (
            f"{directory} holds quantized GGUF weights, which are not supported: {_DEQUANTIZE} "
            "(model.safetensors or pytorch_model.bin)"
        )
    return None


def refuse_quantized(config: Mapping[str, Any], where: Path) -> None:
    """Raises a UserError if a `config.json`, or a section of it, says that the weights are quantized."""
    for section in (config, *(v for v in config.values() if isinstance(v, Mapping))):
        quantization = section.get("quantization_config")
        if quantization is not None:
            named = isinstance(quantization, Mapping)
            method = quantization.get("quant_method", "unknown") if named else quantization
            raise UserError(
                f"{where}: the weights are quantized ({shown(method)}), which is not supported: "
                f"{_DEQUANTIZE}"
            )


def explain_quantized(names: Collection[str], dtypes: Mapping[str, str]) -> str | None:
    """Says that tensors are quantized if their names or dtypes do; None if they are not.

    Args:
      names: of all tensors.
      dtypes: name -> dtype, of those that are not of floating point with 16 or 32 bits.
    """
    for name in names:
        leaf = name.rsplit(".", 1)[-1]
        method = "bitsandbytes, 4 bit" if _FOUR_BITS in name else _QUANTIZED.get(leaf)
        if method:
            return f"the weights are quantized ({method}: {printable(name)}): {_DEQUANTIZE}"
    for name, dtype in dtypes.items():
        if dtype.startswith(("F8", "F4", "float8", "float4")):
            return f"the weights are quantized ({dtype}: {printable(name)}): {_DEQUANTIZE}"
    return None


def explain_names(names: Collection[str], table: NameTable) -> str | None:
    """Why names are none of `table`; None if nothing is known.

    Args:
      names: of all tensors.
      table: the format that `config.json` says.
    """
    lora = [name for name in names if any(part in name for part in _LORA)]
    if lora:
        what = (
            "an adapter (LoRA), not a model"
            if len(lora) == len(names)
            else "an adapter (LoRA) in it"
        )
        return f"the weights hold {what} ({printable(lora[0])}): {_MERGE}"
    strange = [
        name for name in names if table.to_native(name) is None and not table.is_dropped(name)
    ]
    if len(strange) < _FEW:
        return None
    sample = strange[:: -(-len(strange) // _SAMPLE)]
    for other in (table, *(t for t in TABLES.values() if t is not table)):
        if other is not table and 2 * sum(other.to_native(n) is not None for n in sample) > len(
            sample
        ):
            return (
                f"config.json is of the {table.key} format, but the weights have {other.key} names; take "
                "both from one repository"
            )
        if prefix := _prefix(sample, other):
            tool = " (by PEFT: merge_and_unload takes it off)" if "base_model." in prefix else ""
            return (
                f"the names of the weights begin with {prefix!r}, which a tool has put before those of "
                f"Janus{tool}: save the state dict of the model inside, or take the prefix off the names"
            )
    return None


def _prefix(names: list[str], table: NameTable) -> str | None:
    """What stands before the names of `table` in more than half of `names`."""
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for depth in range(1, min(len(parts), _DEPTH + 1)):
            if table.to_native(".".join(parts[depth:])) is not None:
                found[".".join(parts[:depth]) + "."] += 1
                break
    prefix, count = found.most_common(1)[0] if found else ("", 0)
    return printable(prefix, 60) if 2 * count > len(names) else None
