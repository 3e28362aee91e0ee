"""From an item and a protocol to what the model reads.

The texts of instructions are those of the harnesses, byte for byte: a benchmark that is asked in other words gives
other numbers. Sources: as `protocols`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.items import Item, Picture
from janus_jax.evaluation.understanding.protocols import Protocol
from janus_jax.processing.chat import get_template, render_pieces
from janus_jax.processing.tokenizer import IMAGE, Control

_WORD = "\nAnswer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_YES_OR_NO = " Please answer yes or no."  # ends the questions of MME, and of POPE in some files
_THINK = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What the model is asked.

    Attributes:
      text: what the user says after the pictures.
      pictures: in order.
      template: of the chat, by name.
      system_prompt: "" for none.
      max_new_tokens: most tokens of the answer.
      line_of_its_own: whether each picture is followed by a line break.
    """

    text: str
    pictures: tuple[Picture, ...]
    template: str
    system_prompt: str
    max_new_tokens: int
    line_of_its_own: bool

    @property
    def turn(self) -> list[str]:
        """The user's turn in pieces: a `Control` a picture, then text, which becomes no control token."""
        picture = [Control(IMAGE), "\n"] if self.line_of_its_own else [Control(IMAGE)]
        return [*picture * len(self.pictures), self.text]

    @property
    def question(self) -> str:
        """The joined string of `turn`: an `<image_placeholder>` a picture, as `Janus.answer_batch` takes it."""
        return "".join(self.turn)

    @property
    def pieces(self) -> list[str]:
        """The whole prompt in pieces, as `Tokenizer` takes them, up to where the model goes on."""
        return render_pieces(get_template(self.template), [self.turn, []], self.system_prompt)

    @property
    def rendered(self) -> str:
        """The joined string of `pieces`."""
        return "".join(self.pieces)

    def load_pictures(self) -> list[np.ndarray]:
        """The pictures, uint8 [H, W, 3].

        Raises:
          UserError: one cannot be read, or there is none: the item is then wrong whatever is answered
            (`score_answers(unreadable=)`).
        """
        if not self.pictures:
            raise UserError("the row has no picture")
        return [picture() for picture in self.pictures]


def make_prompt(item: Item, protocol: Protocol) -> Prompt:
    """The prompt of an item. A pure function: pictures are not opened."""
    pictures = item.pictures
    if protocol.prompt == "lmms_mmmu":
        pictures = _named_pictures(item)
    return Prompt(
        PROMPTS[protocol.prompt](item),
        pictures,
        protocol.template,
        protocol.system_prompt,
        protocol.max_new_tokens,
        protocol.line_of_its_own,
    )


def _janus_yes_no(item: Item) -> str:
    return f"\n{item.question}{_WORD}"


def _janus_yes_no_pope(item: Item) -> str:
    """The adapter takes the request for yes or no out of POPE's questions, not out of MME's."""
    return f"\n{item.question.replace(_YES_OR_NO, '')}{_WORD}"


def _janus_choice(item: Item) -> str:
    hint = f"\nHint: {item.hint}\n" if item.hint else "\n"
    options = "".join(f"{letter}. {text}\n" for letter, text in item.options.items())
    request = f"{options}\n{_LETTER}" if options else "Answer the question directly. "
    return f"{hint}{item.question}\n{request}"


def _janus_free(item: Item) -> str:
    return f"\n{item.question}"


def _word_or_phrase(item: Item) -> str:
    return f"{item.question}{_WORD}"


def _single_word(item: Item) -> str:
    return f"{item.question.strip()}{_WORD}"


def _single_word_asked_once(item: Item) -> str:
    return f"{item.question.strip().replace(_YES_OR_NO, '')}{_WORD}"


def _lmms_mmbench(item: Item) -> str:
    hint = f"{item.hint} " if item.hint else ""
    options = "\n".join(f"{k}. {text}" for k, text in item.options.items() if k in "ABCDE")
    # The instruction begins with a line break of its own, so that there are two.
    return f"{hint}{item.question} There are several options:\n{options}\n\n{_LETTER}"


def _lmms_seed(item: Item) -> str:
    options = "\n".join(f"{letter}. {text}" for letter, text in item.options.items())
    return f"{item.question}\n{options}\n{_LETTER}"


def _lmms_mmmu(item: Item) -> str:
    if not item.options:
        return f"{item.question}\n{_WORD}"
    options = "\n".join(f"{letter}. {text}" for letter, text in item.options.items())
    return f"{item.question}\n{options}\n\n{_LETTER}"


def _lmms_mmvet(item: Item) -> str:
    return f"{_THINK}{item.question}"


def _named_pictures(item: Item) -> tuple[Picture, ...]:
    """The pictures that the question or its options name, such as "<image 2>", by their numbers."""
    text = "\n".join([item.question, *item.options.values()])
    names = sorted(set(re.findall(r"<image (\d+)>", text)))
    numbers = [int(name) for name in names]
    if all(1 <= number <= len(item.pictures) for number in numbers):
        return tuple(item.pictures[number - 1] for number in numbers)
    return item.pictures


PROMPTS: dict[str, Callable[[Item], str]] = {
    "janus_yes_no": _janus_yes_no,
    "janus_yes_no_pope": _janus_yes_no_pope,
    "janus_choice": _janus_choice,
    "janus_free": _janus_free,
    "word_or_phrase": _word_or_phrase,
    "single_word": _single_word,
    "single_word_asked_once": _single_word_asked_once,
    "lmms_mmbench": _lmms_mmbench,
    "lmms_seed": _lmms_seed,
    "lmms_mmmu": _lmms_mmmu,
    "lmms_mmvet": _lmms_mmvet,
}
