"""From sources to batches: mixing by ratio, shuffling, sharding over hosts, packing.

All of it is Grain: the mixture interleaves deterministically by weight, any position is reached without
reading what comes before, and an iterator's state is a small dict that a checkpoint can hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import grain

from janus_jax.data.packing import PackedShape, pack

TASKS = ("und", "text", "gen")


def _shard(dataset: grain.MapDataset, process: tuple[int, int]) -> grain.MapDataset:
    index, count = process
    return dataset[index::count]


def _options(threads: int, buffer: int) -> grain.ReadOptions:
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)


def mixed_batches(
    sources: Mapping[str, Sequence],
    ratio: tuple[float, float, float],
    row: PackedShape,
    batch_size: int,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    threads: int = 1,
) -> grain.IterDataset:
    """Endless packed batches with sequences of all tasks mixed by `ratio`.

    Args:
      sources: task ("und", "text", "gen") -> random-access source of sequences.
      ratio: understanding : text : generation, by number of sequences (Janus-Pro, Table 2).
      row: room in a packed row.
      batch_size: rows per batch on this host.
      seed: of the shuffle.
      process: (index, count) of this host.
      threads: reading threads.
    """
    weighted = [(t, w) for t, w in zip(TASKS, ratio, strict=True) if w > 0]
    # Hosts share out each source, not the mixture: its order repeats, and a host that took every n-th
    # sequence of it could get one task only.
    datasets = [
        _shard(grain.MapDataset.source(sources[t]).seed(seed + i).shuffle().repeat(), process)
        for i, (t, _) in enumerate(weighted)
    ]
    mixed = grain.MapDataset.mix(datasets, weights=[float(w) for _, w in weighted])
    examples = mixed.to_iter_dataset(_options(threads, 64))
    return pack(examples, row, batch_size)


def plain_batches(
    source: Sequence,
    batch_size: int,
    seed: int = 0,
    process: tuple[int, int] = (0, 1),
    threads: int = 1,
) -> grain.IterDataset:
    """Endless batches of plain records (stage 0): each feature stacked on a new first axis."""
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    dataset = _shard(dataset, process).batch(batch_size)
    return dataset.to_iter_dataset(_options(threads, 2))
