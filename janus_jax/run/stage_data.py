"""The batches of a stage, with a position that survives another number of processes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain

from janus_jax.data import (
    Example,
    Generation,
    HeldOut,
    Ledger,
    PackedShape,
    PairEncoder,
    PictureEncoder,
    Rejected,
    SequenceEncoder,
    SequenceTooLong,
    Source,
    WeightedSource,
    WithoutHeldOut,
    WorkerProcesses,
    in_words,
    make_source,
    mixed_batches,
    read_example,
    source_seed,
    stream_batches,
    unpacked_batches,
)
from janus_jax.errors import UserError
from janus_jax.files import DamagedError
from janus_jax.parallel import is_first, process_rows
from janus_jax.run.experiment import Experiment
from janus_jax.run.rejected_log import RejectedLog
from janus_jax.training import SourceSpec, Stage


class Batches:
    """Endless batches, the next ones made while the device works on this one, until `close`.

    A position is one of each stream (`data.streams`), so any number of processes can go on from it. It is
    only worth something to the same division of the same data. Where a checkpoint was saved with another
    (number of streams, batch, ratio, ...), the data goes on with a new seed: an order, and where data is
    made on the fly examples, that the run has not seen.

    Args:
      make: (seed, ledger, workers) -> the batches from their first one.
      seed: of the first order.
      settings: JSON-ready, what a position depends on.
      name: of the stage, for messages.
      new_ledger: of what is left out, for one order.
      new_workers: processes that read, for one order, or None.
    """

    def __init__(
        self,
        make: Callable[[int, Ledger, WorkerProcesses | None], grain.IterDataset],
        seed: int,
        settings: Mapping[str, Any],
        name: str,
        new_ledger: Callable[[], Ledger] = Ledger,
        new_workers: Callable[[], WorkerProcesses | None] = lambda: None,
    ):
        self._make, self._seed, self._name = make, seed, name
        self._new_workers, self._workers = new_workers, None
        self._new_ledger, self.ledger = new_ledger, new_ledger()
        self._settings = dict(settings)
        self._restarted = 0  # how often a new order was begun
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self._open())
        except SequenceTooLong as error:
            # So rare that `check_stages` did not meet one.
            raise UserError(
                f"{self._name}: {error}; go on with more, such as --config.data.row.tokens=N "
                "--allow_change=data.row, or leave such sequences out with "
                "--config.data.too_long=reject --allow_change=data.too_long"
            ) from error
        except UserError as error:
            raise UserError(f"{self._name}: {error}") from error

    def get_state(self) -> dict[str, Any]:
        """JSON-ready position of the streams that this process reads."""
        return {
            "restarted": self._restarted,
            "settings": self._settings,
            "position": self._open().get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the position of a process that was alone."""
        self.set_states([state])

    def set_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Goes to the position of a job, or to a new order if it is of other settings.

        Args:
          states: of all its processes, in their order.

        Raises:
          DamagedError: streams are missing.
        """
        if "position" not in states[0]:  # the position alone, as older checkpoints have it
            states = [{"restarted": 0, "settings": {}, "position": state} for state in states]
        saved = dict(states[0]["settings"])
        # Before there were streams, each process read what is a stream now, and packed first-fit.
        saved = {"streams": saved.pop("processes", len(states)), "lookahead": 0} | saved
        changed = [k for k, v in self._settings.items() if k in saved and saved[k] != v]
        if changed:
            was = ", ".join(f"{k} was {saved[k]!r}, now {self._settings[k]!r}" for k in changed)
            self._begin(states[0]["restarted"] + 1, was)
            return
        streams: dict[str, Any] = {}
        for process, state in enumerate(states):
            position = state["position"]
            streams |= position.get("streams") or {str(process): position}
        if missing := {str(i) for i in range(saved["streams"])} - streams.keys():
            raise DamagedError(
                f"{self._name}: the position of stream {min(missing, key=int)} is missing"
            )
        self._begin(states[0]["restarted"])
        self._open().set_state({"streams": streams})

    def close(self) -> None:
        """Ends the reading threads, which would outlive the interpreter, and processes."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None
            if self._workers is not None:
                self._workers.close()
            self._report()

    def rejected_share(self) -> float:
        """Of the records that this process has read, the share that was left out."""
        return self.ledger.share()

    def _report(self) -> None:
        found = {label: in_words(tally) for label, tally in self.ledger.totals().items()}
        said = "; ".join(f"{label}: {words}" for label, words in found.items() if words)
        if said and is_first():
            print(f"{self._name}: of the records that were read, {said}", file=sys.stderr)

    def _begin(self, restarted: int, reason: str = "") -> None:
        if reason and is_first():
            print(f"{self._name}: the data goes on in a new order ({reason})", file=sys.stderr)
        if restarted != self._restarted:
            self.close()
        self._restarted = restarted

    def _open(self) -> grain.DatasetIterator:
        if self._iterator is None:
            self.ledger = self._new_ledger()
            self._workers = self._new_workers()
            made = self._make(_seed(self._seed, self._restarted), self.ledger, self._workers)
            ahead = grain.experimental.ThreadPrefetchIterDataset(made, prefetch_buffer_size=2)
            self._iterator = iter(ahead)
        return self._iterator


