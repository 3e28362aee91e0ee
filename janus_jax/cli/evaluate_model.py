"""The flags of `janus-evaluate` that name a model, and the model that they name."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from janus_jax.errors import UserError

if TYPE_CHECKING:
    from janus_jax.inference import Janus


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """--checkpoint and how it is loaded."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR|ID", help="a model or run directory, or PyTorch weights")
    add("--adapter", metavar="DIR|ID", help="a LoRA adapter for it, as PEFT writes it")
    add(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="auto: float32 on a CPU, else bfloat16",
    )
    add("--int8", default="", metavar="PARTS", help="'weights', 'cache' or 'weights,cache'")
    add("--mesh", default="", metavar="SIZES", help="several devices, such as data=2,tensor=4")
    add("--memory_gb", type=float, metavar="GB", help="of a batch, beside the weights")


def check_model_flags(flags: argparse.Namespace) -> None:
    """Raises UserError for what can be seen to be wrong without the model."""
    if not flags.checkpoint:
        raise UserError("no model to score: give --checkpoint, a model or run directory")
    if flags.memory_gb is not None and not 0 < flags.memory_gb * 2**30 < math.inf:
        raise UserError(f"--memory_gb must be above 0 and finite, got {flags.memory_gb}")


def load(flags: argparse.Namespace) -> tuple[Janus, dict[str, Any]]:
    """The model, and what its answers depend on."""
    from janus_jax.config import Policy  # after the flags: JAX takes seconds to import
    from janus_jax.evaluation.settings import fingerprint_of_files, model_settings
    from janus_jax.inference import Janus, enable_compilation_cache
    from janus_jax.parallel import parse_mesh

    enable_compilation_cache()
    int8 = [part for part in flags.int8.split(",") if part]
    policy = Policy.auto(flags.dtype)
    janus = Janus.load(
        flags.checkpoint,
        policy=policy,
        int8=int8,
        mesh=parse_mesh(flags.mesh, "--mesh"),
        memory_limit=None if flags.memory_gb is None else int(flags.memory_gb * 2**30),
        adapter=flags.adapter,
    )
    further = {"dtype": str(policy.compute_dtype), "int8": ",".join(sorted(int8))}
    if flags.adapter:
        further["adapter"] = flags.adapter
        further["adapter_fingerprint"] = fingerprint_of_files([flags.adapter])
    return janus, model_settings(flags.checkpoint, janus.origin, **further)


def paper_model(janus: Janus) -> str | None:
    """The model of the paper that has this architecture: "Janus", "Janus-Pro-1B", "Janus-Pro-7B", or None.

    Janus-1.3B and Janus-Pro-1B are one architecture: the name and the chat template tell them apart.
    """
    from janus_jax.config import JANUS_1_3B, JANUS_PRO_1B, JANUS_PRO_7B

    same = lambda preset: preset.replace(name=janus.config.name, scan_layers=False) == janus.config
    if same(JANUS_PRO_7B):
        return "Janus-Pro-7B"
    if not same(JANUS_PRO_1B):
        return None
    first = JANUS_1_3B.name in janus.config.name.lower()
    old = janus.processor.config.template == "deepseek_old"
    return "Janus" if first or old else "Janus-Pro-1B"
