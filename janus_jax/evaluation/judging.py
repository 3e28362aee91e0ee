"""A language model as a judge: which option an answer means where no rule reads it, and MM-Vet's grades.

What a judge said is kept in a file, so that nothing is asked, or paid for, twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from janus_jax.evaluation.predictions import AppendedLines
from janus_jax.evaluation.understanding import Grade, Judge, grader
from janus_jax.evaluation.understanding.choices import option_of

# (prompt, number of the try from 0) -> what the language model writes.
Complete = Callable[[str, int], str]


class LanguageJudge:
    """Judges by a language model.

    Args:
      complete: see `Complete`.
      name: of the model, which scores carry.
      path: where its verdicts are kept; None keeps none.
      on_ask: called each time before the language model is asked about an answer.
    """

    def __init__(
        self,
        complete: Complete,
        name: str,
        path: str | Path | None = None,
        on_ask: Callable[[], Any] = lambda: None,
    ):
        self.name = name
        self._complete, self._on_ask = complete, on_ask
        self._kept: dict[str, Any] = {}
        self._file = AppendedLines(path, _is_sound) if path is not None else None
        for line in self._file.lines if self._file else ():
            self._kept[line["key"]] = line["value"]

    @property
    def judge(self) -> Judge:
        """For `understanding.score_answers`."""

        def choose(question: str, options: Mapping[str, str], answer: str) -> str | None:
            prompt = choosing_prompt(question, options, answer)
            return self._once(
                ["choose", prompt], lambda: _chosen(self._complete(prompt, 0), options)
            )

        return choose

    @property
    def grade(self) -> Grade:
        """For MM-Vet."""
        ask = grader(self._complete)

        def grade(question: str, truth: str, answer: str) -> float | None:
            return self._once(
                ["grade", question, truth, answer], lambda: ask(question, truth, answer)
            )

        return grade

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _once(self, about: list[str], ask: Callable[[], Any]) -> Any:
        key = hashlib.sha256(json.dumps([self.name, *about]).encode()).hexdigest()
        if key not in self._kept:
            self._on_ask()
            self._kept[key] = value = ask()
            if self._file:
                self._file.add([{"key": key, "value": value}])
        return self._kept[key]


def choosing_prompt(question: str, options: Mapping[str, str], answer: str) -> str:
    """What a language model is asked where no rule reads an answer."""
    listed = "\n".join(f"{name}. {text}" for name, text in options.items())
    return (
        "A question, its options, and an answer to it follow. Which option does the answer choose? Reply with "
        f"the name of that option alone ({', '.join(options)}), or with Z if it chooses none of them.\n\n"
        f"Question: {question}\nOptions:\n{listed}\nAnswer: {answer}\nOption:"
    )


def _chosen(text: str, options: Mapping[str, str]) -> str | None:
    if (found := option_of(text, options)) in options:
        return found
    words = text.strip().strip(".").split()
    return next((name for name in options if words and words[0].lower() == name.lower()), None)


def _is_sound(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("key"), str) and "value" in line
