"""Tables of scores, and how a benchmark wants them shown: data, without the layout of any report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Table = Mapping[str, Mapping[str, float | None]]  # row -> column -> number

MEAN = "mean"  # the row that comes last
NO_SCORE = "-"


@dataclasses.dataclass(frozen=True)
class Highlight:
    """One number that stands for a whole table, as a column next to the stages of a run."""

    heading: str
    table: str
    row: str
    column: str


@dataclasses.dataclass(frozen=True)
class Grid:
    """A table as it is shown: texts alone."""

    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a report: texts and tables in order, under a title of a level (2 is a chapter's)."""

    title: str
    parts: Sequence[str | Grid]
    level: int = 2


@dataclasses.dataclass(frozen=True)
class StageScores:
    """The entry of one stage in a run's scores; `stage` is None where no stage has any."""

    stage: str | None
    entry: Mapping[str, Any]


class ScoreLookup(Protocol):
    """The scores of a run, by name of the table."""

    def newest(self, table: str) -> StageScores:
        """The last stage that has a table."""
        ...


class BenchmarkReport(Protocol):
    """How the scores of a benchmark are shown to people.

    Attributes:
      tables: names in a stage's scores that `sections` show.
      highlights: columns of the table of stages.
    """

    tables: Sequence[str]
    highlights: Sequence[Highlight]

    def sections(self, scores: ScoreLookup) -> list[Section]:
        """The benchmark's own part of the report; none if there is nothing to show."""
        ...


def score(table: Mapping[str, Any], row: str, column: str) -> str:
    """One number as text; `NO_SCORE` if it is not there."""
    value = table.get(row, {}).get(column)
    return NO_SCORE if value is None else f"{value:.2f}"


def cell(table: Mapping[str, Any], row: str, columns: Sequence[str]) -> str:
    """Several numbers of a row in one cell, such as "0.70 / 0.65"; one `NO_SCORE` without the row."""
    if row not in table:
        return NO_SCORE
    return " / ".join(score(table, row, column) for column in columns)


def rows_of(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows of several tables, in order of appearance; `MEAN` last, also where none has it."""
    names = dict.fromkeys(row for table in tables for row in table if row != MEAN)
    return [*names, MEAN]


def standard_error(table: Mapping[str, Any]) -> str:
    """A sentence on how far chance alone moves a share of so few: the standard error at one half."""
    counts = [row["count"] for row in table.values() if (row.get("count") or 0) > 0]
    if not counts:
        return ""
    count = min(counts)
    return f"{count} of each kind: one standard error is up to {0.5 / count**0.5:.2f}."


def guidance_section(scored: StageScores) -> Section | None:
    """What each weight of guidance got where one was chosen, the chosen one in bold.

    Args:
      scored: of the stage; "guidance" is weight -> table with a `MEAN`, "cfg_weight" the one taken.
    """
    sweep = scored.entry.get("guidance")
    if not sweep:
        return None
    first = next(iter(sweep.values()))
    kinds = [row for row in first if row != MEAN]
    columns = list(first.get(MEAN, {}))
    header = ["weight", MEAN, *(f"{MEAN}, {column}" for column in columns[1:]), *kinds]
    rows = []
    for weight, table in sorted(sweep.items(), key=lambda item: float(item[0])):
        chosen = float(weight) == scored.entry.get("cfg_weight")
        cells = [score(table, MEAN, column) for column in columns]
        cells += [score(table, kind, column) for kind in kinds for column in columns[:1]]
        rows.append([f"**{weight}**" if chosen else weight, *cells])
    text = "The weight with the best mean (bold) was chosen on prompts that are not scored above."
    return Section("Guidance", [text, Grid(header, rows)], level=3)


def is_table(value: Any) -> bool:
    """Whether a value is row -> column -> number, with at least one row."""
    return isinstance(value, Mapping) and bool(value) and all(map(_is_row, value.values()))


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))
        for cell in value.values()
    )
