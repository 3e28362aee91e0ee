"""Where arrays live: the mesh, the sharding rules and multi-process set-up."""

from janus_jax.parallel.activations import MeshLayout
from janus_jax.parallel.mesh import (
    AXES,
    BATCH_AXES,
    batch_sharding,
    global_batch,
    make_mesh,
    parse_mesh,
    replicated,
)
from janus_jax.parallel.multihost import (
    ending_together,
    first_only,
    initialize,
    is_first,
    stop_together,
    to_host,
    who_lacks,
)
from janus_jax.parallel.rules import (
    param_shardings,
    param_specs,
    shard_params,
    state_shardings,
)

__all__ = [
    "AXES",
    "BATCH_AXES",
    "MeshLayout",
    "batch_sharding",
    "ending_together",
    "first_only",
    "global_batch",
    "initialize",
    "is_first",
    "make_mesh",
    "param_shardings",
    "param_specs",
    "parse_mesh",
    "replicated",
    "shard_params",
    "state_shardings",
    "stop_together",
    "to_host",
    "who_lacks",
]
