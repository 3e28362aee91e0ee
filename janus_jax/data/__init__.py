"""Data: sources -> sequences -> mixture by ratio -> packed batches, on Grain."""

from janus_jax.data.mixture import TASKS, mixed_batches, plain_batches
from janus_jax.data.packing import PackedShape, pack

__all__ = [
    "TASKS",
    "PackedShape",
    "mixed_batches",
    "pack",
    "plain_batches",
]
