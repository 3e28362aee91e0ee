"""What a source of data gives: examples, in the words and pictures of the data alone.

A source is a random-access sequence of examples. It knows nothing of chat templates, token ids, pixels of
the model or padding; `data.encode` turns examples into arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from janus_jax.errors import UserError, one_line

# The tasks of the mixture, in the order of its ratio.
TASKS = ("und", "text", "gen")
# What stage 0 trains on: pictures (image tokenizer), pictures with captions (understanding encoder).
STAGE_0_TASKS = ("pictures", "pairs")

Turn = tuple[str, str]  # what is asked, and the answer
# A PIL image, a uint8 array [H, W, 3], or what makes one when it is needed.
Picture = Image.Image | np.ndarray | Callable[[], "Image.Image | np.ndarray"]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Example:
    """What all examples have.

    Attributes:
      source: index of the source in the mixture; the mixture sets it.
      weight: of each of its targets in the loss, at least 0.
    """

    source: int = 0
    weight: float = 1.0

    def __post_init__(self):
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise UserError(
                f"the weight of an example must be a finite number >= 0, not {self.weight!r}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Understanding(_Example):
    """A conversation about pictures; the answers are learnt.

    Attributes:
      images: the pictures, in the order in which the questions name them.
      turns: (question, answer); a question has an `<image_placeholder>` for each of its pictures, or none
        in the first one, which then has all that the later ones do not name.
      system: instead of the checkpoint's system prompt.
    """

    images: Sequence[Picture]
    turns: Sequence[Turn]
    system: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if not self.turns or not len(self.images):
            raise UserError("an understanding example needs a picture and a turn at least")


@dataclasses.dataclass(frozen=True, eq=False)
class Text(_Example):
    """Plain text, all of it learnt, or a conversation, whose answers are learnt.

    Attributes:
      text: plain text.
      turns: (question, answer), instead of `text`.
      picture_words: words that stand in the first question where a picture would.
      asks_to_draw: the first question is a request to draw, and its answer, in words, begins where the
        codes of a picture would.
      system: instead of the checkpoint's system prompt; a request to draw has none.
    """

    text: str = ""
    turns: Sequence[Turn] = ()
    picture_words: str = ""
    asks_to_draw: bool = False
    system: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if bool(self.text) == bool(self.turns):
            raise UserError("a text example is either plain text or a conversation")


@dataclasses.dataclass(frozen=True, eq=False)
class Generation(_Example):
    """A picture to draw; its codes are learnt.

    Attributes:
      prompt: describes the picture.
      picture: the picture, or instead of it:
      codes: int [N], its codes by the image tokenizer of the model that trains.
      dropout_draw: a number from [0, 1) that decides whether the prompt is dropped, for sources that fix
        it for each record; None: another one each time that the example is read.
    """

    prompt: str
    picture: Picture | None = None
    codes: np.ndarray | None = None
    dropout_draw: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.picture is None) == (self.codes is None):
            raise UserError("a generation example has either a picture or its codes")


Example = Understanding | Text | Generation


@dataclasses.dataclass(frozen=True)
class Rejected:
    """What a source gives in place of an example for a record that cannot be one.

    Attributes:
      reason: a short fixed phrase by which such records are counted (`data.reasons`).
      detail: the rest, for people: what was found, what to do.
    """

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Source(Protocol):
    """A random-access sequence of examples: the one at an index is always the same, on every machine.

    It is made by a factory of `data.registry.SOURCES`, called as `factory(task, seed=seed, **options)`. That
    should be quick: options are checked and files found, but not read. A record that is bad is a `Rejected`,
    not an error: training goes on without it. A source may also have the methods
    `extremes() -> list[Source]`: sources of what is rare in this one, such as its longest examples, by which
    the room in a row is checked before a run; and `describe(index) -> str`: where the example is, such as
    "file, record 17", for people.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | Rejected: ...


def read_example(source: Source, index: int) -> Example | Rejected:
    """The example of a source at an index; what it says of a bad record as an error is a rejection, too."""
    try:
        return source[index]
    except UserError as error:
        return Rejected("no example", one_line(error))
