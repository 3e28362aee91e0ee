"""Which option an answer means, by the rules of the harnesses. Where a rule looks odd, numbers depend on it.

Sources: VLMEvalKit e8e78f0 `vlmeval/utils/matching_util.py`; lmms-eval 0.7.3 `tasks/mmbench/mmbench_evals.py`,
`tasks/_task_utils/mmmu_mcq_utils.py`, `tasks/seedbench/utils.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

REFUSED = "Z"  # the letter of "none of them", which no true answer has

_NO_ANSWER = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST = 4  # words of an answer among which a letter stands
_ANSWER_IS = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
# What may stand around a letter, in the order in which lmms-eval looks.
_AROUND = (
    *(("", "."), ("", ","), ("", ":"), ("", ")"), ("", ")."), ("(", ")"), ("(", ").")),
    *((":", ""), (":", ","), (":", "."), (":", ")"), (":", ").")),
)
_MMMU_STRIPPED = (",", ".", "!", "?", ";", ":", "'")
_MMMU_WORDS = 5  # an answer of more may be the text of an option


def option_of(answer: str, letters: Iterable[str], answer_is: bool = True) -> str | None:
    """VLMEvalKit: the letter that an answer names.

    Punctuation becomes spaces; exactly one of the letters must be a word, and its first place one of the last
    four. Otherwise "answer is X" counts, but knows A to D alone.

    Args:
      answer: of the model.
      letters: of the options.
      answer_is: whether "answer is X" is looked for; the release 0.0.20 does not.

    Returns:
      A letter; `REFUSED` where the answer is a known refusal or names Z; None where it names none.
    """
    if _NO_ANSWER in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return REFUSED
    letters = list(letters)
    words = answer.translate(_TO_SPACES).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1:
        if words.index(named[0]) >= len(words) - _LAST:
            return named[0]
    elif not named and REFUSED in words:
        return REFUSED
    found = _ANSWER_IS.search(answer) if answer_is else None
    if found and found[1].upper() in letters:
        return found[1].upper()
    return None


def option_by_text(
    answer: str, options: Mapping[str, str], longest: float | None = 2
) -> str | None:
    """The only option whose text is in an answer, whatever its case; None where there is none or are several.

    Args:
      answer: of the model.
      options: letter -> text.
      longest: an answer of more than so many times the letters of all options together is not looked at.
    """
    answer = answer.lower()
    if longest is not None and len(answer) > longest * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text.lower() in answer]
    return found[0] if len(found) == 1 else None


def infer_option(answer: str, options: Mapping[str, str], answer_is: bool = True) -> str | None:
    """VLMEvalKit's `can_infer`: `option_of`, or else `option_by_text`."""
    return option_of(answer, options, answer_is) or option_by_text(answer, options)


def infer_option_lmms(answer: str, options: Mapping[str, str]) -> str | None:
    """lmms-eval's reading of MMBench: words keep their punctuation, and A among more than three is an article.

    It looks for the letters A to E, and for the texts of A to D, of which those that are missing are "nan".
    """
    if _NO_ANSWER not in answer:
        words = answer.split()
        named = [letter for letter in "ABCDE" if letter in words]
        if len(named) == 1 and not ("A" in words and len(words) > 3):
            return named[0]
        for before, after in _AROUND:
            around = [letter for letter in "ABCDE" if before + letter + after in words]
            if len(around) == 1:
                return around[0]
    texts = {letter: options.get(letter, "nan") for letter in "ABCD"}
    return option_by_text(answer, texts, longest=None)


def infer_option_mmmu(
    answer: str, options: Mapping[str, str], choose: Callable[[Sequence[str]], str]
) -> tuple[str, bool]:
    """MMMU's official rule: "(A)", else "A ", else "A.", else the text of an option, else chance.

    Of several, the one that stands last counts; a letter inside a word counts, too, as in "NASA ".

    Args:
      answer: of the model.
      options: letter -> text.
      choose: draws one of the letters where an answer names none.

    Returns:
      (letter, whether it was drawn).
    """
    for character in _MMMU_STRIPPED:
        answer = answer.strip(character)
    answer = f" {answer} "
    for written, place in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        found = [letter for letter in options if written.format(letter) in answer]
        if found:
            return max(found, key=lambda letter: answer.rfind(place.format(letter))), False
    if len(answer.split()) > _MMMU_WORDS:
        lower = answer.lower()
        found = [letter for letter, text in options.items() if text.lower() in lower]
        if found:
            return max(found, key=lambda letter: lower.rfind(options[letter].lower())), False
    return choose(list(options)), True


def first_letter(answer: str) -> str:
    """lmms-eval's reading of SEED-Bench: the first character, whatever follows; "" of an empty answer."""
    return answer.strip()[:1].upper()
