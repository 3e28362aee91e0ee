"""What an answer says and whether that is right, by the rules of a protocol."""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Callable, Mapping

from janus_jax.evaluation.understanding import choices, open_answers, yes_no
from janus_jax.evaluation.understanding.items import Item

# How an answer was read.
READ = "read"
REFUSED = "refused"  # it is a known refusal, or says "none of them"
RANDOM = "drawn at random"  # it names no option, and the rule is then to draw one
JUDGED = "judged"  # it could not be read, and a judge decided
UNREAD = "not understood"
MISSING = "missing"
NO_PICTURE = "picture cannot be read"

# (question, options: what may be chosen -> text, answer) -> what is chosen; anything else for none of them.
Judge = Callable[[str, Mapping[str, str], str], str | None]

_YES_NO = {"Yes": "Yes", "No": "No"}


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an answer says (a letter, Yes or No, the answer itself; "" for nothing), if it is right, how it was
    read."""

    said: str
    right: bool
    how: str = READ


Parser = Callable[[str, Item, "Judge | None", int], Reading]


def _chosen(
    said: str | None,
    answer: str,
    item: Item,
    truth: str,
    options: Mapping[str, str],
    judge: Judge | None,
) -> Reading:
    """The reading of an answer that must be one of `options`; a judge is asked where `said` is None."""
    if said is None and judge is not None:
        decided = judge(item.question, dict(options), answer)
        if isinstance(decided, str) and decided in options:
            return Reading(decided, decided == truth, JUDGED)
    if said is None:
        return Reading("", False, UNREAD)
    return Reading(said, said == truth, REFUSED if said == choices.REFUSED else READ)


def _choice_vlmevalkit(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
    said = choices.infer_option(answer, item.options)
    return _chosen(said, answer, item, item.answer, item.options, judge)


def _choice_vlmevalkit_mmmu(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
    """An open question becomes one with two options, of which the first is the true answer."""
    options = item.options or {"A": item.answer, "B": "Other Answers"}
    is_letter = len(item.answer) == 1 and item.answer in string.ascii_uppercase
    truth = item.answer if is_letter else "A"
    said = choices.infer_option(answer, options)
    return _chosen(said, answer, item, truth, options, judge)


def _choice_lmms(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
    said = choices.infer_option_lmms(answer.strip(), item.options)
    return _chosen(said, answer, item, item.answer, item.options, judge)


def _mmmu(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
    """What is drawn depends on the seed and the item alone."""
    answer = answer.strip()
    if item.options:
        draw = random.Random(f"{seed}/{item.index}").choice
        said, drawn = choices.infer_option_mmmu(answer, item.options, draw)
        return Reading(said, said == item.answer, RANDOM if drawn else READ)
    candidates = open_answers.read_open(answer)
    # A list of true answers stays the text that it is in the file, as there.
    right = open_answers.open_is_right(candidates, [item.answer])
    return Reading(", ".join(map(str, candidates)), right)


def _first_letter(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
    said = choices.first_letter(answer)
    return Reading(said, said == item.answer, READ if said else UNREAD)


def _yes_no(read: Callable[[str], str | None]) -> Parser:
    def parse(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
        return _chosen(read(answer), answer, item, item.answer, _YES_NO, judge)

    return parse


def _exact(is_right: Callable[[str, str], bool]) -> Parser:
    def parse(answer: str, item: Item, judge: Judge | None, seed: int) -> Reading:
        answer = answer.strip()
        return Reading(answer, is_right(answer, item.answer), READ if answer else UNREAD)

    return parse


PARSERS: dict[str, Parser] = {
    "choice_vlmevalkit": _choice_vlmevalkit,
    "choice_vlmevalkit_mmmu": _choice_vlmevalkit_mmmu,
    "choice_lmms": _choice_lmms,
    "mmmu": _mmmu,
    "first_letter": _first_letter,
    "yes_no_vlmevalkit": _yes_no(yes_no.yes_no_vlmevalkit),
    "yes_no_pope": _yes_no(yes_no.yes_no_pope),
    "yes_no_first_letters": _yes_no(yes_no.yes_no_first_letters),
    "yes_no_exact": _yes_no(yes_no.yes_no_exact),
    "exact_vlmevalkit": _exact(open_answers.exact_vlmevalkit),
    "exact_lmms": _exact(open_answers.exact_lmms),
    "exact_official": _exact(open_answers.exact_official),
}


def parse_answer(
    parser: str, answer: str, item: Item, judge: Judge | None = None, seed: int = 0
) -> Reading:
    """What an answer to an item says.

    Args:
      parser: name in `PARSERS`.
      answer: of the model.
      item: what was asked.
      judge: decides where the rules read nothing; the rules of exact matches and of MMMU never ask one.
      seed: of what is drawn.
    """
    return PARSERS[parser](answer, item, judge, seed)
