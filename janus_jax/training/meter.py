"""How well a stage uses its machine: operations, room in the rows, memory. All of it is known to the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.models import JanusModel
from janus_jax.parallel.chips import peak_flops
from janus_jax.training.content import content, fill
from janus_jax.training.flops import Flops, StepFlops
from janus_jax.training.stages import Stage

GIB = 2**30


class Meter:
    """Measures one stage, from its batches on the host; the step itself knows nothing of it.

    In a job of several processes each counts its own rows and devices, so that what the first one writes is
    its share.

    Args:
      stage: of the run.
      model: its architecture and remat.
      params: full tree that the stage starts from; arrays or shapes.
      mesh: of the run.
      peak_tflops: TFLOP/s of one device; 0 takes what `chips.peak_flops` knows of its kind.
    """

    def __init__(
        self,
        stage: Stage,
        model: JanusModel,
        params: Any,
        mesh: jax.sharding.Mesh,
        peak_tflops: float = 0.0,
    ):
        self._flops = StepFlops(model.config, stage, params, model.remat)
        self._remat = model.remat
        self._patches = model.config.siglip.num_patches
        self._devices, self._local = mesh.size, list(mesh.local_devices)
        self.peak = peak_tflops * 1e12 or peak_flops(self._local[0].device_kind)

    def step(self, batch: Mapping[str, np.ndarray]) -> tuple[dict[str, float], Flops | None]:
        """(shares of the rows' room, operations) of this process's part of a batch."""
        found = content(batch, self._patches)
        return fill(batch, found), self._flops(found)

    def rates(
        self, tokens: float, flops: Sequence[Flops | None], seconds: float
    ) -> dict[str, float]:
        """Of steps that took `seconds` together.

        Args:
          tokens: of all of them, in all processes.
          flops: of each, as `step` gave them.

        Returns:
          `tokens_per_s_per_device`; `tflops_per_s_per_device` (of the model) unless the objective is of
          one's own; where the device's peak is known, its share `mfu`, and with remat also `hfu`.
        """
        rates = {"tokens_per_s_per_device": tokens / seconds / self._devices}
        known = [f for f in flops if f is not None]
        if len(known) < len(flops):
            return rates
        per_device = 1 / seconds / len(self._local)
        model = sum(f.model for f in known) * per_device
        rates["tflops_per_s_per_device"] = model / 1e12
        if self.peak:
            rates["mfu"] = model / self.peak
            if self._remat != "none":
                rates["hfu"] = sum(f.hardware for f in known) * per_device / self.peak
        return rates

    def memory(self) -> dict[str, float]:
        """`memory_gib` and `peak_memory_gib` of the fullest device of this process; {} where it does not say.

        The peak is since the process began.
        """
        stats = [s for d in self._local if (s := d.memory_stats())]
        names = {"memory_gib": "bytes_in_use", "peak_memory_gib": "peak_bytes_in_use"}
        return {
            name: max(s[field] for s in stats) / GIB
            for name, field in names.items()
            if stats and all(field in s for s in stats)
        }
