"""What of the sources was used, what was left out and why, and when that is too much."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from janus_jax.data.reasons import LOW_RATING
from janus_jax.errors import UserError

NO_ROOM = "longer than a row"
# Left out because `too_long` or `min_rating` asks for it: counted like all, but no fault of the data.
ASKED_FOR = (NO_ROOM, LOW_RATING)
# A share is looked at once so many records were read, or all of a smaller source; so many in a row that are
# left out end the run.
ENOUGH = 1000


class TooManyRejected(UserError):
    """A source of which too much is left out."""


@dataclasses.dataclass
class Tally:
    """Records of one source: `used`, of these `shortened` (to fit a row), and `rejected` by reason."""

    used: int = 0
    shortened: int = 0
    rejected: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def left_out(self) -> int:
        return sum(self.rejected.values())

    @property
    def seen(self) -> int:
        return self.used + self.left_out

    def add(self, other: Tally) -> None:
        self.used += other.used
        self.shortened += other.shortened
        self.rejected.update(other.rejected)

    def to_state(self) -> dict[str, Any]:
        """JSON-ready; `seen` is the position in the source."""
        return {"used": self.used, "shortened": self.shortened, "rejected": dict(self.rejected)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Tally:
        return cls(state["used"], state["shortened"], Counter(state["rejected"]))


@dataclasses.dataclass(frozen=True)
class Rejection:
    """A record that was left out.

    Attributes:
      source: label.
      index: in its source.
      record: where that is, for people.
      reason: a short fixed phrase.
      detail: the rest.
    """

    source: str
    index: int
    record: str
    reason: str
    detail: str


class Ledger:
    """The tallies of all streams that a process reads, of one stage.

    Args:
      limit: share of a source that may be left out; what is left out because it was asked for does not count.
      streams: of the whole job.
      listing: is given every record that is left out; those that are read again, again.
      where: what has the list, for messages.
    """

    def __init__(
        self,
        limit: float = 1.0,
        streams: int = 1,
        listing: Callable[[Rejection], None] | None = None,
        where: str = "",
    ):
        self._limit, self._streams = limit, streams
        self._listing, self._where = listing, where
        self._tallies: dict[tuple[str, int], Tally] = {}

    def put(self, label: str, stream: int, tally: Tally) -> None:
        """The tally of a source in a stream; it goes on changing there."""
        self._tallies[label, stream] = tally

    def totals(self) -> dict[str, Tally]:
        """Of each source, over the streams; what is read ahead is in it."""
        found: dict[str, Tally] = {}
        for (label, _), tally in sorted(self._tallies.items()):
            found.setdefault(label, Tally()).add(tally)
        return found

    def share(self) -> float:
        """Of all records that were read, the share that was left out."""
        totals = self.totals().values()
        seen = sum(tally.seen for tally in totals)
        return sum(tally.left_out for tally in totals) / seen if seen else 0.0

    def reject(self, rejection: Rejection, length: int, in_a_row: int) -> None:
        """A record that was left out, and counted.

        Args:
          rejection: the record.
          length: of its source.
          in_a_row: so many of this source, with this one, have been left out since the last that was not.

        Raises:
          TooManyRejected: that is more than the limit, or there is nothing to use.
        """
        if self._listing is not None:
            self._listing(rejection)
        label = rejection.source
        mine = [tally for (of, _), tally in self._tallies.items() if of == label]
        total = Tally()
        for tally in mine:
            total.add(tally)
        bad = total.left_out - sum(total.rejected[reason] for reason in ASKED_FOR)
        # A stream reads its share of every epoch.
        epoch = math.ceil(length * len(mine) / self._streams)
        base = total.seen
        if base >= epoch:
            # A bad record comes again in every epoch, perhaps early in it, and to these streams all of them may.
            base = math.ceil(base / epoch) * (length if epoch < ENOUGH else epoch)
        if total.seen >= min(ENOUGH, epoch) and bad > self._limit * base:
            raise TooManyRejected(self._too_many(label, total, bad, rejection))
        # With everything allowed, a source may well have a thousand bad records for a good one.
        if in_a_row >= (ENOUGH if self._limit < 1 else max(ENOUGH, 10 * length)):
            raise TooManyRejected(
                f"source {label} gives nothing to train on: {in_a_row} records, one after the other, were "
                f"left out, {self._mostly(total.rejected, rejection)}{self._listed()}"
            )

    def _too_many(self, label: str, total: Tally, bad: int, last: Rejection) -> str:
        reasons = Counter({r: n for r, n in total.rejected.items() if r not in ASKED_FOR})
        share = bad / total.seen
        allowed = min(1.0, math.ceil(share * 110) / 100)
        return (
            f"source {label}: {bad} of the {total.seen} records read were left out ({share:.1%}, more than "
            f"the {self._limit:.4g} of config.data.max_rejected), {self._mostly(reasons, last)}"
            f"{self._listed()}; mend the data, or go on with --config.data.max_rejected={allowed:g}"
        )

    def _mostly(self, reasons: Counter[str], last: Rejection) -> str:
        reason, count = reasons.most_common(1)[0]
        more = f" ({last.detail})" if last.reason == reason and last.detail else ""
        return f"{'all' if count == sum(reasons.values()) else 'most'} of them: {reason}{more}"

    def _listed(self) -> str:
        return f"; {self._where} lists them" if self._where else ""


def in_words(total: Tally) -> str:
    """Such as "12 of 400 left out (10 longer than a row, 2 picture cannot be read), 5 shortened"."""
    parts = []
    if total.left_out:
        reasons = ", ".join(f"{n} {reason}" for reason, n in total.rejected.most_common())
        parts.append(f"{total.left_out} of {total.seen} left out ({reasons})")
    if total.shortened:
        parts.append(f"{total.shortened} of {total.seen} shortened")
    return ", ".join(parts)
