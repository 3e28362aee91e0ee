"""rejected.jsonl: the records that a run left out, each of them once.

Process 0 writes rejected.jsonl, process 3 rejected_3.jsonl: each lists what it read itself, so that none waits
for another. A record that two processes met in different epochs is in both.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import jax

from janus_jax.data import Rejection
from janus_jax.errors import UserError
from janus_jax.files import is_disk_full, read_json_lines

_FIELDS = {"stage": str, "source": str, "index": int, "record": str, "reason": str, "detail": str}


class RejectedLog:
    """Lists what one stage leaves out: {"stage", "source", "index", "record", "reason", "detail"} a line.

    What an earlier process of the run listed, and reads again, is not listed again.

    Args:
      run_dir: of the run.
      stage: its name.
    """

    def __init__(self, run_dir: Path, stage: str):
        number = jax.process_index()
        self.path = run_dir / (f"rejected_{number}.jsonl" if number else "rejected.jsonl")
        self._stage, self._lock = stage, threading.Lock()
        self._listed = {
            (record["source"], record["index"])
            for path in sorted(run_dir.glob("rejected*.jsonl"))
            for record in read_json_lines(path, _is_record)
            if record["stage"] == stage
        }

    def __call__(self, rejection: Rejection) -> None:
        """Lists a record, unless it is.

        Raises:
          UserError: the disk is full.
        """
        with self._lock:
            key = (rejection.source, rejection.index)
            if key in self._listed:
                return
            self._listed.add(key)
            record = {
                "stage": self._stage,
                "source": rejection.source,
                "index": rejection.index,
                "record": rejection.record,
                "reason": rejection.reason,
                "detail": rejection.detail,
            }
            try:
                self._append(json.dumps(record))
            except OSError as error:
                if not is_disk_full(error):
                    raise
                raise UserError(
                    f"no space left on the disk of {self.path}: free some and run the same command again; "
                    "checkpoints are intact"
                ) from error

    def _append(self, line: str) -> None:
        with self.path.open("a+b") as file:
            # After half a line, which a kill may have left, a new one.
            if end := file.seek(0, 2):
                file.seek(end - 1)
            torn = bool(end) and file.read(1) != b"\n"
            file.write(b"\n" * torn + line.encode() + b"\n")


def _is_record(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(record.get(name), kind) for name, kind in _FIELDS.items()
    )
