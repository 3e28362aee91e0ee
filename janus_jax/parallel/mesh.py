"""The device mesh, and how batches lie on it.

Three named axes, always all three; one device is the 1x1x1 mesh, never a special case:

  data    copies of the model, each with its own part of the batch
  fsdp    parameters and optimizer state split as well as the batch
  tensor  heads, feed-forward width and vocabulary split (Megatron style)

The axes are `AxisType.Auto`: the compiler propagates shardings from the parameters and the batch.
`jax.make_mesh` would make them Explicit, under which an embedding lookup needs an `out_sharding`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A ("data", "fsdp", "tensor") mesh over the first data * fsdp * tensor devices.

    Args:
      data: copies of the model. Any one of the three may be -1: "as many as are left".
      fsdp: shards of the parameters.
      tensor: shards of each matrix product.
      devices: `jax.devices()` by default.

    Raises:
      UserError: a size is neither positive nor -1, two are -1, the product exceeds the number of
        devices, or -1 does not come out even.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    wanted = ", ".join(f"{name}={size}" for name, size in sizes.items())
    if any(size != -1 and size < 1 for size in sizes.values()):
        raise UserError(f"mesh axes must be positive, or -1 for the rest; got {wanted}")
    rest = [name for name, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise UserError(f"only one mesh axis can be -1 (the rest); got {wanted}")
    if rest:
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if len(devices) % fixed:
            raise UserError(f"mesh {wanted} does not divide the {len(devices)} devices")
        sizes[rest[0]] = len(devices) // fixed
    count = math.prod(sizes.values())
    if count > len(devices):
        raise UserError(f"mesh {wanted} needs {count} devices, there are {len(devices)}")
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"mesh {wanted} uses {count} of {len(devices)} devices; a job of several processes "
            "must use all of them: set one axis to -1"
        )
    return jax.make_mesh(
        tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count]
    )


def parse_mesh(text: str, name: str = "mesh") -> Mesh | None:
    """ "data=2,tensor=4" -> a mesh; "" is None.

    Args:
      text: sizes of `data` and `tensor`, the axes of inference.
      name: of the option, for messages.

    Raises:
      UserError: another form, or more devices than there are.
    """
    if not text:
        return None
    try:
        sizes = {axis: int(size) for axis, size in (part.split("=") for part in text.split(","))}
    except ValueError:
        sizes = {}
    if not sizes or set(sizes) - {"data", "tensor"}:
        raise UserError(f"{name} must look like data=2,tensor=4, not {text!r}")
    return make_mesh(**sizes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First axis over data and fsdp together, the other axes whole."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def process_rows(
    mesh: Mesh, batch_size: int, devices: Collection[jax.Device] | None = None
) -> np.ndarray:
    """The rows of a batch that some devices hold parts of: int [rows], ascending.

    Where `tensor` reaches over several processes, they hold the same rows; where the mesh follows the wiring
    of the machines, those of a process need not be next to each other.

    Args:
      mesh: from `make_mesh`.
      batch_size: rows, over all processes.
      devices: those of this process by default.

    Raises:
      UserError: the rows do not divide over the mesh.
    """
    shards = _batch_shards(mesh)
    if batch_size % shards:
        raise UserError(f"{batch_size} rows do not divide over {shards} devices (data x fsdp)")
    each = batch_size // shards
    held = _held_shards(mesh, mesh.local_devices if devices is None else devices)
    return (np.array(held)[:, None] * each + np.arange(each)).ravel()


def global_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's part of a batch on the mesh.

    Args:
      batch: pytree of numpy arrays [B, ...], the rows `process_rows` of this process, in that order; scalars
        are replicated.
      mesh: from `make_mesh`.

    Returns:
      The same pytree of global jax arrays, with the rows of all processes, sharded by `batch_sharding`.

    Raises:
      UserError: the rows do not divide over the devices; the message names the array.
    """
    rows, whole = batch_sharding(mesh), replicated(mesh)
    held = _held_shards(mesh, mesh.local_devices)

    def put(path, leaf):
        leaf = np.asarray(leaf)
        if not leaf.ndim:
            return jax.make_array_from_process_local_data(whole, leaf)
        if leaf.shape[0] % len(held):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise UserError(
                f"batch array {name!r} has {leaf.shape[0]} rows a process, which do not divide "
                f"over {len(held)} devices (data x fsdp)"
            )
        if jax.process_count() == 1:
            return jax.device_put(leaf, rows)
        each = leaf.shape[0] // len(held)

        def part(index):
            start = held.index((index[0].start or 0) // each) * each
            return leaf[start : start + each]

        shape = (each * _batch_shards(mesh), *leaf.shape[1:])
        return jax.make_array_from_callback(shape, rows, part)

    return jax.tree_util.tree_map_with_path(put, batch)


def _held_shards(mesh: Mesh, devices: Collection[jax.Device]) -> list[int]:
    """Which of the equal parts of a batch lie on some devices, ascending."""
    shards = _batch_shards(mesh)
    lies = batch_sharding(mesh).devices_indices_map((shards,))
    return sorted({lies[device][0].indices(shards)[0] for device in devices})


def _batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
