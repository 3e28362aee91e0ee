"""Fresh parameters, drawn in few and large pieces.

`model.init` draws every parameter on its own and XLA compiles a random generator for each: a
minute for a small model on a CPU. Here all small parameters are cut from one draw. Both use the
distributions in `layers.STDDEV` and `layers.CONSTANT`, but for the scale of residual branches.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp

from janus_jax.models.janus import JanusModel
from janus_jax.models.layers import CONSTANT, STDDEV
from janus_jax.models.stacking import REPEATED, unstack_layers

Params = dict[str, Any]

# The last kernel of a residual branch starts smaller by 1/sqrt(2 * layers), as in GPT-2 (section 2.3 of its
# report), so that the sum of all branches does not grow with depth.
RESIDUAL_OUTPUTS = frozenset({"o_proj", "down_proj", "proj", "fc2"})

# Larger ones are drawn alone, in their own shape, so that they can be sharded from the start.
_DRAWN_TOGETHER = 2**20


@functools.partial(jax.jit, static_argnames="model")
def init_params(model: JanusModel, key: jax.Array) -> Params:
    """Fresh parameters of every sub-module, as plain nested dicts in `policy.param_dtype`.

    The numbers are those of the scanned layout, whatever `config.scan_layers`, so both layouts
    start as the same function. Works under `jax.eval_shape`, and under `jax.jit` with
    `out_shardings`.
    """
    scanned = model.clone(config=model.config.replace(scan_layers=True))
    shapes = jax.eval_shape(lambda key: scanned.init(key, method="init_all")["params"], key)
    leaves, tree = jax.tree.flatten_with_path(shapes)
    params = jax.tree.unflatten(tree, _draw(leaves, key))
    return params if model.config.scan_layers else unstack_layers(params, model.config)


def _draw(leaves: list[tuple[Any, jax.ShapeDtypeStruct]], key: jax.Array) -> list[jax.Array]:
    """Values of the (path, shape) leaves of a scanned tree."""
    names = [[entry.key for entry in path] for path, _ in leaves]
    sizes = [math.prod(leaf.shape) for _, leaf in leaves]
    random = [i for i, path in enumerate(names) if path[-1] not in CONSTANT]
    together = [i for i in random if sizes[i] <= _DRAWN_TOGETHER]
    alone = [i for i in random if sizes[i] > _DRAWN_TOGETHER]

    keys = jax.random.split(key, len(alone) + 1)
    noise = jax.random.normal(keys[0], (sum(sizes[i] for i in together),))
    # Without the barrier the generator would be fused, and compiled, into every slice below.
    noise = jax.lax.optimization_barrier(noise)
    ends = dict(zip(together, itertools.accumulate(sizes[i] for i in together), strict=True))
    own_key = dict(zip(alone, keys[1:], strict=True))

    values = []
    for i, (path, (_, leaf)) in enumerate(zip(names, leaves, strict=True)):
        if path[-1] in CONSTANT:
            values.append(jnp.full(leaf.shape, CONSTANT[path[-1]], leaf.dtype))
            continue
        if i in own_key:
            unit = jax.random.normal(own_key[i], leaf.shape)
        else:
            unit = noise[ends[i] - sizes[i] : ends[i]].reshape(leaf.shape)
        stacked = REPEATED.get(path[0]) == path[1]
        stddev = STDDEV[path[-1]](leaf.shape[1:] if stacked else leaf.shape)
        if stacked and RESIDUAL_OUTPUTS.intersection(path):
            stddev *= (2 * leaf.shape[0]) ** -0.5
        values.append((unit * stddev).astype(leaf.dtype))
    return values
