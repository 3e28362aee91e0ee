"""The scores in a report: as each benchmark wants its own shown, and any other table as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_jax.errors import UserError
from janus_jax.evaluation import BENCHMARKS
from janus_jax.evaluation.tables import (
    BenchmarkReport,
    Grid,
    Highlight,
    Section,
    StageScores,
    is_table,
    rows_of,
    score,
    standard_error,
)
from janus_jax.run.report import files, markdown


class RunScores:
    """The scores of a run by stage and by table.

    Args:
      order: of the stages.
      scores: stage -> its entry of scores.json.
      settings: `eval` of the config, as far as it is known.
    """

    def __init__(
        self, order: Sequence[str], scores: Mapping[str, Any], settings: Mapping[str, Any]
    ):
        self._order, self._scores, self._settings = order, scores, settings
        self.reports = list(_reports())

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        return list(self._scores.values())

    def entry(self, stage: str) -> Mapping[str, Any]:
        return self._scores.get(stage, {})

    def newest(self, table: str) -> StageScores:
        """The last stage that has a table, or a group of tables, of this name."""
        for stage in reversed(self._order):
            found = self.entry(stage).get(table)
            if found and isinstance(found, Mapping):
                return StageScores(stage, self.entry(stage))
        return StageScores(None, {})

    @property
    def tables(self) -> list[str]:
        """Names of all tables and groups of tables, in order of appearance."""
        fields = (f for name in self._order for f, v in self.entry(name).items() if _is_dict(v))
        return list(dict.fromkeys(fields))

    @property
    def benchmarks(self) -> set[str] | None:
        """Names of the config's benchmarks; None if it does not say."""
        listed = self._settings.get("benchmarks")
        if not isinstance(listed, list):
            return None
        return {str(fields.get("name")) for fields in listed if isinstance(fields, dict)}


def highlights(scores: RunScores) -> list[Highlight]:
    """Columns for the table of stages: of benchmarks that were scored, or that the config has."""
    chosen, scored = scores.benchmarks, set(scores.tables)
    return [
        h
        for name, report in scores.reports
        for h in report.highlights
        if chosen is None or name in chosen or h.table in scored
    ]


def highlight(entry: Mapping[str, Any], wanted: Highlight) -> str:
    """The number of a highlight in a stage's entry, as text."""
    found = entry.get(wanted.table)
    return score(found if is_table(found) else {}, wanted.row, wanted.column)


def score_sections(scores: RunScores, path: Path) -> list[str]:
    """The parts of a report that show scores; what is damaged in `path` is left out with a warning."""
    sections, shown = [], set()
    for _, report in scores.reports:
        shown |= set(report.tables)
        sections += files.part(path, [], lambda report=report: report.sections(scores))
    for name in scores.tables:
        if name not in shown:
            sections += files.part(path, [], lambda name=name: _any_table(scores, name))
    return [files.part(path, "", markdown.section, s) for s in sections]


def _any_table(scores: RunScores, name: str) -> list[Section]:
    """A table that no benchmark's report shows, with all its rows and columns."""
    found = scores.newest(name)
    if found.stage is None:
        return []
    value = found.entry[name]
    tables = {"": value} if is_table(value) else dict(value)
    parts: list[str | Grid] = []
    for title, table in tables.items():
        if not is_table(table):
            continue
        columns = list(dict.fromkeys(column for row in table.values() for column in row))
        rows = [[row, *(score(table, row, c) for c in columns)] for row in rows_of([table])]
        if "mean" not in table:
            rows = rows[:-1]
        error = standard_error(table)
        parts += [f"{markdown.one_line(title)}:"] if title else []
        parts += [error] if error else []
        parts.append(Grid(["", *columns], rows))
    return [Section(markdown.one_line(name), [f"After {found.stage}.", *parts])] if parts else []


def _reports() -> Iterator[tuple[str, BenchmarkReport]]:
    """The reports of all benchmarks that are known by name, without those that cannot be imported."""
    for name in BENCHMARKS.names:
        if report := files.part(f"benchmark {name}", None, _report, name):
            yield name, report


def _report(name: str) -> BenchmarkReport | None:
    try:
        return getattr(BENCHMARKS.get(name), "report", None)
    except ImportError as error:
        raise UserError(f"cannot import it: {error}") from error


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)
