"""Judges: language models that read answers, grade them, or answer questions about pictures that were drawn.

    judge = TextJudge(find_complete("http://localhost:8000/v1#Qwen3-32B"), cache="out/judged.jsonl")
    scores = judge.score(lambda judge, grade: score_answers(items, answers, protocol, judge, grade))
    print(scores.headline, judge.problem())
    pictures = find_picture_judge("http://localhost:8000/v1#Qwen3-VL-8B", "out/pictures.jsonl")  # `judge_answers`

A judge that fails is asked again, and then counted: `problem()` says how many answers it owes and why. Numbers
depend on the judge: its name belongs beside them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from janus_jax.errors import UserError
from janus_jax.evaluation.endpoint import Endpoint, JudgeError, message_text
from janus_jax.evaluation.generation.detectors import detector_name, load_function
from janus_jax.evaluation.judge_questions import WORKERS, Ask, JudgeQuestions, Progress
from janus_jax.evaluation.understanding.mmvet import Grade, grader
from janus_jax.evaluation.understanding.parsers import Judge
from janus_jax.untrusted import printable, shown

# (prompt, number of the try from 0) -> what a language model says; an `Endpoint`, or a function of one's own.
Complete = Callable[[str, int], str]
Scored = TypeVar("Scored")

NONE = "NONE"
_LETTERS = 16384  # of an answer that is judged; what follows is cut off
_TRIES = 3  # until a reply can be read
_CHOOSE = """\
A model was asked a question and answered in its own words. Decide which option its answer means. Do not judge
whether the answer is right. Reply with {choices}, or with NONE if it means none of them or several.

Question: {question}

Options:
{options}

Answer of the model: {answer}

