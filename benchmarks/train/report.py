"""What `benchmarks/training.py` measured, summarised and as tables."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.inference.contenders import NATIVE
from benchmarks.inference.meter import GIB
from benchmarks.inference.report import BUSY, spread, table


def summarise(report: dict[str, Any]) -> None:
    """Adds `rows`: what the table shows of every contender that was timed."""
    tokens, runs = report["content"]["tokens"], report["runs"]
    best = max(report["product_rates"].values(), default=None)
    rows = report["table"] = []
    native = runs.get(NATIVE, [])
    for name, rounds in runs.items():
        if name in report["problems"] or not rounds:
            continue
        seconds = [statistics.median(run["seconds"]) for run in rounds]
        row = {
            "contender": name,
            "seconds": spread(seconds),
            "tokens_per_s": tokens / statistics.median(seconds),
            "peak_gib": max(run["peak"] for run in rounds) / GIB,
            "compile_s": report["gate"][name]["compile_s"],
            "cpu_s": statistics.median(run["cpu"] for run in rounds) / report["steps"],
            "others": max(run["others"] for run in rounds),
        }
        row["contended"] = report["device"] == "cpu" and row["others"] > BUSY
        if best:
            row["of_product"] = report["flops"] / statistics.median(seconds) / best
        if native and all(native):
            own = [statistics.median(run["seconds"]) for run in native]
            row["ratio"] = spread([a / b for a, b in zip(seconds, own, strict=True)])
            pairs = zip(rounds, native, strict=True)
            row["cpu_ratio"] = spread([run["cpu"] / own["cpu"] for run, own in pairs])
        rows.append(row)


def show(report: dict[str, Any]) -> str:
    """The report as a person reads it."""
    content, parts = report["content"], []
    notes = [f"{report['model']}, {report['dtype']} on {report['device']}"]
    notes.append(
        f"{report['rows']} row(s) of {report['row_tokens']}, {report['kind']}: {content['tokens']} tokens, "
        f"{content['targets']} text targets, {content['gen']} pictures to draw, {content['und']} to understand"
    )
    attention = report["loaded"].get("native_step", {}).get("attention", "-")
    notes.append(f"{report['stage']}, remat {report['remat']}, our attention {attention}")
    notes.append(f"{report['flops'] / 1e12:.3g} TFLOP a step")
    if report["contended"]:
        notes.append(
            f"CONTENDED: load average {report['load_average']:.2f} before the run, "
            f"{report['load_average_after']:.2f} after it"
        )
    parts.append("; ".join(notes))
    if report["product_rates"]:
        rates = [f"{name} {x / 1e9:.4g}" for name, x in report["product_rates"].items()]
        parts.append(f"GFLOP/s of a product: {', '.join(rates)}")
    if rows := report["table"]:
        head = "contender|s/step min|median|max|tokens/s|ratio|range|of product|peak GiB|compile s|CPU s|others"
        cells = []
        for row in rows:
            s, ratio = row["seconds"], row.get("ratio")
            cells.append([row["contender"]])
            cells[-1] += [f"{s[key]:.4g}" for key in ("min", "median", "max")]
            cells[-1] += [f"{row['tokens_per_s']:.4g}"]
            cells[-1] += [f"{ratio['median']:.2f}{'!' * row['contended']}" if ratio else "-"]
            cells[-1] += [f"{ratio['min']:.2f}-{ratio['max']:.2f}" if ratio else "-"]
            cells[-1] += [f"{row['of_product']:.0%}" if "of_product" in row else "-"]
            cells[-1] += [f"{row['peak_gib']:.2f}", f"{row['compile_s']:.1f}"]
            cells[-1] += [f"{row['cpu_s']:.4g}", f"{row['others']:.0%}"]
        parts.append(table(head.split("|"), cells))
        parts.append(
            "ratio: time of the contender / time of janus_jax; above 1 janus_jax is faster. others: share of the "
            "cores that other processes took during the worst run; '!': they make the ratio unfair."
        )
    if gates := report["gate"]:
        head = "first steps|loss 1|2|gradient norm 1|2|error of step 1: loss|norm|against".split(
            "|"
        )
        cells = []
        for name, gate in gates.items():
            errors = [gate.get(f"{what}_error") for what in ("loss", "grad_norm")]
            cells.append(
                [name, *(f"{x:.6f}" for x in gate["loss"][:2])]
                + [f"{x:.6g}" for x in gate["grad_norm"][:2]]
                + [f"{x[0]:.1e}" if x else "-" for x in errors]
                + [gate.get("reference", "-")]
            )
        parts.append(table(head, cells))
    parts += [f"{name}: {problem}" for name, problem in report["problems"].items()]
    return "\n\n".join(parts)
