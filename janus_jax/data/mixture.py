"""From sources to batches: mixing by weight, shuffling, sharing out over streams, encoding, packing.

Any position is reached without reading what comes before, but for the sequences that wait to be packed, and an
iterator's state is a small dict that a checkpoint can hold.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import grain

from janus_jax.data.encode import SequenceEncoder
from janus_jax.data.examples import TASKS, Example, Rejected, Source
from janus_jax.data.mixing import MixedIterDataset, hundredths
from janus_jax.data.packing import PackedShape, pack
from janus_jax.data.reading import Encoded, Part, WorkerProcesses
from janus_jax.data.rejects import Ledger


@dataclasses.dataclass(frozen=True)
class WeightedSource:
    """A source in a mixture.

    Attributes:
      task: of `TASKS`.
      examples: the source.
      weight: relative to the others of its task.
      label: for people.
      shuffle: False reads the records in their order.
      epochs: how often it is read at most; then the others of its task have its turns, and where there is none
        the batches end. None for ever.
    """

    task: str
    examples: Source
    weight: float = 1.0
    label: str = ""
    shuffle: bool = True
    epochs: float | None = None


def mixed_batches(
    sources: Sequence[WeightedSource],
    ratio: tuple[float, float, float],
    encode: SequenceEncoder,
    row: PackedShape,
    batch_size: int,
    seed: int = 0,
    stream: tuple[int, int] = (0, 1),
    threads: int = 1,
    codes: bool = False,
    lookahead: int = 0,
    ledger: Ledger | None = None,
    workers: WorkerProcesses | None = None,
) -> grain.IterDataset:
    """Endless packed batches with sequences of all tasks mixed by `ratio`, those of a task by weight.

    Args:
      sources: in the order by which examples are numbered (`target_sources`); those of a task that has no
        share in `ratio` are not read.
      ratio: understanding : text : generation, by number of sequences (Janus-Pro, Table 2); what is left
        out takes no share.
      encode: examples -> sequences.
      row: room in a packed row.
      batch_size: rows per batch of this stream.
      seed: of the shuffle.
      stream: (index, count) of this stream (`data.streams`); the whole is one.
      threads: reading threads.
      codes: pictures to generate are codes (`encode` must be made for them).
      lookahead: of `pack`.
      ledger: what was used and left out.
      workers: processes that read instead of threads.
    """
    sequences = mixed_sequences(sources, ratio, encode, seed, stream, threads, ledger, workers)
    return pack(sequences, row, batch_size, codes, lookahead)


def mixed_sequences(
    sources: Sequence[WeightedSource],
    ratio: tuple[float, float, float],
    encode: SequenceEncoder,
    seed: int = 0,
    stream: tuple[int, int] = (0, 1),
    threads: int = 1,
    ledger: Ledger | None = None,
    workers: WorkerProcesses | None = None,
) -> grain.IterDataset:
    """What `mixed_batches` packs: endless sequences, any beginning of which has the ratio."""
    shares = [(task, float(share)) for task, share in zip(TASKS, ratio, strict=True) if share > 0]
    groups = [
        (share, _parts(sources, task, seed + number)) for number, (task, share) in enumerate(shares)
    ]
    # An earlier version mixed all sources at once.
    earlier = [
        share * (part.weight / sum(p.weight for p in parts))
        for share, parts in groups
        for part in parts
    ]
    ahead = max(64 // stream[1], 2 * (workers.count if workers else threads), 4)
    return MixedIterDataset(
        groups, encode.encode, stream, threads, ahead, ledger, hundredths(earlier), workers
    )


def unpacked_batches(
    sources: Sequence[WeightedSource],
    encode: Callable[[Example], dict[str, Any] | Rejected],
    batch_size: int,
    seed: int = 0,
    stream: tuple[int, int] = (0, 1),
    threads: int = 1,
    ledger: Ledger | None = None,
    workers: WorkerProcesses | None = None,
) -> grain.IterDataset:
    """Endless batches of records (stage 0): each feature stacked on a new first axis."""
    parts = _parts(sources, "", seed)
    count = hundredths([part.weight for part in parts])
    # An earlier version's position is in batches.
    earlier = lambda batches: count(batches * batch_size)
    records = MixedIterDataset(
        [(1.0, parts)], _Whole(encode), stream, threads, 2 * batch_size, ledger, earlier, workers
    )
    return records.batch(batch_size)


@dataclasses.dataclass(frozen=True)
class _Whole:
    """An encoder that neither draws anything at random nor cuts anything off."""

    encode: Callable[[Example], dict[str, Any] | Rejected]

    def __call__(self, example: Example, rng: Any) -> Encoded | Rejected:
        found = self.encode(example)
        return found if isinstance(found, Rejected) else Encoded(found)


def _parts(sources: Sequence[WeightedSource], task: str, seed: int) -> list[Part]:
    """The sources of a task ("": of all) that have a weight, with their numbers and seeds."""
    chosen = [(i, s) for i, s in enumerate(sources) if s.weight > 0 and task in ("", s.task)]
    return [
        Part(
            s.label or f"{s.task} {i}",
            s.examples,
            i,
            source_seed(seed, nth),
            float(s.weight),
            s.shuffle,
            s.epochs,
        )
        for nth, (i, s) in enumerate(chosen)
    ]


def source_seed(seed: int, nth: int) -> int:
    """The seed of the n-th source of a task; the first one has the task's seed itself."""
    if not nth:
        return seed
    digest = hashlib.sha256(f"source {nth} {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
