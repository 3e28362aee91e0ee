"""TPUs that are not here: their devices, to compile for, and what a chip has."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from janus_jax.errors import UserError, nearest
from janus_jax.parallel.chips import peak_flops

# So that libtpu looks for no TPU, neither on this machine nor on a metadata server.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it only compiles: others may do so at the same time
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any valid one: the topology asked for decides
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip has, by the vendor (cloud.google.com/tpu/docs: v5e, v5p, v6e).

    Attributes:
      kind: as `jax.Device.device_kind` names it.
      hbm_gib: memory; the compiler itself keeps a little of it back.
      ici_gbytes: bytes a second that all its links to other chips carry together, one way, in 1e9.
      axes: of the torus, and `longest` side.
    """

    kind: str
    hbm_gib: float
    ici_gbytes: float
    axes: int
    longest: int

    @property
    def flops(self) -> float:
        """Operations a second in bfloat16, dense."""
        return peak_flops(self.kind)


CHIPS = {
    "v4": Chip("TPU v4", 32, 300, 3, 16),
    "v5e": Chip("TPU v5 lite", 16, 200, 2, 16),
    "v5p": Chip("TPU v5", 95, 600, 3, 28),
    "v6e": Chip("TPU v6 lite", 32, 448, 2, 16),
}


def has_libtpu() -> bool:
    """Whether libtpu is installed; a directory of that name is not enough."""
    found = importlib.util.find_spec("libtpu")
    return found is not None and found.origin is not None


def chip_of(topology: str, name: str = "topology") -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
      UserError: another form, an unknown chip, or a shape that none has; `name` is the option's.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not match:
        raise UserError(
            f"{name} must be a TPU and its shape, such as v5e:16x16 (256 chips of v5e) or v5p:4x4x4, not "
            f"{topology!r}"
        )
    if match[1] not in CHIPS:
        raise UserError(
            f"{name}: no TPU {match[1]!r} ({', '.join(CHIPS)}); for this machine's devices there is --plan."
            + nearest(match[1].lower(), CHIPS)
        )
    chip, sides = CHIPS[match[1]], [int(n) for n in match[2].split("x")]
    if len(sides) != chip.axes or min(sides) < 1 or max(sides) > chip.longest:
        shape = "x".join("N" * chip.axes)
        raise UserError(
            f"{name}: shapes of {match[1]} are {shape} with sides from 1 to {chip.longest}, not {match[2]}"
        )
    return chip


def topology_devices(topology: str, name: str = "topology") -> list[Any]:
    """Devices of a TPU topology such as "v5e:2x2" or "v5e:1x1", none of which need to be here.

    Raises:
      UserError: libtpu is not installed, or there is no such topology; `name` is the option's.
    """
    chip_of(topology, name)
    if not has_libtpu():
        raise UserError(
            f"{name} {topology} needs libtpu, which compiles without a TPU: "
            f'pip install --target DIR "{_requirement()}", and run this with PYTHONPATH=DIR'
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    alone = set(topology.partition(":")[2].split("x")) == {"1"}
    # libtpu counts in hosts of 2x2 chips unless it is told that a host has one.
    host = {"chips_per_host_bounds": (1, 1, 1)} if alone else {}
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=topology, **host).devices
        )
    except (jax.errors.JaxRuntimeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{name} {topology}: {str(error).splitlines()[0]}; take one chip (v5e:1x1) or whole hosts "
            "(v5e:2x2, v5p:2x2x1)"
        ) from None


def _requirement() -> str:
    """The libtpu that this version of JAX names."""
    import importlib.metadata

    text = " ".join(x for x in importlib.metadata.requires("jax") or () if "libtpu" in x)
    found = re.search(r"libtpu *==[0-9.*]+", text)
    return found[0].replace(" ", "") if found else "libtpu"
