"""The loss of what is held out of training, by task and source: always of the same sequences in the same rows."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping

import grain
import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.data import TASKS, Rejected, Source, pack, read_example
from janus_jax.models import JanusModel, Params
from janus_jax.parallel import global_batch, is_first, process_rows, replicated, to_host
from janus_jax.run.experiment import Experiment
from janus_jax.run.stage_data import (
    has_codes,
    held_out_of,
    make_encoder,
    row_shape,
    stage_seed,
    stage_sources,
)
from janus_jax.training import Stage
from janus_jax.untrusted import printable

Batch = dict[str, np.ndarray]


class HeldOutLoss:
    """Cross-entropy of a stage's held-out records under any parameters.

    A mean over all targets of a source, or of a task, as in training, but nothing is left to chance: no prompt is
    dropped. Records are read and packed again at each call, by every process; each computes its own rows.

    Args:
      experiment: of the run.
      stage: of packed rows.
      rows: of a batch; by default as many as training has on the devices at once.

    Attributes:
      counts: label -> how many records are held out, of each source that the stage reads; empty: there is nothing
        to compute.
    """

    def __init__(self, experiment: Experiment, stage: Stage, rows: int = 0):
        shares = dict(zip(TASKS, stage.ratio, strict=True))
        self._experiment, self._stage = experiment, stage
        self._rows = rows or stage.batch_size // stage.accumulate
        self._specs = [
            (number, spec)
            for number, spec in enumerate(stage.sources)
            if stage.packed and spec.held_out and spec.weight > 0 and shares.get(spec.task)
        ]
        self._sources = {number: held_out_of(stage, spec) for number, spec in self._specs}
        self.counts = {spec.label: len(self._sources[n]) for n, spec in self._specs}
        self.counts = {label: count for label, count in self.counts.items() if count}
        mesh = experiment.mesh
        self._sums = jax.jit(
            functools.partial(_sums, experiment.model, len(stage.sources)),
            out_shardings=replicated(mesh),
        )

    def __call__(self, params: Params) -> dict[str, float | dict[str, float]]:
        """Losses in nats a target.

        Args:
          params: a full tree on the mesh, with or without an adapter.

        Returns:
          `loss`, the mean of the tasks by the stage's ratio; `loss_und`, `loss_text` and `loss_gen`, of those that
          have something held out; `sources`: label -> loss. A source none of whose records can be used is not
          there; {} where there is none.
        """
        mesh = self._experiment.mesh
        mine = process_rows(mesh, self._rows)
        totals = np.zeros((2, len(self._stage.sources)))
        for batch in self._batches():
            part = {name: value[mine] for name, value in batch.items()}
            found = to_host(self._sums(params, global_batch(part, mesh)))
            # In double precision, as the sums of a batch depend on how many rows it has.
            totals += found.astype(np.float64).sum(axis=1)
        return self._means(totals)

    def _means(self, totals: np.ndarray) -> dict[str, float | dict[str, float]]:
        used = [(n, spec) for n, spec in self._specs if totals[1, n] > 0]
        if not used:
            return {}
        means: dict[str, float] = {}
        for task in TASKS:
            of_task = [n for n, spec in used if spec.task == task]
            if of_task:
                loss, weight = totals[:, of_task].sum(axis=1)
                means[task] = float(loss / weight)
        shares = dict(zip(TASKS, self._stage.ratio, strict=True))
        whole = sum(shares[task] for task in means)
        loss = sum(shares[task] * mean for task, mean in means.items()) / whole
        sources = {spec.label: float(totals[0, n] / totals[1, n]) for n, spec in used}
        return {"loss": loss, **{f"loss_{t}": x for t, x in means.items()}, "sources": sources}

    def _batches(self) -> Iterator[Batch]:
        """Batches of `rows` rows; the last one is filled up with rows that count for nothing."""
        rows: list[Batch] = []
        for row in self._packed():
            rows.append(row)
            if len(rows) == self._rows:
                yield _joined(rows)
                rows = []
        if rows:
            empty = dict(rows[-1])
            for name in ("target_weights", "gen_weights"):
                empty[name] = np.zeros_like(empty[name])
            yield _joined([*rows, *[empty] * (self._rows - len(rows))])

    def _packed(self) -> Iterator[Batch]:
        """Rows of one, in the order of the sources and of their records."""
        experiment, stage = self._experiment, self._stage
        data, row = experiment.config.data, row_shape(experiment.config, stage)
        codes = has_codes(stage_sources(stage, stage_seed(experiment, stage)))
        encode = make_encoder(
            experiment,
            dataclasses.replace(stage, condition_dropout=0.0),
            row,
            codes,
            too_long="reject" if data.too_long == "error" else data.too_long,
        )
        records = [(n, i) for n, source in self._sources.items() for i in range(len(source))]
        threads = data.threads
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
        sequences = grain.MapDataset.source(records).map(_Read(self._sources, encode))
        # Of what cannot be used there is None, which Grain leaves out.
        return iter(pack(sequences.to_iter_dataset(reading), row, 1, codes))


def said(stage: Stage, counts: Mapping[str, int]) -> None:
    """One line of what is held out."""
    if counts and is_first():
        of = ", ".join(f"{printable(label, 60)} {count}" for label, count in counts.items())
        print(f"{stage.name}: records held out of training: {of}", file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class _Read:
    """(number of a source, index) -> its sequence, or None."""

    sources: Mapping[int, Source]
    encode: object

    def __call__(self, record: tuple[int, int]) -> Batch | None:
        number, index = record
        example = read_example(self.sources[number], index)
        if isinstance(example, Rejected):
            return None
        found = self.encode(dataclasses.replace(example, source=number))
        return None if isinstance(found, Rejected) else found


def _sums(model: JanusModel, sources: int, params: Params, batch: Batch) -> jax.Array:
    """float32 [2, B, sources]: of each row and source the sum of its targets' losses, and of their weights."""
    text, codes = model.apply({"params": params}, batch, method="target_log_probs")
    is_source = lambda numbers: jax.nn.one_hot(numbers, sources, dtype=jnp.float32)
    of_text, of_codes = is_source(batch["target_sources"]), is_source(batch["gen_sources"])
    weights, pictures = batch["target_weights"], batch["gen_weights"]
    by_source = lambda values, of: jnp.einsum("bm,bms->bs", values, of, precision="highest")
    loss = by_source(-text * weights, of_text)
    loss += by_source(-codes.sum(axis=-1) * pictures, of_codes)
    weight = by_source(weights, of_text) + by_source(pictures * codes.shape[-1], of_codes)
    return jnp.stack([loss, weight])


def _joined(rows: list[Batch]) -> Batch:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
