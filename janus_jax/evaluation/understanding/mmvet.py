"""MM-Vet: free answers that a language model grades, and the file that the official evaluator takes.

The grade depends on the judge: the authors of Janus-Pro used the official evaluator with GPT-4. The prompt here
asks for the same grades in words of its own, so its numbers are not those of the official evaluator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding.items import Item
from janus_jax.files import write_json
from janus_jax.untrusted import shown

# (question, true answer, answer) -> a grade from 0 to 1; None where none was given.
Grade = Callable[[str, str, str], "float | None"]

TRIES = 5
_EXAMPLES = (
    ("How many wheels are there, and what colour is the van?", "4 <AND> blue", "Six.", "0.0"),
    ("How many wheels are there, and what colour is the van?", "4 <AND> blue", "4 wheels", "0.5"),
    ("How many wheels are there, and what colour is the van?", "4 <AND> blue", "A red one", "0.0"),
    (
        "How many wheels are there, and what colour is the van?",
        "4 <AND> blue",
        "Blue, with 4.",
        "1.0",
    ),
    ("Which city is this?", "Florence <OR> Firenze", "It looks like Firenze.", "1.0"),
    (
        "What is funny about this picture?",
        "A cat in a suit sits at the head of a meeting, as if it led the company, while the people take notes.",
        "There is a cat at a table with people.",
        "0.4",
    ),
    (
        "What is funny about this picture?",
        "A cat in a suit sits at the head of a meeting, as if it led the company, while the people take notes.",
        "A cat dressed like a manager leads a business meeting, and everybody writes down what it says.",
        "1.0",
    ),
)
_RULES = """\
Grade a model's answer against the true one with a number from 0.0 (nothing of it is right) to 1.0 (all of it is),
in steps of 0.1. Parts of the true answer that are joined by <AND> must all be in the answer; of those joined by
<OR> one is enough. Write nothing but the grade of the last row.

Question | True answer | Answer | Grade
--- | --- | --- | ---
"""


def grading_prompt(question: str, truth: str, answer: str) -> str:
    """What a language model is asked; it continues with the grade."""
    rows = [*_EXAMPLES, (question, truth, answer, "")]
    spaced = lambda text: text.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    lines = [
        " | ".join([_cell(q), " ".join(_cell(spaced(t)).split()), _cell(a), g]).rstrip(" ")
        for q, t, a, g in rows
    ]
    return _RULES + "\n".join(lines)


def grader(complete: Callable[[str, int], str], tries: int = TRIES) -> Grade:
    """A grade from a language model.

    Args:
      complete: (prompt, number of the try from 0) -> its text; a later try may be drawn at a higher temperature.
      tries: how often it is asked until it gives a number from 0 to 1.
    """

    def grade(question: str, truth: str, answer: str) -> float | None:
        prompt = grading_prompt(question, truth, answer)
        for number in range(tries):
            if (found := read_grade(complete(prompt, number))) is not None:
                return found
        return None

    return grade


def read_grade(text: str) -> float | None:
    """The grade that a text begins with; None if it begins with none from 0 to 1."""
    first = text.replace("|", " ").split()[:1]
    try:
        value = float(first[0]) if first else math.nan
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def official_index(index: str) -> str:
    """The name of a question in the official files, such as v1_0; VLMEvalKit's table has the number alone."""
    return index if index.startswith("v1_") else f"v1_{index}"


def write_official_predictions(
    path: str | Path, items: Iterable[Item], answers: Mapping[str, str]
) -> None:
    """Writes {"v1_0": "answer", ...}, which the official evaluator takes; a missing answer is "".

    Raises:
      UserError: an answer to a question that there is not.
    """
    known = {item.index: official_index(item.index) for item in items}
    for index in answers:
        if index not in known:
            raise UserError(f"there is an answer to {shown(index)}, which MM-Vet does not ask")
    write_json(path, {name: answers.get(index) or "" for index, name in known.items()})


def _cell(text: str) -> str:
    """A text that stays in its cell of the table."""
    return " ".join(text.replace("|", "/").split())
