"""What a run would not start with, or would stop at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from janus_jax.data.rejects import NO_ROOM
from janus_jax.data_tools.inspection.reading import Reading
from janus_jax.data_tools.inspection.scan import MISTAKE, SourceCounts
from janus_jax.run.stage_data import LOOKED_AT, usable


@dataclasses.dataclass(frozen=True)
class Problem:
    """Why a run would not start or go on; `code` is the exit code: 2 not start, 1 not go on."""

    source: str
    text: str
    code: int


def problems(reading: Reading, counts: Sequence[SourceCounts]) -> list[Problem]:
    """What stands in the way of a run, the worst first."""
    found = [problem for count in counts for problem in _of(reading, count)]
    return sorted(found, key=lambda problem: -problem.code)


def _of(reading: Reading, counts: SourceCounts) -> list[Problem]:
    label = counts.part.label
    reasons, too_long = counts.rejected, counts.rejected[NO_ROOM]
    if not counts.used:
        text = (
            f"source {label}: none of the {counts.read} records read can be used, {_mostly(counts)}"
        )
        return [Problem(label, text, 2)]
    found = []
    if next(usable(counts.part.source.examples), None) is None:
        first = min(LOOKED_AT, counts.records)
        text = f"source {label}: none of the first {first} records can be used, so a run does not start"
        found.append(Problem(label, text, 2))
    if reasons[MISTAKE]:
        detail = next(r["detail"] for r in counts.shown if r["reason"] == MISTAKE)
        text = f"source {label}: a run stops at {reasons[MISTAKE]} of the {counts.read} records read: {detail}"
        found.append(Problem(label, text, 1))
    elif counts.bad > reading.max_rejected * counts.read:
        text = (
            f"source {label}: {counts.bad} of the {counts.read} records read are left out "
            f"({counts.bad / counts.read:.1%}, more than the {reading.max_rejected:.4g} of "
            f"config.data.max_rejected), {_mostly(counts)}"
        )
        found.append(Problem(label, text, 1))
    if too_long and reading.too_long == "error":
        detail = next(r["detail"] for r in counts.shown if r["reason"] == NO_ROOM)
        text = (
            f"source {label}: {too_long} of the {counts.read} sequences read are longer than a row has room for "
            f"({detail}), at which a run stops: give rows more room, or leave them out with "
            "--config.data.too_long=reject"
        )
        found.append(Problem(label, text, 1))
    return found


def _mostly(counts: SourceCounts) -> str:
    """The most frequent reason, with what was said of the first such record."""
    reasons = {r: n for r, n in counts.rejected.items() if r != NO_ROOM} or counts.rejected
    reason, number = max(reasons.items(), key=lambda pair: pair[1])
    first = next(r for r in counts.shown if r["reason"] == reason)
    detail = f" ({': '.join(filter(None, (first['record'], first['detail'])))})"
    return f"{'all' if number == sum(reasons.values()) else 'most'} of them: {reason}{detail}"


def warnings(reading: Reading, counts: Sequence[SourceCounts]) -> list[str]:
    """What is no obstacle, and worth a look."""
    found = []
    unknown = {c.part.label: c.unknown / c.tokens.total for c in counts if c.unknown}
    if any(share > 0.001 for share in unknown.values()):
        said = ", ".join(
            f"{share:.1%} of the tokens of {label}" for label, share in unknown.items()
        )
        found.append(
            f"words that the tokenizer does not know, and the model reads as <unk>: {said}"
        )
    for count in counts:
        label = count.part.label
        pictures = len(count.widths)
        if pictures and count.smaller > 0.5 * pictures:
            found.append(
                f"source {label}: {count.smaller / pictures:.0%} of its pictures are smaller than the "
                f"{count.side} pixels that the model reads, and are enlarged"
            )
    if reading.unread:
        found.append(f"not read by {reading.stage.name}: {', '.join(reading.unread)}")
    return found
