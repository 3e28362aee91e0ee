"""Whether an answer says yes or no, by the rules of the harnesses and of the benchmarks themselves.

Sources: VLMEvalKit e8e78f0 `dataset/utils/yorn.py` and `smp/misc.py`; RUCAIBox/POPE `evaluate.py`; lmms-eval 0.7.3
`tasks/mme/utils.py` and `tasks/pope/utils.py`.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
# VLMEvalKit passes the flag `re.UNICODE`, whose value is 32, where the number of replacements stands.
_PERIODS = int(re.UNICODE)


def without_punctuation(text: str) -> str:
    """VLMEvalKit's `process_punctuation`: marks vanish where a space is beside one, else become spaces.

    A comma inside a number makes all of them vanish. Only the first 32 periods are taken out.
    """
    numbers = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in _MARKS:
        vanishes = numbers or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if vanishes else " ")
    return _PERIOD.sub("", result, count=_PERIODS)


def yes_no_vlmevalkit(answer: str) -> str | None:
    """ "Yes" or "No" where exactly one of the two is a word of the answer; None where both or neither are."""
    words = without_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


def yes_no_pope(answer: str) -> str:
    """POPE's own rule: "No" where No, no or not is a word of the first sentence, else "Yes", whatever it says."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "No" if any(word in words for word in ("No", "not", "no")) else "Yes"


def yes_no_first_letters(answer: str) -> str | None:
    """lmms-eval's reading of MME: "yes", else "no", in the first four characters; "y" and "n" alone count."""
    text = answer.lower().strip().replace(".", "")
    if text in ("y", "n"):
        return "Yes" if text == "y" else "No"
    if "yes" in text[:4]:
        return "Yes"
    return "No" if "no" in text[:4] else None


def yes_no_exact(answer: str) -> str | None:
    """lmms-eval's reading of POPE: the answer must be yes or no and nothing else, not even a full stop."""
    return {"yes": "Yes", "no": "No"}.get(answer.lower().strip())
