"""Writing a tree of arrays that does not fit into memory: each array is made when its turn comes.

Orbax writes such a tree like any other; only the type handler of its leaves differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from janus_jax.checkpoints import LazyArray


class _LazyHandler(ocp.type_handlers.NumpyHandler):
    """Makes and writes one array after the other; what is on disk is that of numpy arrays."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self,
        values: Sequence[LazyArray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        for i in sorted(range(len(values)), key=lambda i: values[i].turn):
            array = np.ascontiguousarray(values[i].load())
            for future in await super().serialize([array], [infos[i]], [args[i]]):
                future.result()
        return []


def save_lazily(path: Path, tree: Any) -> None:
    """Writes a tree of `LazyArray` to a new directory, which appears only when it is complete.

    `storage.read_tree` reads it. An error of a `load` ends the writing and is raised.
    """
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _LazyHandler()))
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))