The answer means option:"""
_WORDS = str.maketrans(dict.fromkeys(string.punctuation, " "))


class TextJudge:
    """A language model that reads and grades answers.

    Args:
      complete: an `Endpoint`, or a function (prompt, number of the try) -> text, such as of `find_complete`.
      cache: JSON lines with its answers, beside the predictions, so that a run that goes on asks nothing twice.
      workers: questions at once; by default 8 of an `Endpoint`, and 1 of a function, which need not bear more.
      name: for results; by default that of `complete`.
    """

    def __init__(
        self,
        complete: Complete,
        cache: str | Path | None = None,
        workers: int | None = None,
        name: str | None = None,
    ):
        self._complete = complete
        if workers is None:
            workers = WORKERS if isinstance(complete, Endpoint) else 1
        self._questions = JudgeQuestions(name or detector_name(complete), cache, workers)
        self._grade = grader(self._say)

    @property
    def name(self) -> str:
        return self._questions.name

    @property
    def failed(self) -> int:
        """How many questions of this process have no answer."""
        return len(self._questions.failed)

    def problem(self) -> str:
        """In one line how many questions have no answer and why; "" if all have one."""
        return self._questions.problem()

    def judge(self, question: str, options: Mapping[str, str], answer: str) -> str | None:
        """The option that an answer means, of the keys of `options`; None for none of them, or on failure."""
        option = self._questions.answer(*self._choosing(question, options, answer))
        return option if option in options else None

    def grade(self, question: str, truth: str, answer: str) -> float | None:
        """The grade of an answer, 0 to 1; None on failure."""
        return self._questions.answer(*self._grading(question, truth, answer))

    def score(
        self, score: Callable[[Judge, Grade], Scored], progress: Progress | None = None
    ) -> Scored:
        """Scores with this judge, which is asked everything at once rather than one question after the other.

        Args:
          score: (judge, grade) -> scores, such as a call of `score_answers`. It is called twice: the first time
            to see what it asks.
          progress: told after each question.
        """
        questions: dict[str, Ask] = {}

        def note_choice(question: str, options: Mapping[str, str], answer: str) -> None:
            questions.update([self._choosing(question, options, answer)])

        def note_grade(question: str, truth: str, answer: str) -> None:
            questions.update([self._grading(question, truth, answer)])

        score(note_choice, note_grade)
        self._questions.answer_all(questions, progress)
        return score(self.judge, self.grade)

    def _choosing(self, question: str, options: Mapping[str, str], answer: str) -> tuple[str, Ask]:
        lines = [key if key == text else f"{key}. {text}" for key, text in options.items()]
        prompt = _CHOOSE.format(
            choices=f"one of {', '.join(options)}",
            question=question[:_LETTERS],
            options="\n".join(lines),
            answer=answer[:_LETTERS],
        )
        return self._questions.key("choose", prompt), lambda: self._choose(prompt, list(options))

    def _choose(self, prompt: str, options: Sequence[str]) -> str:
        for number in range(_TRIES):
            if option := read_option(self._say(prompt, number), options):
                return option
        raise JudgeError(f"its {_TRIES} replies name no option", passes=False)

    def _grading(self, question: str, truth: str, answer: str) -> tuple[str, Ask]:
        parts = (question[:_LETTERS], truth, answer[:_LETTERS])
        return self._questions.key("grade", *parts), lambda: self._give_grade(*parts)

    def _give_grade(self, question: str, truth: str, answer: str) -> float:
        grade = self._grade(question, truth, answer)
        if grade is None:
            raise JudgeError("its replies have no grade from 0 to 1", passes=False)
        return grade

    def _say(self, prompt: str, number: int) -> str:
        said = self._complete(prompt, number)
        if not isinstance(said, str):
            raise JudgeError(f"it returns {type(said).__name__} instead of a text", passes=False)
        return without_thoughts(said)


class PictureJudge:
    """A vision-language model as a judge of DPG-Bench's pictures: (picture, question) -> P(yes).

    The probability is that of "yes" against "no" as the first token where the server tells it, else 1 or 0 by
    what it says. A question without an answer counts as no and stays counted; a server that is gone ends the
    judging with a UserError, and the same command goes on from there.

    Args:
      endpoint: that takes pictures.
      cache: JSON lines with its answers.
      workers: questions at once.
      prompt: what the question is put into, at `{}`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        cache: str | Path | None = None,
        workers: int = WORKERS,
        prompt: str = "{} Answer with yes or no.",
    ):
        if "{}" not in prompt:
            raise UserError(
                f"the prompt of a judge must have {{}} for the question, not {prompt!r}"
            )
        self.name = f"{endpoint.name}: {prompt}"
        self._endpoint, self._prompt = endpoint, prompt
        # A picture that is judged is not looked at again, so what failed about it has to stay known.
        self._questions = JudgeQuestions(self.name, cache, workers, recall_failures=True)

    @property
    def failed(self) -> int:
        """How many questions have no answer, those of earlier runs included."""
        return len(self._questions.failed)

    def problem(self) -> str:
        """In one line how many questions have no answer and why; "" if all have one."""
        return self._questions.problem()

    def __call__(self, picture: np.ndarray, question: str) -> float:
        return self.batch([picture], [question])[0]

    def batch(self, pictures: Sequence[np.ndarray], questions: Sequence[str]) -> list[float]:
        """P(yes) of question i about picture i, uint8 [h, w, 3].

        Raises:
          UserError: the server gives no answers any more.
        """
        encoded = {id(picture): _png(picture) for picture in pictures}
        asked: dict[str, Ask] = {}
        keys = []
        for picture, question in zip(pictures, questions, strict=True):
            content = encoded[id(picture)]
            key = self._questions.key("yes", hashlib.sha256(content).hexdigest(), question)
            asked[key] = lambda content=content, question=question: self._ask(content, question)
            keys.append(key)
        self._questions.answer_all(asked)
        if self._questions.given_up:
            raise UserError(
                f"{self.problem()}; what it has answered is kept: run the same command again"
            )
        return [self._questions.answer(key, asked[key]) or 0.0 for key in keys]

    def _ask(self, content: bytes, question: str) -> float:
        url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": self._prompt.replace("{}", question)},
        ]
        choice = self._endpoint.choice(
            [{"role": "user", "content": parts}], temperature=0.0, logprobs=True, top_logprobs=20
        )
        share = yes_share(choice)
        if share is None:
            raise JudgeError("it says neither yes nor no", passes=False)
        return share


