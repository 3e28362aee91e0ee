"""The shards of one source: each is made once, whole, and says what was left out of it.

    OUT/SOURCE/00000.array_record     the records of a range of the source that can be used
    OUT/SOURCE/shards/00000.json      {"records", "bytes", "rejected"}: written after it, so it is finished

A shard is a range of indices of the source, whatever is rejected: it depends on no other shard.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from janus_jax.data import Rejected, Rejection
from janus_jax.errors import UserError
from janus_jax.files import (
    DamagedError,
    atomic_write,
    is_disk_full,
    read_json,
    remove_leftovers,
    write_json,
)

_OPTIONS = "group_size:1"  # any record is read without those beside it
_NAMES = r"[0-9]{5,}\.(?:array_record|json)"


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished shard.

    Attributes:
      name: of its file.
      records: in it.
      bytes: of the file.
      rejected: what was left out, by index.
    """

    name: str
    records: int
    bytes: int
    rejected: tuple[Rejection, ...]

    @property
    def seen(self) -> int:
        return self.records + len(self.rejected)


class Shards:
    """The shards of a directory; temporary files that a killed process left are removed.

    Args:
      directory: of the source; it is there.
      label: name of the source.
      total: records of the source that are prepared.
      size: records of a shard, used or not.

    Attributes:
      reports: of the shards that are finished, by number.

    Raises:
      UserError: the directory is damaged.
    """

    def __init__(self, directory: Path, label: str, total: int, size: int):
        self.directory, self._label = directory, label
        self._total, self._size = total, size
        self._notes = directory / "shards"
        self._notes.mkdir(exist_ok=True)
        for place in (directory, self._notes):
            remove_leftovers(place, _NAMES)
        numbers = range(-(-total // size))
        found = {number: self._finished(number) for number in numbers}
        self.reports = {number: report for number, report in found.items() if report}
        self.missing = [number for number in numbers if number not in self.reports]

    def indices(self, number: int) -> range:
        """Of the records of a shard."""
        return range(number * self._size, min((number + 1) * self._size, self._total))

    def is_last(self, index: int) -> bool:
        """Whether a shard ends with the record at an index."""
        return (index + 1) % self._size == 0 or index == self._total - 1

    def in_order(self) -> list[Report]:
        """The reports of the finished shards."""
        return [self.reports[number] for number in sorted(self.reports)]

    def write(self, number: int, records: Iterator[tuple[int, bytes | Rejection]]) -> None:
        """Makes a shard of the next records, which are its.

        Args:
          number: of the shard.
          records: (index, record or why there is none), in order; those of later shards are left in it.

        Raises:
          UserError: the disk is full.
        """
        path, count, rejected = self._path(number), 0, []

        def kept() -> Iterator[bytes]:
            for _, record in itertools.islice(records, len(self.indices(number))):
                if isinstance(record, Rejection):
                    rejected.append(record)
                else:
                    yield record

        def fill(place: Path) -> None:
            nonlocal count
            count = _write_records(place, kept())

        atomic_write(path, fill)
        report = Report(path.name, count, path.stat().st_size, tuple(rejected))
        write_json(self._note(number), _to_json(report))
        self.reports[number] = report

    def _finished(self, number: int) -> Report | None:
        """What is known of a shard; None if it is still to be made."""
        note = self._note(number)
        if not note.is_file():
            return None
        value = read_json(note, dict, "remove it, and its shard is made again")
        try:
            rejected = tuple(Rejection(self._label, *each) for each in value["rejected"])
            report = Report(self._path(number).name, value["records"], value["bytes"], rejected)
            whole = report.seen == len(self.indices(number))
        except (KeyError, TypeError) as error:
            raise DamagedError(
                f"{note} is damaged: remove it, and its shard is made again"
            ) from error
        there = os.path.isfile(self._path(number))
        if whole and there and self._path(number).stat().st_size == report.bytes:
            return report
        return None

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:05}.array_record"

    def _note(self, number: int) -> Path:
        return self._notes / f"{number:05}.json"


def _write_records(place: Path, records: Iterator[bytes]) -> int:
    from array_record.python.array_record_module import ArrayRecordWriter

    count = 0
    writer = ArrayRecordWriter(str(place), _OPTIONS)
    try:
        for record in records:
            writer.write(record)
            count += 1
        writer.close()
    except RuntimeError as error:  # the library says a full disk in words only
        if not is_disk_full(error):
            raise
        raise UserError(
            f"no space left on the disk of {place.parent}: free some and run the same command again; "
            "finished shards are kept"
        ) from error
    return count


def _to_json(report: Report) -> dict[str, Any]:
    rejected = [[r.index, r.record, r.reason, r.detail] for r in report.rejected]
    return {"records": report.records, "bytes": report.bytes, "rejected": rejected}


def reasons(reports: list[Report]) -> Counter[str]:
    """How many records were left out, by their reason."""
    return Counter(r.reason for report in reports for r in report.rejected)


def rejection(source: Any, label: str, index: int, found: Rejected) -> Rejection:
    """A record that is left out, with its place for people."""
    describe = getattr(source, "describe", lambda i: f"record {i}")
    return Rejection(label, index, describe(index), found.reason, found.detail)
