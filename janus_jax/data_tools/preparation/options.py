"""What a preparation is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
      manifest: the file.
      checkpoint: directory or hub id of the model.
      out: directory of all that is made.
      codes: pictures to draw become codes; None: they do.
      batch: pictures that a device encodes at a time.
      shard_records: records of a shard.
      threads: that read and resize.
      only: names of the sources to prepare; () for all.
      limit: first records of a source; 0 for all.
      max_rejected: share of a source that may be left out.
      quiet: no progress bar.
    """

    manifest: Path
    checkpoint: str
    out: Path
    codes: bool | None = None
    batch: int = 16
    shard_records: int = 1000
    threads: int = 1
    only: tuple[str, ...] = ()
    limit: int = 0
    max_rejected: float = 0.01
    quiet: bool = False
