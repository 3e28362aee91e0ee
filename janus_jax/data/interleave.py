"""In which order several sources take turns, so that any beginning of a mixture has its ratio.

Whole numbers throughout: 0.7 is seven tenths, so nothing drifts however long a run is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction


def whole_weights(weights: Sequence[float]) -> list[int]:
    """The smallest whole numbers in the ratio of some weights, each above 0, as they are written."""
    exact = [Fraction(repr(float(w))) for w in weights]
    common = math.lcm(*(w.denominator for w in exact))
    whole = [int(w * common) for w in exact]
    divisor = math.gcd(*whole)
    return [w // divisor for w in whole]


def taken(count: int, weights: Sequence[int]) -> list[int]:
    """How many of the first `count` picks each has: its share, rounded.

    The first one gets its share of all rounded up, the second one its share of what that leaves, and so on;
    no count ever falls.
    """
    found, rest, left = [], sum(weights), count
    for weight in weights:
        after = left * (rest - weight) // rest
        found.append(left - after)
        rest, left = rest - weight, after
    return found


def picked(index: int, weights: Sequence[int]) -> tuple[int, int]:
    """(which one, how many it had before) of pick `index`."""
    rest, left, more = sum(weights), index, index + 1
    for nth, weight in enumerate(weights):
        after, after_more = left * (rest - weight) // rest, more * (rest - weight) // rest
        if more - after_more != left - after:
            return nth, left - after
        rest, left, more = rest - weight, after, after_more
    raise AssertionError("the last one takes what is left")


class Turns:
    """Turns of groups by their weights, and within a group of its members.

    Args:
      shares: of the groups, each above 0.
      weights: of the members of each group, each above 0.
    """

    def __init__(self, shares: Sequence[float], weights: Sequence[Sequence[float]]):
        self._shares = whole_weights(shares)
        self._weights = [whole_weights(w) for w in weights]
        self._first = [sum(len(w) for w in weights[:i]) for i in range(len(weights))]

    def __call__(self, index: int, without: Collection[int] = ()) -> int | None:
        """The member, counted through all groups, whose turn number `index` is.

        Args:
          index: of the turn.
          without: members that have nothing left: their turns are shared out among the others of the group, by
            their weights. None if there is no other.
        """
        group, nth = picked(index, self._shares)
        first, weights = self._first[group], self._weights[group]
        if not without:
            return first + picked(nth, weights)[0]
        left = [i for i in range(len(weights)) if first + i not in without]
        if not left:
            return None
        return first + left[picked(nth, [weights[i] for i in left])[0]]
