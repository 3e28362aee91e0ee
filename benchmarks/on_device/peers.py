"""PyTorch on the same device: `benchmarks/sampling.py` with its own parity gate."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.on_device.setting import PROMPT_LENGTH, Results, Setting


def peers(setting: Setting) -> Results:
    """Seconds of the official loop and of the compiled hand-written one over ours, in the same round.

    Numbers of pictures come one by one, so that a limit of time loses the last of them only.
    """
    on_cpu = setting.device == "cpu"
    for n in setting.images:
        yield {f"{n} pictures": _compare(setting, n, on_cpu)}


def _compare(setting: Setting, images: int, on_cpu: bool) -> dict:
    names = "ours,official,loop" if on_cpu else "ours,official,loop_compiled"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "peers.json"
        command = [sys.executable, Path(__file__).parents[1] / "sampling.py"]
        command += ["--model", setting.model, "--dtype", "float32" if on_cpu else setting.dtype]
        command += ["--images", str(images), "--pairs", "1", "--contenders", names]
        command += ["--device", "cpu" if on_cpu else "cuda", "--share_torch", "--out", out]
        command += ["--prompt_length", str(PROMPT_LENGTH)]
        said = subprocess.run(command, capture_output=True, text=True)
        if not out.exists():
            return {"problem": said.stderr.strip()[-400:]}
        rows = json.loads(out.read_text())["drawing"]
    keep = ("ratio", "s_per_image", "ms_per_step", "vq_s", "prefill_s", "of_bandwidth", "peak_gib")
    found = {}
    for row in rows:
        if row["problem"]:
            found[row["contender"]] = {"problem": row["problem"]}
            continue
        values = {key: row.get(key) for key in keep}
        for key in ("ratio", "s_per_image"):
            values[key] = values[key]["median"] if values[key] else None
        gate = row["gate"] or {}
        found[row["contender"]] = values | {"parity_rms": gate.get("rms_error")}
    return found
