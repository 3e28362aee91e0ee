"""Answers as models write them, and worse, made from a seed: for comparing two readings of the same text."""

from __future__ import annotations

import dataclasses
import random

_TEXTS = (
    *(
        "a cat",
        "Cat",
        "a dog",
        "two dogs",
        "the dog on the left",
        "red",
        "dark red",
        "None of the above",
    ),
    *("12", "1,200", "3.5", "-0.5", "$24,000", "x = 4", "Yes", "No", "nan", "A", "b", "C", "Paris"),
    *(
        "naïve Bayes",
        "İstanbul",
        "Straße",
        "猫",
        "The mitochondrion is the powerhouse of the cell.",
    ),
    *("<image 1>", "It cannot be determined", "A and B", "(A)", "option (B)", "I.", "1/2", "π", ""),
)
_STARTS = (
    *(
        "",
        "The answer is ",
        "The correct answer is **",
        "Answer: ",
        "I think it is ",
        "answer is ",
        "So ",
    ),
    *(
        "Therefore the final result = ",
        "Sure! ",
        "**",
        "- ",
        "> ",
        "It could be ",
        "ANSWER IS **",
        "\n\n",
    ),
    *(
        "A person stands there. ",
        "NASA says ",
        "Option ",
        "option: (",
        "Based on the picture, ",
        "\t",
    ),
)
_ENDS = (
    "",
    ".",
    "!",
    ")",
    "**",
    ".\n",
    " because it is red.",
    ", I guess",
    ". Here is why: it is A big one.",
)
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided I cannot say",
    "Cannot determine the answer",
    "Failed to obtain answer via API",
    "Z",
    "z",
    "(Z)",
    "I am unable to see the picture",
)
_WORDS = (
    *(
        "yes",
        "no",
        "Yes",
        "No",
        "YES",
        "not",
        "none",
        "yesterday",
        "nobody",
        "know",
        "y",
        "n",
        "Y.",
        "N",
    ),
    *(
        "there",
        "is",
        "a",
        "A",
        "B",
        "C",
        "D",
        "E",
        "I",
        "and",
        "or",
        "dog",
        "1,000",
        "3.14",
        "-2",
        "5e3",
    ),
    *(
        "...",
        "?",
        "e.g.",
        "U.S.",
        "yes/no",
        "yes-no",
        "no,",
        "yes,",
        "[yes]",
        "`no`",
        "=",
        "so",
        "thus",
    ),
    *(
        "İ",
        "ﬁ",
        "²",
        "٣",
        "\uff11\uff12",
        "​",
        "\xa0",
        "no\x00",
        "😀",
        "да",
        "是",
        "A.",
        "(B)",
        ":C",
        "D).",
    ),
)
_TRUTHS = (
    "a cat",
    "no",
    "12",
    "1200",
    "3.5",
    "b",
    "Paris",
    "24,000",
    "['4', 'four']",
    "x",
    "red",
    "½",
)


@dataclasses.dataclass(frozen=True)
class Made:
    """An answer, the options it may have been given to, and a true answer to an open question."""

    style: str
    answer: str
    options: dict[str, str]
    truth: str


def make_answers(count: int, seed: int = 0) -> list[Made]:
    """As many answers of the styles in turn."""
    draw = random.Random(seed)
    styles = list(_STYLES)
    made = []
    for number in range(count):
        letters = "ABCDEFGHI"[: draw.choice((0, 2, 4, 4, 4, 4, 5, 9))]
        options = {letter: draw.choice(_TEXTS) for letter in letters}
        style, truth = styles[number % len(styles)], draw.choice(_TRUTHS)
        answer = _of_truth(draw, truth) if style == "true answer" else _STYLES[style](draw, options)
        made.append(Made(style, answer, options, truth))
    return made


def _letter(draw: random.Random, options: dict[str, str]) -> str:
    return draw.choice([*options, *"ABCDEFZ"])


def _framed(draw: random.Random, options: dict[str, str]) -> str:
    form = draw.choice(
        (
            "{}",
            "({})",
            "{}.",
            "**{}**",
            "{})",
            "[{}]",
            ":{}",
            "{}:",
            "#{}",
            "{{{}}}",
            "({}).",
            "{},",
        )
    )
    return draw.choice(_STARTS) + form.format(_letter(draw, options)) + draw.choice(_ENDS)


def _several(draw: random.Random, options: dict[str, str]) -> str:
    joined = draw.choice((" ", ", ", " and ", " or ", ".", "\n", "/"))
    return joined.join(_framed(draw, options) for _ in range(draw.randint(2, 4)))


def _option_text(draw: random.Random, options: dict[str, str]) -> str:
    text = draw.choice([*options.values(), *_TEXTS])
    text = draw.choice((str, str.upper, str.lower, str.title))(text)
    return draw.choice(_STARTS) + text + draw.choice(_ENDS)


def _words(draw: random.Random, options: dict[str, str]) -> str:
    return draw.choice((" ", " ", ", ", ". ", "\n")).join(
        draw.choice(_WORDS) for _ in range(draw.randint(1, 14))
    )


def _periods(draw: random.Random, options: dict[str, str]) -> str:
    """Around the 32 periods that one of the rules takes out."""
    return "." * draw.randint(28, 36) + draw.choice((" yes", "no", " no.", "yes. .", "A.", " B"))


def _any_characters(draw: random.Random, options: dict[str, str]) -> str:
    ranges = (
        (32, 126),
        (32, 126),
        (0, 31),
        (160, 0x24F),
        (0x2000, 0x206F),
        (0x4E00, 0x4E40),
        (0x1F600, 0x1F640),
    )
    return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 40)))


def _numbers(draw: random.Random, options: dict[str, str]) -> str:
    number = draw.choice(
        ("12", "1,200", "3.504", "-.5", "1e3", "$24,000.", "1,2,3", "0x1F", "inf", "nan", "7%")
    )
    return (
        draw.choice(_STARTS) + number + draw.choice((*_ENDS, " = 12", ". So 3.5", "\nresult is 4"))
    )


def _of_truth(draw: random.Random, truth: str) -> str:
    text = draw.choice((str, str.upper, str.title))(truth)
    around = draw.choice(("", "", " ", "'", "$", "-"))
    return draw.choice(("", "", *_STARTS)) + around + text + around + draw.choice(_ENDS)


def _yes_no(draw: random.Random, options: dict[str, str]) -> str:
    word = draw.choice(
        ("yes", "no", "Yes", "No", "YES", "not", "No one", "Yesterday", "there is", "y", "n")
    )
    ends = (
        "",
        ".",
        "!",
        ",",
        ", there is.",
        " - it is",
        "/no",
        " and no",
        "?yes",
        ";",
        ". No.",
        "\n\nyes",
    )
    return draw.choice(("", "", " ", *_STARTS)) + word + draw.choice(ends)


_STYLES = {
    "letter": lambda draw, options: draw.choice(("", " ", "\n")) + _letter(draw, options),
    "yes or no": _yes_no,
    "true answer": _of_truth,
    "letter in a frame": _framed,
    "several letters": _several,
    "text of an option": _option_text,
    "words": _words,
    "refusal": lambda draw, options: (
        draw.choice(("", "Well. ")) + draw.choice(_REFUSALS) + draw.choice(_ENDS)
    ),
    "many periods": _periods,
    "any characters": _any_characters,
    "numbers": _numbers,
    "long": lambda draw, options: " ".join(
        _framed(draw, options) + _words(draw, options) for _ in range(8)
    ),
}
