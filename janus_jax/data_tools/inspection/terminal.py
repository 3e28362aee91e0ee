"""The short summary of an inspection for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from janus_jax.console import printable
from janus_jax.data_tools.inspection.reading import WORDS
from janus_jax.data_tools.inspection.samples import Piece, Sample

if TYPE_CHECKING:
    from janus_jax.data_tools.inspection.inspector import Findings, SourceFindings

LETTERS = 300  # of one text of a sample
SAMPLES = 1  # of each source
GREEN, GREY, PLAIN = "\x1b[32m", "\x1b[90m", "\x1b[0m"


def summary(found: Findings, color: bool) -> Iterator[str]:
    """Lines: a sample of each source, a table, the mixture, the rows, what is left out, warnings.

    Args:
      found: by the inspection.
      color: show with ANSI colours what is learnt.
    """
    for source in found.sources:
        for sample in source.samples[:SAMPLES]:
            yield f"{source.counts.part.label}: {printable(sample.record)}"
            yield "  " + sequence(sample, color)
    if any(source.samples for source in found.sources):
        yield ""
    reading = found.reading
    yield f"{reading.stage.name} of {reading.experiment.config.name}, {_read(found)}"
    yield from _table([_HEAD, *map(_row, found.sources)])
    shares = ", ".join(f"{s.mixed.per_thousand:g} {s.mixed.label}" for s in found.sources)
    yield f"of 1000 sequences: {shares}"
    packing = found.packing
    if packing.rows:
        fill = ", ".join(f"{name} {share:.1%}" for name, share in packing.fill.items())
        yield f"first {packing.rows} rows: {packing.sequences:.1f} sequences each, filled: {fill}"
    if packing.note:
        yield f"rows: {printable(packing.note)}"
    for source in found.sources:
        if reasons := source.counts.rejected.most_common():
            said = ", ".join(f"{number:,} {reason}" for reason, number in reasons)
            yield f"left out of {source.counts.part.label}: {printable(said)}"
    for warning in found.warnings:
        yield f"note: {printable(warning)}"


def sequence(sample: Sample, color: bool) -> str:
    """A sequence on one line; without colours, what is learnt stands between [[ and ]]."""
    parts = []
    for piece in sample.pieces:
        shown = _shown(piece)
        if color:
            parts.append(f"{GREEN if piece.learnt else GREY}{shown}{PLAIN}")
        else:
            parts.append(f"[[{shown}]]" if piece.learnt else shown)
    return "".join(parts).replace("]][[", "")


def _shown(piece: Piece) -> str:
    if piece.control:
        times = f" x{piece.tokens}" if piece.tokens > 1 else ""
        return f"{piece.text}{times}"
    whole = printable(piece.text[:LETTERS])
    return whole + (f"... ({len(piece.text)} letters)" if len(piece.text) > LETTERS else "")


def _read(found: Findings) -> str:
    read = sum(source.counts.read for source in found.sources)
    limited = f" (--limit {found.limit}, spread evenly)" if found.limit else ""
    rate = read / found.seconds if found.seconds else 0
    return f"{read:,} records read{limited} in {found.seconds:.1f} s ({rate:,.0f} a second)"


_HEAD = ("source", "task", "records", "read", "used", "short", "left out")
_HEAD += ("tokens", "95 %", "max", "pictures", "epochs")


def _row(source: SourceFindings) -> tuple[str, ...]:
    counts = source.counts
    out, tokens = sum(counts.rejected.values()), counts.tokens.summary()
    epochs = source.mixed.epochs
    return (
        counts.part.label,
        WORDS[counts.part.task],
        f"{counts.records:,}",
        f"{counts.read:,}",
        f"{counts.used:,}",
        f"{counts.shortened:,}",
        f"{out:,} ({out / counts.read:.1%})",
        *(f"{tokens[name]:,}" if counts.used else "-" for name in ("median", "p95", "max")),
        f"{len(counts.widths):,}",
        "-" if epochs is None else f"{epochs:,.2f}" + " (all it may)" * source.mixed.used_up,
    )


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns of one width; the first two to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
