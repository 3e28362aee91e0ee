"""From sources to batches: mixing by weight, shuffling, sharing out over streams, encoding, packing.

All of it is Grain: the mixture interleaves deterministically by weight, any position is reached without
reading what comes before, and an iterator's state is a small dict that a checkpoint can hold.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import grain

from janus_jax.data.encode import SequenceEncoder
from janus_jax.data.examples import TASKS, Example, Source
from janus_jax.data.packing import PackedShape, pack


@dataclasses.dataclass(frozen=True)
class WeightedSource:
    """A source in a mixture; `weight` is relative to the others of its task."""

    task: str
    examples: Source
    weight: float = 1.0


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
) -> grain.IterDataset:
    """Endless packed batches with sequences of all tasks mixed by `ratio`, those of a task by weight.

    Args:
      sources: in the order by which examples are numbered (`target_sources`); those of a task that has no
        share in `ratio` are not read.
      ratio: understanding : text : generation, by number of sequences (Janus-Pro, Table 2).
      encode: examples -> sequences.
      row: room in a packed row.
      batch_size: rows per batch of this stream.
      seed: of the shuffle.
      stream: (index, count) of this stream (`data.streams`); the whole is one.
      threads: reading threads.
      codes: pictures to generate are codes (`encode` must be made for them).
      lookahead: of `pack`.
    """
    datasets, weights = [], []
    shares = [(task, share) for task, share in zip(TASKS, ratio, strict=True) if share > 0]
    for number, (task, share) in enumerate(shares):
        chosen = [(i, s) for i, s in enumerate(sources) if s.task == task and s.weight > 0]
        total = sum(s.weight for _, s in chosen)
        for nth, (index, source) in enumerate(chosen):
            datasets.append(_shuffled(source, index, source_seed(seed + number, nth), stream))
            weights.append(float(share) * (source.weight / total))
    mixed = grain.MapDataset.mix(datasets, weights=weights)
    sequences = mixed.random_map(encode, seed=seed).to_iter_dataset(
        _options(threads, max(64 // stream[1], 2 * threads, 4))
    )
    return pack(sequences, row, batch_size, codes, lookahead)


def unpacked_batches(
    sources: Sequence[WeightedSource],
    encode: Callable[[Example], dict[str, Any]],
    batch_size: int,
    seed: int = 0,
    stream: tuple[int, int] = (0, 1),
    threads: int = 1,
) -> grain.IterDataset:
    """Endless batches of records (stage 0): each feature stacked on a new first axis."""
    chosen = [(i, s) for i, s in enumerate(sources) if s.weight > 0]
    datasets = [
        _shuffled(source, index, source_seed(seed, nth), stream)
        for nth, (index, source) in enumerate(chosen)
    ]
    dataset = datasets[0]
    if len(datasets) > 1:
        dataset = grain.MapDataset.mix(datasets, weights=[float(s.weight) for _, s in chosen])
    dataset = dataset.map(encode).batch(batch_size)
    return dataset.to_iter_dataset(_options(threads, 2))


def source_seed(seed: int, nth: int) -> int:
    """The seed of the n-th source of a task; the first one has the task's seed itself."""
    if not nth:
        return seed
    digest = hashlib.sha256(f"source {nth} {seed}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def _shuffled(
    source: WeightedSource, index: int, seed: int, stream: tuple[int, int]
) -> grain.MapDataset:
    """The endless examples of a source for one stream, shuffled and numbered as the source's.

    Streams share out each source, not the mixture: its order repeats, and a stream that took every n-th
    sequence of it could get one task only.
    """
    dataset = grain.MapDataset.source(source.examples).seed(seed).shuffle().repeat()
    return dataset[stream[0] :: stream[1]].map(functools.partial(_numbered, index=index))


def _numbered(example: Example, index: int) -> Example:
    return dataclasses.replace(example, source=index) if index else example


def _options(threads: int, buffer: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
