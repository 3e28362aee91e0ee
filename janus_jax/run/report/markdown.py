"""Texts and tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from janus_jax.evaluation.tables import Grid, Section


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(one_line(c) for c in line) + " |" for line in lines)


def section(found: Section) -> str:
    """A section of a benchmark's report with its title."""
    parts = [table(p.header, p.rows) if isinstance(p, Grid) else p for p in found.parts]
    return "\n\n".join([f"{'#' * found.level} {found.title}", *(p for p in parts if p)])


def one_line(value: Any) -> str:
    """A value as a cell of a table: one line, without what would end the cell."""
    return " ".join(str(value).replace("|", "\\|").split())
