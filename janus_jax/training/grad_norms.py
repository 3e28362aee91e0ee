"""The norm of the gradient, part by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax


def grad_norms(grads: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Global norm of each top-level group of a gradient, before clipping.

    The squares of these sum up to the square of the whole norm.

    Args:
      grads: nested dicts as `TrainState.trainable`.

    Returns:
      "grad_norm_GROUP" -> float32 scalar, such as "grad_norm_decoder".
    """
    return {f"grad_norm_{group}": optax.global_norm(tree) for group, tree in grads.items()}
