"""How the sources are mixed, and how full the rows are that the run's own packer makes of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import grain
import numpy as np

from janus_jax.data import TASKS, Ledger, TooManyRejected, mixed_batches
from janus_jax.data_tools.inspection.reading import Reading
from janus_jax.data_tools.inspection.scan import SourceCounts
from janus_jax.processing import TOKEN_UND

ROWS = 200
SECONDS = 30.0  # after which no more rows are packed: a shuffled order can be slow to read


@dataclasses.dataclass(frozen=True)
class Packing:
    """The first rows of a run.

    Attributes:
      rows: so many were packed.
      sequences: in a row, on average.
      fill: "tokens", "targets", "und_images", "gen_images" -> mean share of the room that is used; without
        those that have no room.
      note: why there are fewer rows than were wanted; "" if there are not.
    """

    rows: int = 0
    sequences: float = 0.0
    fill: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""


def first_rows(
    reading: Reading, rows: int = ROWS, tick: Callable[[int], object] = lambda count: None
) -> Packing:
    """Packs the first rows of the first stream, pictures unopened.

    Args:
      reading: what the run reads; every source must have a record that can be used.
      rows: how many; whole batches of the stream are made.
      tick: told how many more rows there are.
    """
    data, stage = reading.experiment.config.data, reading.stage
    size = max(1, stage.batch_size // data.streams)
    size = (
        size if size <= rows else rows
    )  # first-fit packs over a batch, and a large one fills no better
    batches = mixed_batches(
        reading.sources,
        stage.ratio,
        reading.encoder(small=True, blank=True),
        reading.row,
        size,
        reading.seed,
        stream=(0, data.streams),
        threads=data.threads,
        codes=reading.codes,
        lookahead=data.lookahead,
        ledger=Ledger(),
    )
    used, sequences, done, note, until = [], 0, 0, "", time.monotonic() + SECONDS
    iterator = iter(batches)
    try:
        while done < rows:
            batch = next(iterator)
            segments = batch["segment_ids"]
            sequences += int(segments.max(axis=1).sum())
            used.append(_used(batch))
            done += len(segments)
            tick(len(segments))
            if time.monotonic() > until and done < rows:
                note = f"no more than {SECONDS:.0f} s were spent on them"
                break
    except TooManyRejected as error:
        note = str(error)
    finally:
        if isinstance(iterator, grain.DatasetIterator):
            iterator.close()
    if not done:
        return Packing(note=note)
    totals = np.concatenate(used).mean(axis=0)
    room = dataclasses.asdict(reading.row)
    fill = {
        name: round(float(total) / room[name], 4)
        for name, total in zip(room, totals, strict=True)
        if room[name]
    }
    return Packing(done, round(sequences / done, 3), fill, note)


def _used(batch: dict[str, np.ndarray]) -> np.ndarray:
    """int [B, 4]: tokens, targets, pictures to understand and to generate of each row."""
    columns = [
        (batch["segment_ids"] > 0).sum(axis=1),
        (batch["target_weights"] > 0).sum(axis=1),
        _runs(batch["token_types"] == TOKEN_UND).sum(axis=1),
        (batch["gen_weights"] > 0).sum(axis=1),
    ]
    return np.stack(columns, axis=1)


def _runs(mask: np.ndarray) -> np.ndarray:
    """Where a run of true values begins, along the last axis."""
    before = np.pad(mask, [(0, 0), (1, 0)])[:, :-1]
    return mask & ~before


@dataclasses.dataclass(frozen=True)
class MixedPart:
    """A source in the mixture.

    Attributes:
      label: of the source.
      per_thousand: of a thousand sequences, those of this source.
      tokens: its share of the positions; None where no record can be used.
      sequences: of it in all steps of the stage; None without a packed row.
      epochs: how often each of its usable records is read in these; None as above.
      used_up: before the end of the stage it has been read as often as its `epochs` allow.
    """

    label: str
    per_thousand: float
    tokens: float | None
    sequences: int | None
    epochs: float | None
    used_up: bool


def mix(reading: Reading, counts: Sequence[SourceCounts], packing: Packing) -> list[MixedPart]:
    """What share each source has, and how often it is read."""
    stage = reading.stage
    means = [c.tokens.total / len(c.tokens) if len(c.tokens) else 0.0 for c in counts]
    positions = sum(c.part.share * mean for c, mean in zip(counts, means, strict=True))
    in_all = _in_stage(reading, counts, stage.steps * stage.batch_size * packing.sequences)
    parts = []
    for count, mean, sequences in zip(counts, means, in_all, strict=True):
        share, usable, limit = count.part.share, count.usable, count.part.spec.epochs
        epochs = sequences / usable if sequences and usable else None
        parts.append(
            MixedPart(
                label=count.part.label,
                per_thousand=round(1000 * share, 2),
                tokens=round(share * mean / positions, 4) if mean else None,
                sequences=round(sequences) if sequences else None,
                epochs=None if epochs is None else round(epochs, 4),
                used_up=bool(epochs and limit is not None and epochs >= limit * (1 - 1e-9)),
            )
        )
    return parts


def _in_stage(reading: Reading, counts: Sequence[SourceCounts], total: float) -> list[float]:
    """How many of all sequences each source gives, where the others of its task go on after its last epoch."""
    found = {}
    for task in TASKS:
        members = [count for count in counts if count.part.task == task]
        limits = [count.part.spec.epochs for count in members]
        given = shared_out(
            total * sum(count.part.share for count in members),
            [count.part.share for count in members],
            [math.inf if e is None else e * c.usable for c, e in zip(members, limits, strict=True)],
        )
        found |= {count.part.label: number for count, number in zip(members, given, strict=True)}
    return [found[count.part.label] for count in counts]


def shared_out(total: float, weights: Sequence[float], most: Sequence[float]) -> list[float]:
    """`total` by weight; whoever has the most it can have leaves the rest to the others, by their weights.

    Args:
      total: what there is.
      weights: above 0.
      most: of each; where all are finite, some of `total` may be left.
    """
    given, left = [0.0] * len(weights), total
    active = list(range(len(weights)))
    while active:
        level = left / sum(weights[i] for i in active)
        full = [i for i in active if weights[i] * level >= most[i]]
        if not full:
            for i in active:
                given[i] = weights[i] * level
            break
        for i in full:
            given[i] = most[i]
            left -= most[i]
        active = [i for i in active if i not in full]
    return given
