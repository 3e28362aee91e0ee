"""The janus_jax side of `benchmarks/training.py`, as `benchmarks.inference.worker` runs it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.inference.meter import Meter, versions


class NativeStep:
    """The training step as `train.py` makes it."""

    def do_load(
        self,
        directory: str,
        rows: str,
        dtype: str,
        device: str,
        stage: str,
        remat: str,
        attention: str,
        targets_at_once: int,
        scan: bool,
        learning_rate: float,
        threads: int,
    ) -> dict[str, Any]:
        """Reads weights and rows; parameters and optimizer are in float32, arithmetic in `dtype`."""
        del threads  # those of its cores
        import jax

        from janus_jax.config import Policy
        from janus_jax.errors import UserError
        from janus_jax.interop.conversion.convert import nest
        from janus_jax.interop.conversion.source import open_source
        from janus_jax.models import JanusModel, stack_layers
        from janus_jax.models.packed_attention import resolve_back_end
        from janus_jax.training import TRAINABLE, Stage, init_state, make_step

        began = time.perf_counter()
        self.device = jax.devices()[0]
        if (self.device.platform == "gpu") != (device == "cuda"):
            raise UserError(f"jax runs on {self.device.platform}, not on {device}")
        if device == "cuda" and dtype == "float32":  # no TF32, as in torch
            jax.config.update("jax_default_matmul_precision", "highest")
        source = open_source(directory)
        config = source.config.replace(scan_layers=scan)
        arrays = sorted(source.arrays.items(), key=lambda item: item[1].turn)
        params = nest({path: np.asarray(array.load(), np.float32) for path, array in arrays})
        del source, arrays
        if scan:
            params = stack_layers(params, config)
        params = jax.device_put(params)
        policy = Policy("float32", dtype)
        platform, size = self.device.platform, config.decoder.head_dim
        model = JanusModel(
            config,
            policy,
            remat=remat,
            attention=resolve_back_end(attention, platform, size, policy.compute),
            targets_at_once=targets_at_once,
        )
        setting = Stage(stage, "janus", TRAINABLE[stage], 1, learning_rate, 0, 1, ratio=(2, 3, 5))
        self.state, self.frozen = init_state(setting, params)
        self.step = make_step(model, setting, pad_id=0)
        with np.load(rows) as batch:
            self.batch = jax.device_put(dict(batch))
        jax.block_until_ready((self.state, self.frozen, self.batch))
        self.done = 0
        return {
            "seconds": time.perf_counter() - began,
            "device": self.device.device_kind,
            "attention": model.attention,
            "versions": versions(),
        }

    def do_gate(self, steps: int) -> dict[str, list[float]]:
        """The first steps: loss and norm of the gradient of each, before it is clipped, and seconds."""
        found = [self._step() for _ in range(steps)]
        return {name: [step[name] for step in found] for name in found[0]}

    def do_run(self, steps: int) -> dict[str, Any]:
        """Seconds of each of `steps` steps; peak memory in bytes."""
        with Meter() as meter:
            seconds = [self._step()["seconds"] for _ in range(steps)]
        stats = self.device.memory_stats() or {}
        peak = stats.get("peak_bytes_in_use") or meter.resident
        return {"seconds": seconds, "cpu": meter.cpu, "peak": peak, "others": meter.others}

    def do_matmul(self, dtype: str, size: int) -> float:
        """Operations/s of a square product, the best of ten."""
        import jax
        import jax.numpy as jnp

        x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
        multiply = jax.jit(lambda a: a @ a)
        jax.block_until_ready(multiply(x))
        took = []
        for _ in range(10):
            began = time.perf_counter()
            jax.block_until_ready(multiply(x))
            took.append(time.perf_counter() - began)
        return 2 * size**3 / min(took)

    def _step(self) -> dict[str, float]:
        import jax

        began = time.perf_counter()
        self.state, metrics = self.step(self.state, self.frozen, self.batch, self.done)
        jax.block_until_ready((self.state, metrics))
        self.done += 1
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "loss": float(metrics["loss"]),
            "grad_norm": float(metrics["grad_norm"]),
        }
