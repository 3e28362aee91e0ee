"""Official PyTorch state dicts to and from our parameter tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from janus_jax.config import JanusConfig
from janus_jax.errors import UserError
from janus_jax.models import Janus, init_params, stack_layers, unstack_layers
from janus_jax.weights.names import is_dropped, to_official, to_ours

_SHOWN = 8  # names listed for each kind of problem; the rest is counted


def params_from_official(
    state: Mapping[str, np.ndarray], config: JanusConfig, dtype: Any = None
) -> dict[str, Any]:
    """Converts a whole official checkpoint.

    Args:
      state: official tensor name -> numpy array (bfloat16 as `ml_dtypes.bfloat16`). Each value is
        read once, so a lazy mapping over files works.
      config: the architecture; `scan_layers` decides the layout of the result.
      dtype: dtype of the result; None keeps what the checkpoint has.

    Returns:
      Parameters as nested dicts of numpy arrays, complete for `models.Janus(config)`.

    Raises:
      UserError: tensors are missing, unexpected or of the wrong shape; one message names them all.
    """
    expected = _expected_shapes(config)
    flat: dict[str, np.ndarray] = {}
    unexpected, wrong = [], []
    for name in state:
        if is_dropped(name):
            continue
        found = to_ours(name)
        if found is None or found[0] not in expected:
            unexpected.append(name)
            continue
        path, layout = found
        value = np.asarray(state[name])
        want = layout.torch_shape(expected[path])
        if value.shape != want:
            wrong.append(f"{name} is {list(value.shape)} but should be {list(want)}")
            flat[path] = value  # present, so not missing as well
            continue
        value = layout.to_ours(value)
        flat[path] = value if dtype is None else value.astype(dtype)
    missing = [to_official(path)[0] for path in expected if path not in flat]
    problems = [
        f"{len(names)} {kind}: {_some(names)}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", wrong))
        if names
    ]
    if problems:
        raise UserError(
            f"the checkpoint does not fit {config.name} ({'; '.join(problems)}); "
            "check that the config.json belongs to these weights"
        )
    params = _nest(flat)
    return stack_layers(params, config) if config.scan_layers else params


def params_to_official(params: Mapping[str, Any], config: JanusConfig) -> dict[str, np.ndarray]:
    """The inverse of `params_from_official`, without the tensors that nothing uses.

    Takes either layout of the layers.

    Raises:
      UserError: a parameter has no official name.
    """
    state = {}
    for path, value in _leaves(unstack_layers(params, config)):
        found = to_official(path)
        if found is None:
            raise UserError(f"parameter {path} has no name in the official format")
        state[found[0]] = np.ascontiguousarray(found[1].to_torch(np.asarray(value)))
    return state


def _expected_shapes(config: JanusConfig) -> dict[str, tuple[int, ...]]:
    model = Janus(config.replace(scan_layers=False))
    tree = jax.eval_shape(lambda key: init_params(model, key), jax.random.key(0))
    return {path: leaf.shape for path, leaf in _leaves(tree)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _some(names: list[str]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
