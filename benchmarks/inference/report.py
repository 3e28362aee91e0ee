"""What `benchmarks/sampling.py` measured, summarised and as tables."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.inference.contenders import NATIVE, NATIVE_INT8
from benchmarks.inference.meter import GIB
from janus_jax.config import JanusConfig
from janus_jax.inference.kv_cache import bytes_per_slot

BUSY = 0.05  # of the cores, by others during a run: its ratios are marked


def must_read(
    config: JanusConfig,
    images: int,
    steps: int,
    prompt_length: int,
    dtype: str,
    int8: Sequence[str] = (),
) -> int:
    """Bytes that the loop behind the prefill must read: it makes all codes but the first."""
    d, loops = config.decoder, steps - 1
    attention = d.width * d.head_dim * (2 * d.heads + 2 * d.kv_heads)
    weights = d.layers * (attention + 3 * d.width * d.ffw)
    weights += d.width * (d.width + config.vq.codebook_size)
    weights *= 1 if "weights" in int8 else {"float32": 4, "bfloat16": 2}[dtype]
    slots = sum(prompt_length + i for i in range(1, steps))
    cache = "int8" if "cache" in int8 else dtype
    return loops * weights + 2 * images * slots * bytes_per_slot(d, cache)


def summarise(
    args: argparse.Namespace, config: JanusConfig, rows: list[dict[str, Any]], bandwidth: float
) -> None:
    """Adds what the table shows to every row that was timed."""
    native = {row["images"]: row["runs"] for row in rows if row["contender"] == NATIVE}
    for row in rows:
        runs = [run for run in row["runs"] if run]
        if row["problem"] or not runs:
            continue
        n, loops = row["images"], max(args.steps - 1, 1)
        middle = lambda key, runs=runs: statistics.median(run[key] for run in runs)
        times = [run["total"] / n for run in runs]
        row["s_per_image"] = spread(times)
        row["images_per_s"] = 1 / statistics.median(times)
        row["prefill_s"], row["ms_per_step"] = middle("prefill"), middle("decode") / loops * 1000
        row["vq_s"] = middle("vq") if "vq" in runs[0] else None
        row["peak_gib"] = max(run["peak"] for run in runs) / GIB
        row["others"] = max(run["others"] for run in runs)
        row["contended"] = args.device == "cpu" and row["others"] > BUSY
        int8 = args.int8 if row["contender"] == NATIVE_INT8 else []
        row["must_read_bytes"] = must_read(
            config, n, args.steps, args.prompt_length, args.dtype, int8
        )
        row["of_bandwidth"] = row["must_read_bytes"] / middle("decode") / bandwidth
        if all(native.get(n) or [None]):
            pairs = zip(runs, native[n], strict=True)
            row["ratio"] = spread([run["total"] / own["total"] for run, own in pairs])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median and most."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def same(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def regress(y: np.ndarray, *columns: np.ndarray) -> tuple[list[float], float]:
    """(coefficients, the constant first; R^2)."""
    matrix = np.stack([np.ones_like(y), *columns], 1)
    solution = np.linalg.lstsq(matrix, y, rcond=None)[0]
    rest = y - matrix @ solution
    return solution.tolist(), float(1 - rest @ rest / ((y - y.mean()) @ (y - y.mean())))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of the width that they need; the first one to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [x.rjust(w) for x, w in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def show(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    parts = []
    number = lambda x, form: "-" if x is None else format(x, form)
    if timed := [row for row in report.get("drawing", []) if "s_per_image" in row]:
        head = (
            "contender|pictures|s/picture min|median|max|pictures/s|prefill s|ms/step|VQ s|"
            "ratio|range|of bandwidth|peak GiB|compile s|others"
        )
        cells = []
        for row in timed:
            s, ratio = row["s_per_image"], row.get("ratio")
            compiled = (row["warm"] or {}).get("compile")
            cells.append(
                [row["contender"], str(row["images"])]
                + [f"{s[key]:.4g}" for key in ("min", "median", "max")]
                + [f"{row['images_per_s']:.4g}", f"{row['prefill_s']:.3g}"]
                + [f"{row['ms_per_step']:.4g}", number(row["vq_s"], ".3g")]
                + [f"{ratio['median']:.2f}{'!' * row['contended']}" if ratio else "-"]
                + [f"{ratio['min']:.2f}-{ratio['max']:.2f}" if ratio else "-"]
                + [f"{row['of_bandwidth']:.1%}", f"{row['peak_gib']:.2f}"]
                + [number(compiled, ".1f"), f"{row['others']:.0%}"]
            )
        parts.append(table(head.split("|"), cells))
        parts.append(
            "ratio: time of the contender / time of janus_jax; above 1 janus_jax is faster. others: share of the "
            "cores that other processes took during the worst run; '!': they make the ratio unfair."
        )
    if gates := [(r, r["gate"]) for r in report.get("drawing", []) if r["gate"]]:
        head = "parity|pictures|against|codes|max error / std|rms / std|argmax agrees".split("|")
        cells = [
            [
                row["contender"],
                str(row["images"]),
                gate["reference"],
                str(gate["steps"]),
                *(f"{gate[key]:.1e}" for key in ("max_error", "rms_error")),
                f"{gate['argmax_agree']:.1%}",
            ]
            for row, gate in gates
        ]
        parts.append(table(head, cells))
    if answered := [row for row in report.get("understanding", []) if not row["problem"]]:
        head = "answering|first token s min|median|max|tokens/s min|median|max|first call s|same tokens"
        cells = [
            [row["contender"]]
            + [f"{row['first_token_s'][key]:.3g}" for key in ("min", "median", "max")]
            + [f"{row['tokens_per_s'][key]:.4g}" for key in ("min", "median", "max")]
            + [f"{row['first_call_s']:.3g}", number(row.get("same_tokens"), "d")]
            for row in answered
        ]
        parts.append(table(head.split("|"), cells))
    problems = {
        (row["contender"], row["problem"]): None
        for kind in ("drawing", "understanding")
        for row in report.get(kind, [])
        if row["problem"]
    }
    parts += [f"{name}: {problem}" for name, problem in problems]
    if found := report.get("fit"):
        points = [[str(p["rows"]), str(p["window"]), f"{p['ms']:.4g}"] for p in found["points"]]
        parts.append(table(("rows", "window", "ms/step"), points))
        parts.append(
            f"ms/step = {found['a_ms']:.4g} + {found['b_ms']:.4g} x rows x window, R2 {found['r2']:.4f}; b is "
            f"{found['b_over_ideal']:.2f} x bytes per slot ({found['bytes_per_slot']}) / bandwidth"
        )
        if apart := found["with_rows"]:
            parts.append(
                f"ms/step = {apart['a_ms']:.4g} + {apart['row_ms']:.4g} x rows + {apart['b_ms']:.4g} x rows x "
                f"window, R2 {apart['r2']:.4f}; b is {apart['b_over_ideal']:.2f} x the same"
            )
    notes = [f"{report['model']}, {report['dtype']} on {report['device']}"]
    notes.append(
        f"{report['bandwidth']['bytes_per_s'] / 1e9:.1f} GB/s: {report['bandwidth']['how']}"
    )
    if report["partial"]:
        notes.append(f"PARTIAL: {report['steps']} of {report['num_codes']} codes, no VQ decoder")
    if report["contended"]:
        notes.append(f"CONTENDED: load average {report['load_average']:.2f} before the run")
    return "\n\n".join(["; ".join(notes), *parts])