def find_complete(place: str) -> Complete:
    """A language model by name: ADDRESS#MODEL of a server, which is asked to see that it answers, or
    "module:function" of (prompt, number of the try) -> text.

    Raises:
      UserError: there is none, or it does not answer.
    """
    check_judge(place, forms="")
    if not _is_address(place):
        return load_function(place, "judge")
    endpoint = _endpoint(place)
    endpoint.check()
    return endpoint


def find_picture_judge(place: str, cache: str | Path | None = None) -> Callable[..., float]:
    """A judge of pictures by name, a function (picture, question) -> P(yes).

    Args:
      place: ADDRESS#MODEL of a server, or "module:function".
      cache: JSON lines with a server's answers; see `PictureJudge`.

    Raises:
      UserError: there is none, or it does not answer.
    """
    check_judge(place, forms="")
    if not _is_address(place):
        return load_function(place, "judge")
    endpoint = _endpoint(place)
    endpoint.check()
    return PictureJudge(endpoint, cache)


def check_judge(place: str, forms: str = "self (the checkpoint itself), ") -> None:
    """Looks at the name of a judge, before anything is loaded.

    Args:
      place: the name.
      forms: what may be given beside a server and a function, for the message.

    Raises:
      UserError: it is none.
    """
    module, colon, name = place.partition(":")
    is_function = bool(module and name and colon) and not set(place) & set("#/")
    if not (_is_address(place) or is_function):
        raise UserError(
            f"no judge is called {shown(place, 100)}: give {forms}ADDRESS#MODEL of a server, such as "
            "http://localhost:8000/v1#Qwen/Qwen3-32B, or module:function"
        )


def _is_address(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _endpoint(place: str) -> Endpoint:
    address, _, model = place.partition("#")
    if not model:
        raise UserError(
            f"which model? write the judge as {printable(address, 200)}#MODEL, such as "
            "http://localhost:8000/v1#Qwen/Qwen3-32B"
        )
    return Endpoint(address, model)


def read_option(reply: str, options: Sequence[str]) -> str | None:
    """The only option, or NONE, that a reply names as a word; None where it names none or several."""
    words = reply.translate(_WORDS).split()
    if len(words) == 1:  # a letter alone, whatever its case
        words = [words[0].upper(), words[0].title()]
    lower = {word.lower() for word in words}
    named = [
        option
        for option in dict.fromkeys([*options, NONE])
        if option in words or (len(option) > 1 and option.lower() in lower)
    ]
    return named[0] if len(named) == 1 else None


def yes_share(choice: Mapping[str, Any]) -> float | None:
    """P(yes) / (P(yes) + P(no)) of a choice of the server; None where it says neither.

    The probabilities are those of the first token where these two have most of it; otherwise what the text says
    decides, as after thoughts.
    """
    shares = {"yes": 0.0, "no": 0.0}
    try:
        for entry in choice["logprobs"]["content"][0]["top_logprobs"]:
            word = entry["token"].translate(_WORDS).strip().lower()
            if word in shares:
                shares[word] += math.exp(min(float(entry["logprob"]), 0.0))
    except (LookupError, TypeError, AttributeError, ValueError):
        shares = dict.fromkeys(shares, 0.0)  # the server tells none
    both = shares["yes"] + shares["no"]
    if both > 0.5:
        return shares["yes"] / both
    option = read_option(without_thoughts(message_text(choice)), ["yes", "no"])
    return {"yes": 1.0, "no": 0.0}.get(option or "")


def without_thoughts(text: str) -> str:
    """What a model says after it has thought aloud."""
    return text.rpartition("</think>")[2].strip()


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
