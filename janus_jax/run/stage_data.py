"""The batches of a stage, with a position that survives another number of processes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax

from janus_jax.data import PackedShape, mixed_batches, plain_batches
from janus_jax.emoji.source import SceneMix, SceneSource
from janus_jax.errors import UserError
from janus_jax.parallel import is_first
from janus_jax.run.experiment import Experiment
from janus_jax.training import Stage

KINDS = {"vq": "pictures", "siglip": "pairs"}


class Batches:
    """Endless batches, the next ones made while the device works on this one, until `close`.

    A position is only worth something to the same division of the same data. Where a checkpoint was
    saved with another (number of processes, batch, ratio, ...), the data goes on with a new seed: an
    order, and for the emoji scenes records, that the run has not seen.

    Args:
      make: seed -> the batches from their first one.
      seed: of the first order.
      settings: JSON-ready, what a position depends on.
      name: of the stage, for messages.
    """

    def __init__(
        self,
        make: Callable[[int], grain.IterDataset],
        seed: int,
        settings: Mapping[str, Any],
        name: str,
    ):
        self._make, self._seed, self._name = make, seed, name
        self._settings = dict(settings)
        self._restarted = 0  # how often a new order was begun
        self._iterator: grain.DatasetIterator | None = None

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> dict[str, Any]:
        try:
            return next(self._open())
        except ValueError as error:
            if "truncated to max length" not in str(error):
                raise
            # So rare that `check_stages` did not meet one.
            reason = str(error).rpartition("=")[2].strip()
            raise UserError(
                f"{self._name}: a sequence is longer than a row has room for ({reason}); go on with "
                "more, such as --config.data.row.tokens=N --allow_change=data.row"
            ) from error

    def get_state(self) -> dict[str, Any]:
        """JSON-ready position."""
        return {
            "restarted": self._restarted,
            "settings": self._settings,
            "position": self._open().get_state(),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a position, or to a new order if it is of other settings."""
        if "position" not in state:  # the position alone, as older checkpoints have it
            self._open().set_state(dict(state))
            return
        saved = state["settings"]
        changed = [k for k, v in self._settings.items() if k in saved and saved[k] != v]
        if changed:
            was = ", ".join(f"{k} was {saved[k]!r}, now {self._settings[k]!r}" for k in changed)
            self._begin(state["restarted"] + 1, was)
            return
        self._begin(state["restarted"])
        self._open().set_state(dict(state["position"]))

    def close(self) -> None:
        """Ends the reading threads, which would outlive the interpreter."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _begin(self, restarted: int, reason: str = "") -> None:
        if reason and is_first():
            print(f"{self._name}: the data goes on in a new order ({reason})", file=sys.stderr)
        if restarted != self._restarted:
            self.close()
        self._restarted = restarted

    def _open(self) -> grain.DatasetIterator:
        if self._iterator is None:
            ahead = grain.experimental.ThreadPrefetchIterDataset(
                self._make(_seed(self._seed, self._restarted)), prefetch_buffer_size=2
            )
            self._iterator = iter(ahead)
        return self._iterator


def batches(experiment: Experiment, stage: Stage) -> Batches:
    """The endless batches of one stage on this process, from the first one; close them after use."""
    config = experiment.config
    process = (jax.process_index(), jax.process_count())
    rows = stage.batch_size // process[1]
    # Another stage is another part of the data, not the same scenes again.
    seed = config.seed * 100 + experiment.stages.index(stage)

    def make(seed: int) -> grain.IterDataset:
        common = dict(seed=seed, process=process, threads=config.data.threads)
        sources = stage_sources(experiment, stage, seed)
        if stage.objective in KINDS:
            return plain_batches(sources[KINDS[stage.objective]], rows, **common)
        return mixed_batches(sources, stage.ratio, row_shape(config, stage), rows, **common)

    settings = {
        "seed": config.seed,
        "processes": process[1],
        "batch_size": stage.batch_size,
        "ratio": list(stage.ratio),
        "row": config.data.row.to_dict() if stage.objective == "janus" else {},
        "scenes": json.loads(json.dumps(dict(stage.scenes))),
    }
    return Batches(make, seed, settings, stage.name)


def stage_sources(
    experiment: Experiment,
    stage: Stage,
    seed: int,
    mix: SceneMix | None = None,
    blank: bool = False,
) -> dict[str, SceneSource]:
    """The sources of a stage by kind of record; `blank` ones render no pictures."""
    mix = mix or SceneMix(**stage.scenes)
    world, processor = experiment.world, experiment.processor
    if stage.objective in KINDS:
        kind = KINDS[stage.objective]
        length = stage.options.get("text_length", 64)
        return {kind: SceneSource(kind, world, processor, mix, seed, text_length=length)}
    return {
        kind: SceneSource(kind, world, processor, mix, seed, blank=blank)
        for kind in ("und", "text", "gen")
    }


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
