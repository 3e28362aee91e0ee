"""What one answer was found to say: all that scores need of an item and its answer."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Verdict:
    """An answer, what it says, and whether that is right.

    Attributes:
      index: of the item.
      answer: of the model; None where there is none.
      said: a letter, Yes or No, or the answer that was compared; "" for nothing.
      truth: the true answer.
      right: whether they agree; of MM-Vet whether the grade is 1.
      how: it was read (`parsers`: READ, REFUSED, RANDOM, JUDGED, UNREAD, MISSING, NO_PICTURE).
      grade: from 0 to 1: of MM-Vet the judge's, None where it gave none; elsewhere 1 for right.
      category, groups, picture_key: of the item.
    """

    index: str
    answer: str | None
    said: str
    truth: str
    right: bool
    how: str
    grade: float | None
    category: str = ""
    groups: tuple[str, ...] = ()
    picture_key: str = ""
