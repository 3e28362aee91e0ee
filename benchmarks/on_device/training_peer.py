"""PyTorch's training step on the same device and rows, by `benchmarks/training.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks.inference.contenders import NATIVE
from benchmarks.on_device.setting import Results, Setting

LAYERS = 4  # both frameworks have weights, gradients and optimizer on the device at once


def training_peer(setting: Setting) -> Results:
    """Seconds of a step by contender; `ratio` is a contender's time over that of janus_jax in the same round."""
    out = setting.scratch / "training_peer_report.json"
    command = [sys.executable, "-m", "benchmarks.train.run", "--out", str(out)]
    command += _flags(setting)
    subprocess.run(command, check=True)
    yield shown(json.loads(out.read_text()))


def _flags(setting: Setting) -> list[str]:
    flags = {"model": setting.model, "content": "codes", "gate_steps": 2, "pairs": setting.repeats}
    if setting.device == "cpu":
        flags |= {"device": "cpu", "contenders": f"{NATIVE},sdpa"}
    else:
        flags |= {"device": "cuda", "layers": LAYERS, "dtype": setting.dtype, "remat": "full"}
        flags |= {"rows": setting.rows[0], "targets_at_once": 512}
        flags |= {"contenders": f"{NATIVE},varlen_compiled,sdpa_compiled"}
    return [
        *(part for name, value in flags.items() for part in (f"--{name}", str(value))),
        *(["--scan"] if setting.device != "cpu" else []),
    ]


def shown(report: dict[str, Any]) -> dict[str, Any]:
    """Of a report of `benchmarks/training.py`, what a table can show."""
    found: dict[str, Any] = {"steps": {}}
    for row in report["table"]:
        found["steps"][row["contender"]] = {
            "seconds": row["seconds"]["median"],
            "tokens_per_s": row["tokens_per_s"],
            "peak_gib": row["peak_gib"],
            "compile_s": row["compile_s"],
            "of_product": row.get("of_product"),
            "ratio": row.get("ratio", {}).get("median"),
        }
    for name, problem in report["problems"].items():
        found["steps"].setdefault(name, {})["problem"] = problem[:200]
    return found | {"tokens": report["content"]["tokens"], "layers": _layers(report)}


def _layers(report: dict[str, Any]) -> int:
    return report["config"]["decoder"]["layers"]
