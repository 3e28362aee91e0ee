"""TPUs that are not here: their devices, to compile for, and what a chip has."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from janus_jax.errors import UserError, nearest

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
      hbm_gib: memory; the compiler itself keeps a little of it back.
      tflops: bfloat16, dense.
      ici_gbytes: bytes a second that all its links to other chips carry together, one way, in 1e9.
    """

    hbm_gib: float
    tflops: float
    ici_gbytes: float


CHIPS = {
    "v4": Chip(32, 275, 300),
    "v5e": Chip(16, 197, 200),
    "v5p": Chip(95, 459, 600),
    "v6e": Chip(32, 918, 448),
}


def has_libtpu() -> bool:
    """Whether libtpu is installed; a directory of that name is not enough."""
    found = importlib.util.find_spec("libtpu")
    return found is not None and found.origin is not None


def chip_of(topology: str, name: str = "topology") -> Chip:
    """The chip of a topology such as "v5e:16x16".

    Raises:
      UserError: another form, or an unknown chip; `name` is the option's.
    """
    match = re.fullmatch(r"(\w+):\d+(x\d+)*", topology)
    if not match:
        raise UserError(f"{name} must look like v5e:16x16, not {topology!r}")
    if match[1] not in CHIPS:
        raise UserError(
            f"{name}: no chip {match[1]!r} ({', '.join(CHIPS)}).{nearest(match[1], CHIPS)}"
        )
    return CHIPS[match[1]]


def topology_devices(topology: str, name: str = "topology") -> list[Any]:
    """Devices of a TPU topology such as "v5e:2x2", none of which need to be here.

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

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (jax.errors.JaxRuntimeError, ValueError, AttributeError) as error:
        raise UserError(f"{name} {topology}: {str(error).splitlines()[0]}") from None


def _requirement() -> str:
    """The libtpu that this version of JAX names."""
    import importlib.metadata

    text = " ".join(x for x in importlib.metadata.requires("jax") or () if "libtpu" in x)
    found = re.search(r"libtpu *==[0-9.*]+", text)
    return found[0].replace(" ", "") if found else "libtpu"
