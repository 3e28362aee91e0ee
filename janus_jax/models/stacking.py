"""Parameters between the scanned layout (stacked blocks) and the unrolled one (a block a layer)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.config import JanusConfig

# Sub-module -> name of its repeated block.
REPEATED = {"siglip": "blocks", "decoder": "layers"}


def _stack(*leaves: Any) -> Any:
    return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)


def stack_layers(params: Mapping[str, Any], config: JanusConfig) -> dict[str, Any]:
    """`layers_0`, `layers_1`, ... -> `layers` with a leading layer axis (and SigLIP's `blocks`).

    Sub-modules that are absent or already stacked are left as they are. Works on jax and numpy
    arrays.

    Raises:
      ValueError: some but not all of the layers are there.
    """
    out = dict(params)
    for module, name in REPEATED.items():
        count = getattr(config, module).layers
        if module not in out or name in out[module]:
            continue
        rest = dict(out[module])
        try:
            layers = [rest.pop(f"{name}_{i}") for i in range(count)]
        except KeyError as error:
            raise ValueError(f"{module} lacks {error.args[0]} of {count} {name}") from None
        if extra := sorted(key for key in rest if key.startswith(f"{name}_")):
            raise ValueError(f"{module} has more than {count} {name}: {extra}")
        out[module] = {**rest, name: jax.tree.map(_stack, *layers)}
    return out


def unstack_layers(params: Mapping[str, Any], config: JanusConfig) -> dict[str, Any]:
    """The inverse of `stack_layers`.

    Raises:
      ValueError: the leading axis is not the number of layers in `config`.
    """
    out = dict(params)
    for module, name in REPEATED.items():
        count = getattr(config, module).layers
        if module not in out or name not in out[module]:
            continue
        rest = dict(out[module])
        stacked = rest.pop(name)
        lengths = {leaf.shape[0] for leaf in jax.tree.leaves(stacked)}
        if lengths != {count}:
            raise ValueError(f"{module}/{name} stacks {sorted(lengths)} layers, config has {count}")
        for i in range(count):
            rest[f"{name}_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
        out[module] = rest
    return out
