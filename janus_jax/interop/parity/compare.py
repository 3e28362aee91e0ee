"""How far what JAX computes is from what was recorded, key by key, with a verdict.

In float32 activations must agree to 1e-4 of the largest recorded value (or absolutely, where values are
smaller), codes and greedy tokens must be identical. In bfloat16 single numbers differ by design, so
logits are compared as distributions and choices are reported without a verdict.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import EinopsError

from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.interop.conversion.convert import nest
from janus_jax.interop.conversion.source import Source
from janus_jax.interop.parity.recompute import Progress, Recomputer, silent
from janus_jax.models import JanusModel
from janus_jax.untrusted import is_file, printable, understanding

TOLERANCE = 1e-4
# Of bfloat16, which keeps 8 bits: the relative step is 2^-8, and it adds up over the layers.
BF16_RELATIVE, BF16_KL, BF16_TOP1 = 0.05, 0.02, 0.9
# Pixels are truncated to uint8: one step off where a value lies at the edge of two.
PIXEL_STEP, PIXEL_SHARE = 1, 1e-3

INPUTS = {
    *("pixel_values", "und_input_ids", "und_image_mask", "und_attention_mask", "vq_image"),
    *("gen_prompt_ids", "gen_pad_id", "gen_cfg_weight", "short_prompt_ids"),
}
MAX_BYTES = 2**32  # of a recording; that of Janus-Pro-7B has less than 1 GB
LOGITS = {"und_logits", "gen_cfg_logits_first", "gen_cfg_logits_last"}


@dataclasses.dataclass(frozen=True)
class Row:
    """The comparison of one key.

    Attributes:
      key: of the recording.
      shape: of both arrays.
      max_abs: largest difference.
      max_rel: that, relative to the largest recorded value.
      match: share of equal entries, of integers.
      kl: mean KL divergence in nats from the recorded to the computed distribution, of logits.
      top1: share of positions with the same most likely entry, of logits.
      note: of choices that differ, where first and by what margin.
      ok: the verdict; None where there is none.
    """

    key: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    match: float | None
    kl: float | None
    top1: float | None
    note: str
    ok: bool | None


def read_recording(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an `expected.npz`.

    Raises:
      UserError: the file is missing, damaged, holds pickled objects or no known key.
    """
    if not is_file(path):
        raise UserError(f"{path} is no recording: there is no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if sum(part.file_size for part in arrays.zip.infolist()) > MAX_BYTES:
                raise ValueError(f"its arrays have more than {MAX_BYTES} bytes")
            recorded = {key: arrays[key] for key in arrays.files}
        for key, value in recorded.items():
            if value.dtype.kind not in "biuf":
                raise ValueError(f"{printable(key)} has dtype {value.dtype}")
    except Exception as error:  # numpy and zipfile raise many types for broken files
        reason = printable(error, 200) or type(error).__name__
        raise UserError(f"{path} is no recording (.npz of arrays): {reason}") from error
    if not recorded.keys() & INPUTS:
        raise UserError(f"{path} holds no input that is known: {', '.join(sorted(INPUTS))}")
    return recorded


def check_parity(
    source: Source,
    recorded: Mapping[str, np.ndarray],
    dtype: str = "float32",
    tolerance: float = TOLERANCE,
    progress: Progress = silent,
) -> list[Row]:
    """Computes all recorded outputs again and compares them.

    Args:
      source: the model.
      recorded: inputs and outputs, see `recompute`.
      dtype: of parameters and arithmetic; float32 multiplies at the highest precision.
      tolerance: of float32.
      progress: called with "weights" while they are loaded, and then, counting anew, of every part of
        `recompute`.

    Raises:
      UserError: the recording does not fit the model.
    """
    policy = Policy(dtype, dtype)
    # One by one on the device: the model is held once, not twice.
    params = {}
    for path, array in source.arrays.items():
        progress("weights", len(params), len(source.arrays))
        params[path] = jnp.asarray(array.load(), policy.param)
    source.check_finite()
    model = JanusModel(source.config, policy=policy)
    exact = dtype == "float32"
    recompute = Recomputer(model, nest(params), forced=not exact, progress=progress)
    with jax.default_matmul_precision("highest" if exact else "default"):
        try:
            computed = recompute(recorded)
        except (TypeError, ValueError, IndexError, EinopsError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the recording does not fit {source.config.name}: {reason}") from error
    valid = recorded.get("und_attention_mask")
    rows = []
    for key, actual in computed.items():
        expected = recorded[key]
        if key in ("und_logits",) and valid is not None:
            with understanding("the recording"):
                actual, expected = actual[valid.astype(bool)], expected[valid.astype(bool)]
        if actual.shape != expected.shape:
            raise UserError(
                f"the recording does not fit {source.config.name}: {key} is {list(expected.shape)} there, "
                f"{list(actual.shape)} here"
            )
        rows.append(_compare(key, actual, expected, exact, tolerance, recompute.margins.get(key)))
    return rows


def as_json(
    rows: list[Row], dtype: str, tolerance: float, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """The result of `check_parity`, JSON-ready: "ok", the settings, "seconds" by part, and all "keys"."""
    return {
        "dtype": dtype,
        "tolerance": tolerance,
        "ok": all(row.ok is not False for row in rows),
        "seconds": {part: round(value, 3) for part, value in seconds.items()},
        "keys": [dataclasses.asdict(row) for row in rows],
    }


def _compare(
    key: str,
    actual: np.ndarray,
    expected: np.ndarray,
    exact: bool,
    tolerance: float,
    margins: np.ndarray | None,
) -> Row:
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    difference = np.abs(a - b)
    max_abs, largest = float(difference.max(initial=0)), float(np.abs(b).max(initial=0))
    max_rel = max_abs / max(largest, 1e-30)
    match = kl = top1 = None
    note, ok = "", None
    if np.issubdtype(expected.dtype, np.integer):
        match = float((difference == 0).mean())
        if expected.dtype == np.uint8:
            far = float((difference > 0).mean())
            ok = (max_abs <= PIXEL_STEP and far < PIXEL_SHARE) if exact else None
        else:
            ok = match == 1.0 if exact else None
            note = _first_difference(actual, expected, margins)
    else:
        close = max_abs <= tolerance * max(1.0, largest)
        ok = close if exact else max_rel <= BF16_RELATIVE
        if key in LOGITS:
            kl, top1 = _divergence(b, a)
            if not exact:
                ok = kl <= BF16_KL and top1 >= BF16_TOP1
    if not math.isfinite(max_abs):
        ok = False
    return Row(key, expected.shape, max_abs, max_rel, match, kl, top1, note, ok)


def _first_difference(actual: np.ndarray, expected: np.ndarray, margins: np.ndarray | None) -> str:
    """Where choices part, e.g. "row 0 from step 17 (margin 0.0004)"."""
    notes = []
    for row, (a, b) in enumerate(zip(actual, expected, strict=True)):
        wrong = np.flatnonzero(a != b)
        if len(wrong):
            margin = "" if margins is None else f" (margin {margins[row, wrong[0]]:.2g})"
            notes.append(f"row {row} from step {wrong[0]}{margin}")
    return "; ".join(notes)


def _divergence(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """(mean KL in nats, top-1 agreement) of logits [..., V]."""
    log_softmax = lambda x: x - x.max(-1, keepdims=True) - _log_sum(x - x.max(-1, keepdims=True))
    p, q = log_softmax(expected), log_softmax(actual)
    kl = float(np.mean(np.sum(np.exp(p) * (p - q), -1)))
    return max(kl, 0.0), float(np.mean(expected.argmax(-1) == actual.argmax(-1)))


def _log_sum(x: np.ndarray) -> np.ndarray:
    return np.log(np.exp(x).sum(-1, keepdims=True))
