"""`JanusJax`: a checkpoint as a model of lmms-eval (0.7), which writes the questions and reads the answers.

Only lmms-eval imports this module. Prompts are those of its tasks, with each picture on a line of its own before
the text, in the chat of the checkpoint without a system prompt: `--protocol lmms-eval` of our own command.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lmms_eval.api.model import lmms
from PIL import Image
from tqdm import tqdm

from janus_jax import Janus
from janus_jax.errors import UserError
from janus_jax.processing import Processor
from janus_jax.processing.tokenizer import IMAGE

_MAX_NEW_TOKENS = 1024  # where a task sets no limit, as most adapters there
_BATCH = 64  # of --batch_size auto
# Every task without a text of its own that ends answers has this one, which separates examples in a prompt.
# Adapters of chat models pass over it: an answer may have paragraphs.
_BETWEEN_EXAMPLES = "\n\n"


class _Question(NamedTuple):
    """What is asked about which pictures."""

    pictures: list[Image.Image]
    text: str


class JanusJax(lmms):
    """A Janus model.

    Args:
      pretrained: directory or hub id, as `Janus.load` takes it.
      batch_size: questions at once at most; "auto" lets memory decide.
      dtype, adapter, revision: see `Janus.load`.
      system_prompt: before every question.
      device, max_batch_size: of the harness, not used: JAX has its own.

    Raises:
      UserError: the checkpoint cannot be read, or an option does not exist.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str | None = "auto",
        dtype: str = "auto",
        adapter: str | None = None,
        revision: str | None = None,
        system_prompt: str = "",
        device: str | None = None,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self._batch = (
            _BATCH
            if str(batch_size).startswith("auto") or batch_size is None
            else _whole("batch_size", batch_size)
        )
        self._janus = Janus.load(
            str(pretrained), dtype=dtype, adapter=adapter, revision=revision, max_batch=self._batch
        )
        processor = self._janus.processor
        config = dataclasses.replace(processor.config, system_prompt=str(system_prompt))
        self._janus.processor = Processor(config, processor.tokenizer)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in order; those of the same settings are computed together.

        Args:
          requests: with `args` (text, settings, document -> pictures, its number, task, split).

        Raises:
          UserError: settings that there are not here, or something other than pictures.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            settings = _sampling(request.args[1])
            groups.setdefault(json.dumps(settings, sort_keys=True), []).append(number)
        answers = [""] * len(requests)
        with self._bar(len(requests)) as bar:
            for settings, numbers in groups.items():
                # The longest first, so that what does not fit fails at once.
                numbers.sort(key=lambda number: -len(requests[number].args[0]))
                for some in _chunks(numbers, self._batch):
                    asked = [self._question(requests[number], 2) for number in some]
                    found = self._answer(asked, **json.loads(settings))
                    for number, answer in zip(some, found, strict=True):
                        answers[number] = answer
                        given = tuple(requests[number].args[:2])
                        self.cache_hook.add_partial("generate_until", given, answer)
                    bar.update(len(some))
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-probability of an answer's tokens, without the end; whether it is the greedy answer), in order.

        Args:
          requests: with `args` (text, answer or document -> answer, document -> pictures, its number, task,
            split); or (text, answer).
        """
        results: list[tuple[float, bool]] = []
        with self._bar(len(requests)) as bar:
            for some in _chunks(range(len(requests)), self._batch):
                asked = [self._question(requests[number], 2) for number in some]
                wanted = [self._continuation(requests[number]).strip() for number in some]
                pictures, texts = [q.pictures or None for q in asked], [q.text for q in asked]
                scores = self._janus.score_answers(pictures, texts, wanted)
                # One token more than it has, by which a longer answer is seen to be another.
                longest = max(len(score) for score in scores)
                greedy = self._answer(asked, max_new_tokens=longest, temperature=0.0)
                results += [
                    (float(score[:-1].sum()), said.strip() == text)
                    for score, said, text in zip(scores, greedy, wanted, strict=True)
                ]
                bar.update(len(some))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError(
            "janus_jax answers one question at a time: tasks of several rounds cannot be run with it"
        )

    def _answer(self, asked: Sequence[_Question], **settings: Any) -> list[str]:
        pictures = [question.pictures or None for question in asked]
        return self._janus.answer_batch(pictures, [q.text for q in asked], **settings)

    def _question(self, request: Any, place: int) -> _Question:
        """What a request asks; its function of pictures is `args[place]`, followed by where the document is."""
        text = request.args[0]
        if isinstance(text, list):
            text = text[0]
        text = text.replace(IMAGE, "")  # pictures stand before the text, whatever it says
        if len(request.args) <= place:
            return _Question([], text)
        to_pictures, number, task, split = request.args[place : place + 4]
        return _Question(_pictures(to_pictures(self.task_dict[task][split][number]), task), text)

    def _continuation(self, request: Any) -> str:
        answer = request.args[1]
        if not callable(answer):
            return str(answer)
        number, task, split = request.args[3:6]
        return str(answer(self.task_dict[task][split][number]))

    def _bar(self, total: int) -> tqdm:
        return tqdm(total=total, desc="questions", disable=self.rank != 0)


def _sampling(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `Janus.answer_batch` for those of a task; greedy unless it says `do_sample`."""
    beams = given.get("num_beams") or 1
    if beams != 1:
        raise UserError(f"num_beams={beams!r}: answers are drawn one by one here, without beams")
    settings: dict[str, Any] = {
        "max_new_tokens": _whole("max_new_tokens", given.get("max_new_tokens") or _MAX_NEW_TOKENS),
        "temperature": 0.0,
    }
    temperature, top_p = given.get("temperature"), given.get("top_p")
    # Tasks that set a temperature but not `do_sample` mean to sample.
    if given.get("do_sample", bool(temperature)):
        settings["temperature"] = 1.0 if temperature is None else float(temperature)
        if top_p:
            settings["top_p"] = float(top_p)
    until = given.get("until") or []
    stop = [until] if isinstance(until, str) else list(until)
    if stop := [text for text in stop if text and text != _BETWEEN_EXAMPLES]:
        settings["stop"] = stop
    return settings


def _pictures(visuals: Any, task: str) -> list[Image.Image]:
    """The pictures of a document.

    Raises:
      UserError: it has something else, such as the path of a video.
    """
    found = [visual for visual in visuals or [] if visual is not None]
    for visual in found:
        if not isinstance(visual, Image.Image):
            kind = "a video" if isinstance(visual, str) else f"a {type(visual).__name__}"
            raise UserError(f"{task} shows {kind}; janus_jax answers questions about pictures")
    return found


def _whole(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1:
        raise UserError(f"{name} must be a whole number from 1, not {value!r}")
    return number


def _chunks(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (numbers[i : i + size] for i in range(0, len(numbers), size))
