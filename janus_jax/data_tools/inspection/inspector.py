"""Looks at all that a stage of a run would read, and writes what there is to see.

look/index.html      the page for people
look/inspect.json    all numbers
look/rejected.jsonl  every record that is left out
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from pathlib import Path

from ml_collections import ConfigDict
from tqdm import tqdm

from janus_jax.data import read_example
from janus_jax.data_tools.inspection.mixture import ROWS, MixedPart, Packing, first_rows, mix
from janus_jax.data_tools.inspection.numbers import as_json
from janus_jax.data_tools.inspection.page import page
from janus_jax.data_tools.inspection.pictures import CodePainter
from janus_jax.data_tools.inspection.reading import Reading, open_reading
from janus_jax.data_tools.inspection.samples import Sample, samples
from janus_jax.data_tools.inspection.scan import SourceCounts, chosen, scan, words
from janus_jax.data_tools.inspection.verdict import Problem, problems, warnings
from janus_jax.errors import UserError
from janus_jax.files import atomic_write, write_json
from janus_jax.gcs import is_gcs
from janus_jax.places import check_directory, check_local, make_directory

PAGE, NUMBERS, REJECTED = "index.html", "inspect.json", "rejected.jsonl"


@dataclasses.dataclass(frozen=True)
class Repeat:
    """Words that several records have: those of the record `index`, `times` times."""

    index: int
    times: int
    text: str


@dataclasses.dataclass(frozen=True)
class SourceFindings:
    """What was found in a source."""

    counts: SourceCounts
    mixed: MixedPart
    repeated: int  # records whose words an earlier one has
    repeats: tuple[Repeat, ...]  # the most frequent
    samples: tuple[Sample, ...]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an inspection found.

    Attributes:
      reading: what was inspected.
      limit: of the records of each source; 0 for none.
      sources: in the order of the run.
      packing: of the first rows; without rows where a source has nothing to pack.
      problems: for which a run would not start, or stop; the worst first.
      warnings: for people.
      seconds: that reading took.
    """

    reading: Reading
    limit: int
    sources: tuple[SourceFindings, ...]
    packing: Packing
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]
    seconds: float


def inspect(
    config: ConfigDict,
    out: str | Path,
    stage: str = "",
    limit: int = 0,
    count: int = 12,
    checkpoint: str = "",
    quiet: bool = False,
    rows: int = ROWS,
) -> Findings:
    """Inspects the data of one stage, and writes the three files.

    Args:
      config: of the run; it names a manifest, or has sources of its own.
      out: a directory; it is made, and other files in it stay.
      stage: its name; "" for the one that the config runs alone, or else the last one of packed rows.
      limit: read at most so many records of each source, spread evenly; 0 for all.
      count: records of each source that are shown as the model reads them.
      checkpoint: a model directory: its tokenizer where the config has none, its pictures of codes; or "".
      quiet: no progress bars.
      rows: of the run to pack.

    Raises:
      UserError: a run would not even begin to read, or `out` cannot be written; nothing is.
    """
    if is_gcs(out):
        raise UserError(f"--out {out}: give a directory of this machine")
    check_local(out, "--out")
    check_directory(out, "--out", (PAGE, NUMBERS, REJECTED))
    reading = open_reading(config, stage, checkpoint)
    paint = CodePainter(reading) if reading.codes and checkpoint else None
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as listing:
        counts = _scanned(reading, limit, listing, quiet)
        seconds = time.perf_counter() - begin
        packing = _packed(reading, counts, rows, quiet)
        mixed = mix(reading, counts, packing)
        found = Findings(
            reading=reading,
            limit=limit,
            sources=tuple(
                _findings(reading, c, m, limit, count, paint)
                for c, m in zip(counts, mixed, strict=True)
            ),
            packing=packing,
            problems=tuple(problems(reading, counts)),
            warnings=tuple(warnings(reading, counts)),
            seconds=seconds,
        )
        text = page(found)
        make_directory(out)
        listing.seek(0)
        atomic_write(Path(out, REJECTED), lambda path: _copy(listing, path))
    write_json(Path(out, NUMBERS), as_json(found))
    atomic_write(Path(out, PAGE), text)
    return found


def _scanned(reading: Reading, limit: int, listing, quiet: bool) -> list[SourceCounts]:
    """All sources, one after the other."""
    total = sum(len(chosen(len(part.source.examples), limit)) for part in reading.parts)
    threads = max(os.cpu_count() or 1, 2)
    counts = []
    with tqdm(total=total, unit="record", disable=quiet, dynamic_ncols=True) as bar:
        for part in reading.parts:
            bar.set_description(part.label)
            counts.append(scan(reading, part, limit, threads, listing, bar.update))
    return counts


def _packed(reading: Reading, counts: list[SourceCounts], rows: int, quiet: bool) -> Packing:
    if empty := [count.part.label for count in counts if not count.used]:
        return Packing(note=f"nothing of {', '.join(empty)} can be used")
    with tqdm(total=rows, unit="row", desc="packing", disable=quiet, dynamic_ncols=True) as bar:
        return first_rows(reading, rows, bar.update)


def _findings(
    reading: Reading, counts: SourceCounts, mixed: MixedPart, limit: int, count: int, paint
) -> SourceFindings:
    source = counts.part.source.examples
    indices = chosen(len(source), limit)
    repeated, most = counts.repeats()
    repeats = [Repeat(i, times, words(read_example(source, i))) for i, times in most]
    shown = samples(reading, counts.part, indices, count, paint)
    return SourceFindings(counts, mixed, repeated, tuple(repeats), tuple(shown))


def _copy(listing, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(listing, file)
