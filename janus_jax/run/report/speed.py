"""How well a run used its machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from janus_jax.run.report.curves import Steps
from janus_jax.run.report.markdown import table

# Field of metrics.jsonl -> heading, how it is shown; medians over the steps of a stage.
_COLUMNS = {
    "tokens_per_s_per_device": ("tokens/s a device", "{:.0f}"),
    "tflops_per_s_per_device": ("TFLOP/s a device", "{:.3g}"),
    "mfu": ("MFU", "{:.1%}"),
    "hfu": ("HFU", "{:.1%}"),
    "data_wait": ("waits for data", "{:.1%}"),
    "fill_tokens": ("positions in use", "{:.1%}"),
    "fill_targets": ("targets", "{:.1%}"),
    "fill_und_images": ("pictures to understand", "{:.1%}"),
    "fill_gen_images": ("pictures to generate", "{:.1%}"),
    "peak_memory_gib": ("peak memory of a device, GiB", "{:.2f}"),
}
_NEW = _COLUMNS.keys() - {"data_wait"}
# Of these fields the report shows the table here, and nothing else.
NO_RESULT = {*_COLUMNS, "memory_gib", "learning_rate"}


def speed(stages: Mapping[str, Steps]) -> str:
    """A table of the stages; "" for a run of an earlier version, which measured nothing of it.

    Args:
      stages: stage -> its lines of metrics.jsonl.
    """
    measured = {n: s for n, s in stages.items() if any(_NEW & step.keys() for step in s)}
    columns = [f for f in _COLUMNS if any(f in step for s in measured.values() for step in s)]
    if not measured:
        return ""
    rows = [
        [name, *(_median(steps, field) for field in columns)] for name, steps in measured.items()
    ]
    header = ["stage", *(_COLUMNS[field][0] for field in columns)]
    return (
        f"## Use of the machine\n\n{table(header, rows)}\n\n"
        "Medians over the steps. MFU: operations that the model needs, without padding, of what the devices "
        "can do in bfloat16; HFU: with what rematerialisation does again. Shares of positions, targets and "
        "pictures are of the rows' room for them."
    )


def _median(steps: Steps, field: str) -> str:
    values = [step[field] for step in steps if field in step]
    return _COLUMNS[field][1].format(np.median(values)) if values else "-"
