"""What a section is told, and the random weights that most of them need."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inference.models import MODELS
from janus_jax.config import JanusConfig, Policy
from janus_jax.models.stacking import REPEATED

PROMPT_LENGTH = 30
GIB = 2**30
_SMALL = 2**18  # elements; fewer are drawn on the host, which compiles nothing

Results = Iterator[dict[str, Any]]  # each value adds to, or replaces a part of, what was measured


@dataclasses.dataclass(frozen=True)
class Setting:
    """Of all sections.

    Attributes:
      device: "gpu" (or "tpu") or "cpu".
      model, large: names of the models, of `MODELS`.
      images: numbers of pictures that are drawn at once.
      repeats: timed runs of one thing.
      rows: packed rows of a training step, the numbers to try.
      steps: kinds of training step, as "attention+remat".
      scratch: where each section leaves its results.
    """

    device: str
    model: str
    large: str
    images: tuple[int, ...]
    repeats: int
    rows: tuple[int, ...]
    steps: tuple[str, ...]
    scratch: Path

    @property
    def dtype(self) -> str:
        return "bfloat16"

    def config(self, large: bool = False) -> JanusConfig:
        return MODELS[self.large if large else self.model].replace(scan_layers=False)

    def earlier(self, section: str) -> dict[str, Any]:
        """What an earlier section of the same run measured; {} where it did not run."""
        path = self.scratch / f"{section}.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def bandwidth(self) -> float | None:
        """Bytes/s that a copy reads and writes, together."""
        return self.earlier("facts").get("copy_bytes_per_s")

    @property
    def matmul_rate(self) -> float | None:
        """Operations/s of a large product in bfloat16."""
        return self.earlier("facts").get("matmul_flops")


def packed_weights(config: JanusConfig, policy: Policy, int8: bool = False) -> Any:
    """What `janus_jax.inference.fuse_params` makes, with random numbers of unit gain, made on the device."""
    import jax

    from janus_jax import models
    from janus_jax.inference import fuse_params

    model = models.JanusModel(config, policy)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), method="init_all")["params"])
    shapes = jax.eval_shape(lambda p: fuse_params(p, config, policy, int8=int8), params)
    return fill(shapes)


def fill(shapes: Any) -> Any:
    """Random arrays for a tree of shapes; products with them keep the size of their inputs."""
    import jax

    quantized = lambda x: hasattr(x, "qvalue")
    leaves, tree = jax.tree.flatten_with_path(shapes, is_leaf=quantized)
    values = []
    for i, (path, leaf) in enumerate(leaves):
        names = [str(getattr(key, "key", key)) for key in path]
        if quantized(leaf):
            inputs = sum(n == 1 for n in leaf.scale.shape) or 1
            values.append(_quantized(i, leaf.qvalue.shape, inputs))
        else:
            values.append(_random(names, leaf.shape, np.dtype(leaf.dtype), i))
    return jax.block_until_ready(jax.tree.unflatten(tree, values))


def _random(names: list[str], shape: tuple[int, ...], dtype: np.dtype, seed: int) -> Any:
    import jax
    import jax.numpy as jnp

    name = names[-1]
    if "bias" in name:
        return jnp.zeros(shape, dtype)
    if "norm" in name or name == "scale":
        return jnp.ones(shape, dtype)
    # Flax kernels end in (in, out), packed weights in their inputs; rows of tables are of size one.
    size = math.prod(shape[:-1]) if name == "kernel" else shape[-1] if len(shape) > 1 else 1
    if name == "kernel" and REPEATED.get(names[0], "") in names:
        size //= shape[0]  # stacked layers
    gain = 1.0 if name in ("embed", "codes", "embedding") else size**-0.5
    stored = jnp.bfloat16 if dtype == np.uint16 else jnp.dtype(dtype)
    if math.prod(shape) < _SMALL:
        unit = np.random.default_rng(seed).standard_normal(shape, np.float32)
        values = jnp.asarray(unit * gain).astype(stored)
    else:
        values = _normal(seed, gain, shape, stored)
    return jax.lax.bitcast_convert_type(values, jnp.uint16) if dtype == np.uint16 else values


def _normal(seed: int, gain: float, shape: tuple[int, ...], dtype: Any) -> Any:
    import jax

    return _makers()[0](jax.random.key(seed, impl="rbg"), gain, shape, np.dtype(dtype))


def _quantized(seed: int, shape: tuple[int, ...], inputs: int) -> Any:
    import jax

    gain = math.prod(shape[len(shape) - inputs :]) ** -0.5
    return _makers()[1](jax.random.key(seed, impl="rbg"), gain, shape, inputs)


@functools.cache
def _makers() -> tuple[Any, Any]:
    """Two functions that compile once a shape, not once a weight."""
    import jax
    import jax.numpy as jnp

    from janus_jax.inference.fused_params import quantize

    def normal(key, gain, shape, dtype):
        return (jax.random.normal(key, shape, jnp.bfloat16) * gain).astype(dtype)

    def quantized(key, gain, shape, inputs):
        return quantize(normal(key, gain, shape, jnp.float32), inputs)

    return tuple(jax.jit(make, static_argnums=(2, 3)) for make in (normal, quantized))
