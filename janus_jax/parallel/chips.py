"""How many operations a second a device can do, by its name.

Products of matrices in bfloat16, dense (makers of GPUs also name twice as many, for matrices half of which is
zero), of one JAX device. Where a chip is two devices to JAX (TPU7x), a device has half of the chip's.
"""

from __future__ import annotations

import re

# (pattern of `device_kind`, TFLOP/s, source); the first that matches counts.
_PEAKS: tuple[tuple[str, float, str], ...] = (
    (r"TPU v4\b(?! lite)", 275.0, "docs.cloud.google.com/tpu/docs/v4"),
    (r"TPU v5( lite|e)\b", 197.0, "docs.cloud.google.com/tpu/docs/v5e"),
    (r"TPU v5p?$", 459.0, "docs.cloud.google.com/tpu/docs/v5p"),
    (r"TPU v6( lite|e)\b", 918.0, "docs.cloud.google.com/tpu/docs/v6e"),
    (r"TPU ?v?7x\b", 2307.0 / 2, "docs.cloud.google.com/tpu/docs/tpu7x: 2307 a chip of two"),
    (r"\bGB200\b", 2500.0, "NVIDIA GB200 NVL72 data sheet: 360 PFLOP/s of 72, with sparsity"),
    (r"\bB200\b", 2250.0, "NVIDIA HGX B200 data sheet: 36 PFLOP/s of 8, with sparsity"),
    (r"\bH200 NVL\b", 835.5, "NVIDIA H200 data sheet: 1671, with sparsity"),
    (r"\bH200\b|\bGH200\b", 989.5, "NVIDIA H200 data sheet: 1979, with sparsity"),
    (r"\bH100 NVL\b", 835.5, "NVIDIA H100 NVL data sheet: 1671, with sparsity"),
    (r"\bH100 PCIe\b", 756.5, "NVIDIA H100 data sheet (PCIe): 1513, with sparsity"),
    (r"\bH100\b", 989.5, "NVIDIA H100 data sheet (SXM): 1979, with sparsity"),
    (r"\bA100\b", 312.0, "NVIDIA A100 data sheet"),
    (r"\bL40S\b", 362.0, "NVIDIA L40S data sheet"),
    (r"\bL4\b", 121.0, "NVIDIA L4 data sheet: 242, with sparsity"),
)


def peak_flops(device_kind: str) -> float | None:
    """FLOP/s of `jax.Device.device_kind`, such as "TPU v5 lite" or "NVIDIA H200"; None if unknown."""
    for pattern, tflops, _ in _PEAKS:
        if re.search(pattern, device_kind, re.IGNORECASE):
            return tflops * 1e12
    return None
