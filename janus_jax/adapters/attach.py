"""An adapter that was made elsewhere, put beside the kernels of a parameter tree."""

from __future__ import annotations

from typing import Any

import numpy as np

from janus_jax.errors import UserError
from janus_jax.models import Params
from janus_jax.models.layers import LORA_A, LORA_B, LORA_SCALE
from janus_jax.models.stacking import REPEATED
from janus_jax.param_groups import merge_params

_LEAVES = (LORA_A, LORA_B, LORA_SCALE)


def attach_lora(params: Params, adapter: Params) -> Params:
    """Parameters with the leaves of an adapter beside their kernels; `merge_lora` then adds it to them.

    Where layers are stacked, so is the adapter: layers that it is not on get zeros, and ranks the largest of them.

    Args:
      params: in either layout; arrays, or what has a `shape`, such as lazy ones. They are not read.
      adapter: `lora_a` [I, r], `lora_b` [r, O] and `lora_scale` [] in the unrolled layout.

    Raises:
      UserError: there is no such kernel, it has another shape, or there is an adapter on it.
    """
    for module, name in REPEATED.items():
        if module in adapter and name in params.get(module, {}):
            layers, rest = {}, {}
            for key, value in adapter[module].items():
                stem, _, index = key.rpartition("_")
                (layers if stem == name else rest)[int(index) if stem == name else key] = value
            if layers:
                rest = {**rest, name: _stacked(layers, params[module][name])}
            adapter = {**adapter, module: rest}
    _check(params, adapter, ())
    return merge_params(params, adapter)


def _stacked(layers: dict[int, Params], params: Params) -> Params:
    """The adapters of single layers, {index: tree}, as one of stacked layers."""
    keys = dict.fromkeys(key for tree in layers.values() for key in tree)
    if LORA_A not in keys:
        return {
            key: _stacked({i: tree[key] for i, tree in layers.items() if key in tree}, params.get(key, {}))
            for key in keys
        }  # fmt: skip
    count = getattr(params.get("kernel"), "shape", (0,))[0]
    count = max(count, *(i + 1 for i in layers))  # too many are found by their shape
    first = next(iter(layers.values()))
    rank = max(tree[LORA_A].shape[-1] for tree in layers.values())
    (inputs, _), (_, outputs) = first[LORA_A].shape, first[LORA_B].shape
    a = np.zeros((count, inputs, rank), np.result_type(*(t[LORA_A] for t in layers.values())))
    b = np.zeros((count, rank, outputs), np.result_type(*(t[LORA_B] for t in layers.values())))
    scale = np.zeros((count,), np.float32)
    for i, tree in layers.items():
        own = tree[LORA_A].shape[-1]
        a[i, :, :own], b[i, :own], scale[i] = tree[LORA_A], tree[LORA_B], tree[LORA_SCALE]
    return {LORA_A: a, LORA_B: b, LORA_SCALE: scale}


def _check(params: Any, adapter: Params, path: tuple[str, ...]) -> None:
    """Raises UserError unless every pair of factors has a kernel of its shape."""
    if LORA_A not in adapter:
        for key, value in adapter.items():
            _check(params.get(key, {}) if isinstance(params, dict) else {}, value, (*path, key))
        return
    where = "/".join(path)
    kernel = getattr(params.get("kernel") if isinstance(params, dict) else None, "shape", None)
    if kernel is None:
        raise UserError(f"the adapter is on {where}, which the model does not have")
    if LORA_A in params:
        raise UserError(f"there is an adapter on {where} already: merge it first")
    a, b = adapter[LORA_A].shape, adapter[LORA_B].shape
    if (*a[:-1], b[-1]) != tuple(kernel) or (*a[:-2], a[-1]) != b[:-1]:
        raise UserError(
            f"the adapter on {where} is of another model: its factors {list(a)} and {list(b)} do not fit the "
            f"kernel {list(kernel)}"
        )
