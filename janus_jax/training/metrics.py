"""The metrics of a run while it trains: metrics.jsonl, TensorBoard, a progress bar."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from janus_jax.errors import NumbersError, UserError
from janus_jax.files import atomic_write, read_json_lines

HELD_OUT = "held_out"  # of a line that has losses of held-out data, and no step's
_TASKS = {"loss_und": "understanding", "loss_text": "text", "loss_gen": "generation"}


class MetricsLog:
    """One line of JSON a step: {"stage": ..., "step": ..., "loss": ..., ...}.

    And lines of the losses of held-out data after a step: {"stage": ..., "step": ..., "held_out": {"loss": ...}}.
    TensorBoard events go next to it where tensorboardX is installed.
    """

    def __init__(self, run_dir: Path):
        self.path = run_dir / "metrics.jsonl"
        self._board = _board(run_dir / "tensorboard")

    def start_stage(self, stage: str, done: int) -> None:
        """Drops what a killed run wrote after its last checkpoint, so that no step appears twice."""
        # Before the first step there is no checkpoint: what was held out then is computed again.
        stays = lambda r: r["step"] <= done and (done > 0 or HELD_OUT not in r)
        kept = [r for r in read_records(self.path) if r["stage"] != stage or stays(r)]
        atomic_write(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def write(self, records: list[Mapping[str, Any]]) -> None:
        """Adds records, and sees to it that they are on disk.

        Raises:
          UserError: the disk is full.
        """
        try:
            with self.path.open("a") as file:
                file.write("".join(json.dumps(r) + "\n" for r in records))
                file.flush()
                os.fsync(file.fileno())
            if self._board is not None:
                self._board.write(records)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"no space left on the disk of {self.path}: free some and run the same command "
                "again; checkpoints are intact"
            ) from error

    def read(self) -> list[dict[str, Any]]:
        """All records of steps so far, like `read_metrics`."""
        return read_metrics(self.path)

    def read_held_out(self, stage: str) -> list[dict[str, Any]]:
        """The lines with losses of held-out data of a stage."""
        return [r for r in read_records(self.path) if HELD_OUT in r and r["stage"] == stage]

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl: at least "stage", "step" and "loss"; none if there is no such file.

    A last line that a kill cut short is left out. So are damaged ones, with a line on stderr.

    Raises:
      UserError: it cannot be read.
    """
    return [record for record in read_records(path) if HELD_OUT not in record]


def read_records(path: Path) -> list[dict[str, Any]]:
    """All lines of a metrics.jsonl: of steps, and of held-out data, {"stage", "step", "held_out": {"loss": ...}}.

    Raises:
      UserError: it cannot be read.
    """
    return read_json_lines(path, _is_record)


def is_number(value: Any) -> bool:
    """Whether a value out of a JSON file is a number that numpy takes, too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) < 2**63
    return isinstance(value, float)


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and isinstance(record.get("stage"), str)
        and isinstance(record.get("step"), int)
        and is_number(record["step"])
        and _has_loss(record.get(HELD_OUT, record))
    )


def _has_loss(fields: Any) -> bool:
    return isinstance(fields, dict) and is_number(fields.get("loss"))


def check_finite(stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Raises NumbersError, naming step and task, if any loss or the gradient is not finite."""
    if tasks := not_finite(metrics):
        raise NumbersError(f"{stage} step {step}: not finite in {', '.join(tasks)}; stopped")


def not_finite(metrics: Mapping[str, float]) -> list[str]:
    """The tasks whose loss is not finite; where it is none of theirs, the metrics that are not."""
    bad = [k for k, v in metrics.items() if not math.isfinite(v)]
    return [name for key, name in _TASKS.items() if key in bad] or bad


def progress_bar(stage: str, done: int, steps: int, quiet: bool) -> tqdm:
    """Step, rate and time left of one stage; `set_losses` adds the rest."""
    return tqdm(
        total=steps, initial=done, desc=stage, unit="step", disable=quiet, dynamic_ncols=True
    )


def set_losses(bar: tqdm, record: Mapping[str, Any]) -> None:
    """Shows of a record the losses by task, tokens/s, MFU and the share of time spent waiting for data."""
    shown = {k.removeprefix("loss_"): f"{v:.3f}" for k, v in record.items() if "loss" in k}
    shown |= {k: f"{record[k]:.2f}" for k in ("psnr", "accuracy", "codes_used") if k in record}
    shown["tok/s"] = f"{record['tokens_per_s']:.0f}"
    if "mfu" in record:
        shown["mfu"] = f"{record['mfu']:.0%}"
    if "rejected" in record:
        shown["rejected"] = f"{record['rejected']:.2%}"
    bar.set_postfix({**shown, "data": f"{record['data_wait']:.0%}"})


class _Board:
    """TensorBoard's events of scalars, written at once.

    `SummaryWriter` writes in a thread of its own. When the disk is full that thread dies in many
    lines, and whoever adds events waits for it for ever.
    """

    def __init__(self, directory: Path):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        self._event, self._scalar = Event, scalar
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._file = RecordWriter(str(directory / name))
        self._put([{"file_version": "brain.Event:2"}])

    def write(self, records: list[Mapping[str, Any]]) -> None:
        """Adds the floats of records, as STAGE/NAME."""
        self._put(
            {"step": r["step"], "summary": self._scalar(f"{r['stage']}/{name}", value)}
            for r in records
            for name, value in _scalars(r).items()
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _put(self, events: Iterable[Mapping[str, Any]]) -> None:
        try:
            for fields in events:
                event = self._event(wall_time=time.time(), **fields)
                self._file.write(event.SerializeToString())
            self._file.flush()
        except OSError:
            self.close()  # or Python would try to write the rest at exit
            raise


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The floats of a record, those of held-out data under names of their own."""
    held_out = record.get(HELD_OUT, {})
    found = {f"{HELD_OUT}/{name}": value for name, value in held_out.items()}
    found |= {f"{HELD_OUT}/{name}": x for name, x in held_out.get("sources", {}).items()}
    return {name: value for name, value in {**record, **found}.items() if isinstance(value, float)}


def _board(directory: Path) -> _Board | None:
    try:
        import tensorboardX  # noqa: F401
    except ImportError:
        return None
    return _Board(directory)
