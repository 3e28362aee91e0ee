"""Whether an answer without options is right: GQA's exact match, and MMMU's open questions.

Sources: VLMEvalKit e8e78f0 `dataset/utils/vqa_eval.py`; lmms-eval 0.7.3 `api/metrics.py` and
`tasks/mmmu/utils.py`, which is MMMU's own `eval_utils.py`; LLaVA's `convert_gqa_for_eval.py`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_BEFORE_ANSWERS = (
    *("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result "),
)
_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def exact_vlmevalkit(answer: str, truth: str) -> bool:
    """Equal but for case and the space around."""
    return answer.strip().lower() == truth.strip().lower()


def exact_lmms(answer: str, truth: str) -> bool:
    """Equal but for case and every mark of ASCII's punctuation, such as "T-shirt" and "tshirt"; blanks count."""
    return answer.lower().translate(_NO_PUNCTUATION) == truth.lower().translate(_NO_PUNCTUATION)


def exact_official(answer: str, truth: str) -> bool:
    """GQA's own evaluation after LLaVA's conversion: no final full stops, lower case, then equal."""
    return answer.strip().rstrip(".").lower() == truth


def read_open(answer: str) -> list[str | float]:
    """MMMU's candidates in an answer to an open question: what follows "is", "=", ... and the numbers in it."""
    found = _key_parts(answer)
    for part in list(found):
        for numbers in _NUMBERS:
            found += numbers.findall(part)
    return list(dict.fromkeys(value for text in found for value in _normalized(text)))


def open_is_right(candidates: Sequence[str | float], truths: Sequence[str]) -> bool:
    """Whether a candidate is a true number, or holds a true text."""
    wanted = [value for truth in truths for value in _normalized(truth)]
    texts = [value for value in wanted if isinstance(value, str)]
    return any(
        any(text in candidate for text in texts)
        if isinstance(candidate, str)
        else candidate in wanted
        for candidate in candidates
    )


def _key_parts(answer: str) -> list[str]:
    """The shortest end after a word that comes before answers, of each sentence; all of it where none has any.

    As in the official code the text is lower case when it is cut into sentences, so only lines are.
    """
    answer = answer.strip().strip(".").lower()
    sentences = _SENTENCES.split(answer)
    parts = []
    for number, sentence in enumerate(sentences):
        last = number == len(sentences) - 1
        words = (*_BEFORE_ANSWERS, "=") if last else _BEFORE_ANSWERS
        shortest = ""
        for word in words:
            if word in sentence:
                end = sentence.split(word)[-1].strip()
                if not shortest or len(end) < len(shortest):
                    shortest = end
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [answer]


def _normalized(text: str) -> list[str | float]:
    """A number with two decimals, or text in lower case; a single letter only with a space beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]