def batches(experiment: Experiment, stage: Stage, run_dir: Path | None = None) -> Batches:
    """The endless batches of one stage on this process, from the first one; close them after use.

    Args:
      experiment: of the run.
      stage: one of its stages.
      run_dir: where what is left out is listed; None lists nothing.

    Raises:
      UserError: a source cannot be opened.
    """
    config, data = experiment.config, experiment.config.data
    rows = process_rows(experiment.mesh, stage.batch_size)
    seed = stage_seed(experiment, stage)
    is_packed = stage.packed
    row = row_shape(config, stage)
    codes = is_packed and has_codes(stage_sources(stage, seed))
    encode = make_encoder(experiment, stage, row, codes)

    def make(seed: int, ledger: Ledger, workers: WorkerProcesses | None) -> grain.IterDataset:
        sources = stage_sources(stage, seed)
        if is_packed:
            of_stream = functools.partial(
                mixed_batches,
                sources,
                stage.ratio,
                encode,
                row,
                codes=codes,
                lookahead=data.lookahead,
            )
        else:
            of_stream = functools.partial(unpacked_batches, sources, encode)
        one = functools.partial(of_stream, seed=seed, ledger=ledger, workers=workers)
        return stream_batches(one, data.streams, stage.batch_size, rows, data.threads)

    settings = {
        "seed": config.seed,
        "streams": data.streams,
        "batch_size": stage.batch_size,
        "ratio": list(stage.ratio),
        "row": data.row.to_dict() if is_packed else {},
        "too_long": data.too_long,
        "sources": [_setting(source) for source in stage.sources],
        "condition_dropout": stage.condition_dropout,
    }
    if is_packed:
        settings["lookahead"] = data.lookahead
    log = RejectedLog(run_dir, stage.name) if run_dir else None
    where = str(log.path) if log else ""
    new_ledger = functools.partial(Ledger, data.max_rejected, data.streams, log, where)
    workers = data.get("workers", 0)
    new_workers = functools.partial(WorkerProcesses, workers) if workers else lambda: None
    return Batches(make, seed, settings, stage.name, new_ledger, new_workers)


def _setting(source: SourceSpec) -> dict[str, Any]:
    """JSON-ready; what an earlier version did not know is left out where it is as it was then."""
    fields = dataclasses.asdict(source)
    if source.shuffle:
        del fields["shuffle"]
    if source.epochs is None:
        del fields["epochs"]
    if not source.held_out:
        del fields["held_out"]
    return json.loads(json.dumps(fields))


def stage_seed(experiment: Experiment, stage: Stage) -> int:
    """Of a stage's first order: another stage is another part of the data, not the same examples again."""
    return experiment.config.seed * 100 + experiment.stages.index(stage)


def stage_sources(stage: Stage, seed: int) -> list[WeightedSource]:
    """The sources of a stage, in the order of their numbers in its batches."""
    found, of_task = [], dict.fromkeys((s.task for s in stage.sources), 0)
    for spec in stage.sources:
        examples = open_source(stage, spec, source_seed(seed, of_task[spec.task]))
        of_task[spec.task] += 1
        found.append(
            WeightedSource(spec.task, examples, spec.weight, spec.label, spec.shuffle, spec.epochs)
        )
    return found


def open_source(stage: Stage, spec: SourceSpec, seed: int) -> Source:
    """One source of a stage, without what is held out of it."""
    source = _whole_source(stage, spec, seed)
    return WithoutHeldOut(source, spec.held_out) if spec.held_out else source


def held_out_of(stage: Stage, spec: SourceSpec) -> Source:
    """What is held out of a source of a stage; what its records leave to chance is the same in all stages."""
    return HeldOut(_whole_source(stage, spec, seed=0), spec.held_out)


def _whole_source(stage: Stage, spec: SourceSpec, seed: int) -> Source:
    where = f"config.stages.{stage.name}.sources.{spec.label}"
    return make_source(spec.name, spec.task, spec.options, seed, where)


def make_encoder(
    experiment: Experiment, stage: Stage, row: PackedShape | None, codes: bool = False, **options
) -> SequenceEncoder | PictureEncoder | PairEncoder:
    """What turns the examples of a stage into arrays; `options` are of `SequenceEncoder`."""
    if stage.objective == "vq":
        return PictureEncoder(experiment.processor)
    if stage.objective == "siglip":
        return PairEncoder(experiment.processor, stage.options.get("text_length", 64))
    options = dict(too_long=experiment.config.data.too_long) | options
    return SequenceEncoder(
        experiment.processor,
        row,
        condition_dropout=stage.condition_dropout,
        codes=codes,
        codebook_size=experiment.janus_config.vq.codebook_size,
        **options,
    )


# Records of a source that are looked at before a run for one that can be used.
LOOKED_AT = 100


def usable(source: Source) -> Iterator[tuple[int, Example]]:
    """The first records of a source that are examples, with their indices."""
    for index in range(min(LOOKED_AT, len(source))):
        example = read_example(source, index)
        if not isinstance(example, Rejected):
            yield index, example


def has_codes(sources: list[WeightedSource]) -> bool:
    """Whether the pictures to generate come as codes; one example says so for all of them."""
    for source in sources:
        if source.task == "gen" and source.weight > 0:
            for _, example in usable(source.examples):
                return isinstance(example, Generation) and example.codes is not None
    return False


def row_shape(config: Any, stage: Stage) -> PackedShape:
    """Room in a row, without any for pictures that never come: the step would work on blank ones."""
    row = PackedShape(**config.data.row)
    und, _, gen = stage.ratio
    return dataclasses.replace(
        row, und_images=row.und_images if und else 0, gen_images=row.gen_images if gen else 0
    )


def _seed(seed: int, restarted: int) -> int:
    if not restarted:
        return seed
    digest = hashlib.sha256(f"{seed} {restarted}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
