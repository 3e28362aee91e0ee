"""Prepares one source: its shards, the list of what was left out, and the index that makes it readable."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from janus_jax.data import Generation, Rejected, Rejection
from janus_jax.data.containers.prepared import write_prepared_index
from janus_jax.data.formats import FileSource
from janus_jax.data.manifest import ManifestSource
from janus_jax.data_tools.preparation import place
from janus_jax.data_tools.preparation.image_codes import PictureCodes
from janus_jax.data_tools.preparation.options import Options
from janus_jax.data_tools.preparation.pipeline import in_order, with_codes
from janus_jax.data_tools.preparation.records import (
    CODES,
    GIVEN_CODES,
    PIXELS,
    WORDS,
    RecordMaker,
)
from janus_jax.data_tools.preparation.settings import settings_of
from janus_jax.data_tools.preparation.shards import Report, Shards, reasons, rejection
from janus_jax.errors import UserError
from janus_jax.files import atomic_write
from janus_jax.processing import Processor
from janus_jax.run.stage_data import usable

REJECTED = "rejected.jsonl"
_ENOUGH = 1000  # records from which on a share means something before all are read


@dataclasses.dataclass(frozen=True)
class Model:
    """What is needed of a checkpoint.

    Attributes:
      processor: token layouts and sizes of pictures.
      codebook_size: of the image tokenizer.
      encode: pictures to draw -> codes; None where they stay pictures.
      about: JSON-ready, which image tokenizer computes codes, and how.
    """

    processor: Processor
    codebook_size: int
    encode: PictureCodes | None
    about: dict[str, Any]


def kind_of(source: ManifestSource, examples: FileSource, codes: bool) -> str:
    """What is kept of the pictures of a source; its first example says whether it has codes already."""
    if source.task == "text":
        return WORDS
    if source.task == "und":
        return PIXELS
    for _, example in usable(examples):
        if isinstance(example, Generation) and example.codes is not None:
            return GIVEN_CODES
        break
    return CODES if codes else PIXELS


class Preparation:
    """Of one source.

    Args:
      source: of the manifest.
      examples: that it gives.
      kind: what is kept of its pictures, from `kind_of`.
      model: of the checkpoint.
      options: what is asked for.
    """

    def __init__(
        self,
        source: ManifestSource,
        examples: FileSource,
        kind: str,
        model: Model,
        options: Options,
    ):
        self._name, self._task, self._examples = source.name, source.task, examples
        self._kind, self._model, self._options = kind, model, options
        self._directory = options.out / source.name
        self._total = min(len(examples), options.limit or len(examples))
        self._settings = settings_of(
            source,
            examples,
            options.manifest.absolute().parent,
            model.processor.config,
            kind,
            model.about if kind == CODES else {},
            self._total,
            options.shard_records,
        )

    def run(self) -> None:
        """Makes the shards that are missing, and then what makes the directory a prepared one.

        Raises:
          UserError: the directory is of another preparation, too much is left out, or the disk is full.
        """
        place.begin(self._directory, self._settings)
        shards = Shards(self._directory, self._name, self._total, self._options.shard_records)
        earlier = sum(report.seen for report in shards.reports.values())
        if shards.missing:
            bar = tqdm(
                total=self._total,
                initial=earlier,
                desc=self._name,
                unit="picture" if self._task == "gen" else "record",
                disable=self._options.quiet,
                dynamic_ncols=True,
            )
            with bar:
                self._make(shards, bar.update)
        self._check_rejected(shards.in_order())
        self._finish(shards.in_order(), earlier)

    def _make(self, shards: Shards, advance: Callable[[int], object]) -> None:
        """Makes the shards that are missing, one after the other; what is read runs ahead of them."""
        indices = (index for number in shards.missing for index in shards.indices(number))
        with contextlib.closing(self._records(indices, shards.is_last)) as records:
            counted = self._counted(records, advance)
            for number in shards.missing:
                shards.write(number, counted)
                self._check_rejected(shards.in_order())

    def _records(
        self, indices: Iterator[int], is_last: Callable[[int], bool]
    ) -> Generator[tuple[int, bytes | Rejected]]:
        model, threads = self._model, self._options.threads
        make = RecordMaker(self._examples, model.processor, self._kind, model.codebook_size)
        if self._kind != CODES:
            return in_order(make, indices, threads)
        return with_codes(
            in_order(make, indices, threads, model.encode.batch), model.encode, is_last
        )

    def _counted(
        self, records: Iterator[tuple[int, bytes | Rejected]], advance: Callable[[int], object]
    ) -> Iterator[tuple[int, bytes | Rejection]]:
        for index, one in records:
            advance(1)
            if isinstance(one, Rejected):
                yield index, rejection(self._examples, self._name, index, one)
            else:
                yield index, one

    def _check_rejected(self, reports: Sequence[Report]) -> None:
        """Raises UserError where too much is left out: of all, or so much that it will be."""
        seen, limit = sum(report.seen for report in reports), self._options.max_rejected
        bad = sum(len(report.rejected) for report in reports)
        certain = bad > limit * self._total
        clear = seen >= _ENOUGH and bad > 2 * limit * seen
        if not (certain or clear):
            return
        path = self._write_rejected(reports)
        (reason, count), *_ = reasons(reports).most_common(1)
        last = next(r for report in reports for r in report.rejected if r.reason == reason)
        detail = f" ({last.detail})" if last.detail else ""
        allowed = min(1.0, math.ceil(bad / seen * 110) / 100)
        raise UserError(
            f"source {self._name}: {bad} of the {seen} records read were left out ({bad / seen:.1%}, "
            f"more than the {limit:.4g} of --max_rejected), {'all' if count == bad else count} of them: "
            f"{reason}{detail}; {path} lists them; mend the data, or run the same command with "
            f"--max_rejected={allowed:g}"
        )

    def _finish(self, reports: Sequence[Report], done: int) -> None:
        """Writes what makes the directory a prepared one, the index last; says what there is."""
        name, records = self._name, sum(report.records for report in reports)
        if not records:
            raise UserError(f"source {name}: no record can be used")
        self._write_rejected(reports)
        found = reasons(reports)
        write_prepared_index(
            str(self._directory),
            self._task,
            {report.name: report.records for report in reports if report.records},
            rejected=dict(sorted(found.items())),
            settings=self._settings,
        )
        size = sum(report.bytes for report in reports)
        words = ", ".join(f"{count} {reason}" for reason, count in found.most_common())
        left = f", {sum(found.values())} left out ({words})" if found else ""
        earlier = f" ({done} of the {self._total} were there)" if done else ""
        print(
            f"{name}: {records} records, {self._kind_in_words}, {size / 1e6:.1f} MB{left}{earlier}"
        )

    @property
    def _kind_in_words(self) -> str:
        return {WORDS: "no pictures"}.get(self._kind, f"pictures as {self._kind}")

    def _write_rejected(self, reports: Sequence[Report]) -> Path:
        path = self._directory / REJECTED
        rows = (dataclasses.asdict(r) for report in reports for r in report.rejected)
        atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
        return path
