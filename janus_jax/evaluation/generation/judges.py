"""Judges of DPG-Bench's pictures: any function that says how likely a question about a picture is answered by yes.

DPG-Bench's numbers are made with one judge (mPLUG large, fine-tuned on VQA; modelscope's
`damo/mplug_visual-question-answering_coco_large_en`). Scores by any other carry its name, and are not comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Predictor
from janus_jax.evaluation.generation.detectors import detector_name
from janus_jax.evaluation.generation.dpg import expected, is_yes
from janus_jax.evaluation.generation.drawing import drawing_of
from janus_jax.evaluation.generation.journal import Journal
from janus_jax.evaluation.generation.layouts import GRID_SIDE, grid_crops
from janus_jax.evaluation.generation.prompts import PromptSet
from janus_jax.evaluation.generation.questions import Questions
from janus_jax.processing.image import load_image

OFFICIAL = "mplug"
# (picture uint8 [h, w, 3], question) -> the probability of yes, 0 to 1.
Judge = Callable[[np.ndarray, str], float]
Progress = Callable[[int, int], None]  # (pictures that are judged, pictures in all)


class PredictorJudge:
    """A model that answers questions, such as Janus itself, as a judge: 1 for "yes", 0 for anything else.

    Args:
      predictor: whose `answer(pictures, questions)` is asked.
      name: for the results.
      prompt: what the question is put into, at `{}`.
    """

    def __init__(
        self,
        predictor: Predictor,
        name: str,
        prompt: str = "{} Answer with yes or no.",
    ):
        if "{}" not in prompt:
            raise UserError(
                f"the prompt of a judge must have {{}} for the question, not {prompt!r}"
            )
        self.name = f"{name}: {prompt}"
        self._predictor, self._prompt = predictor, prompt

    def __call__(self, picture: np.ndarray, question: str) -> float:
        return float(self.batch([picture], [question])[0])

    def batch(self, pictures: Sequence[np.ndarray], questions: Sequence[str]) -> list[float]:
        """The same for several; question i is about picture i."""
        asked = [self._prompt.replace("{}", question) for question in questions]
        answers = self._predictor.answer(list(pictures), asked)
        return [float(is_yes(answer, compat=False)) for answer in answers]


class ScoringJudge:
    """A model that gives probabilities to answers: P(yes) / (P(yes) + P(no)).

    Args:
      log_probs: (pictures, questions, answers) -> the log-probability of each answer, [N]; such as
        `lambda p, q, a: janus.score_answers(p, q, a).sum(axis=1)`.
      name: for the results.
    """

    def __init__(
        self,
        log_probs: Callable[[Sequence[np.ndarray], Sequence[str], Sequence[str]], Any],
        name: str,
        yes: str = "Yes",
        no: str = "No",
    ):
        self.name = f"{name}: P({yes}) against P({no})"
        self._log_probs, self._answers = log_probs, (yes, no)

    def __call__(self, picture: np.ndarray, question: str) -> float:
        return float(self.batch([picture], [question])[0])

    def batch(self, pictures: Sequence[np.ndarray], questions: Sequence[str]) -> list[float]:
        """The same for several; question i is about picture i."""
        count = len(questions)
        answers = [answer for answer in self._answers for _ in range(count)]
        found = self._log_probs([*pictures] * 2, [*questions] * 2, answers)
        yes, no = np.asarray(found, np.float64).reshape(2, count)
        return (1 / (1 + np.exp(np.clip(no - yes, -700, 700)))).tolist()


def judge_answers(
    judge: Judge,
    prompts: PromptSet,
    questions: Questions,
    directory: str | Path,
    out: str | Path,
    samples: int = GRID_SIDE**2,
    progress: Progress | None = None,
) -> dict[str, list[dict[int, bool]]]:
    """Asks a judge every question about every sample of a folder in DPG's layout; goes on where a kill ended it.

    The answer is yes where the probability is a half or more.

    Args:
      judge: see `Judge`; with a method `batch(pictures, questions)`, all questions about a picture are asked at
        once.
      prompts: those whose pictures are looked at.
      questions: of `read_questions`.
      directory: with ID.png, grids of 2 x 2; or single pictures with `samples=1`.
      out: JSON lines with the answers, the judge's name in the first.
      samples: of each grid, 1 to 4.

    Returns:
      What `dpg.score_answers` takes.

    Raises:
      UserError: a picture is missing or unreadable, the judge returns no probability, or `out` is of another
        judge, other questions or other pictures.
    """
    if type(samples) is not int or not 1 <= samples <= GRID_SIDE**2:
        raise UserError(f"samples of a grid must be 1 to {GRID_SIDE**2}, not {samples!r}")
    name = detector_name(judge)
    header = {
        "judge": name,
        "questions": questions.fingerprint,
        "samples": samples,
        "drawing": drawing_of(directory),
    }
    wanted = expected(prompts, questions)
    paths = {prompt.key: _picture(Path(directory), prompt.key) for prompt in wanted}
    journal = Journal(out, header, ("picture",))
    for done, prompt in enumerate(wanted):
        if progress:
            progress(done, len(wanted))
        if journal.has(picture=prompt.key):
            continue
        asked = [question.text for question in questions.of[prompt.key]]
        crops = grid_crops(np.asarray(load_image(paths[prompt.key])), samples)
        pictures = [crop for crop in crops for _ in asked]
        found = _ask(judge, name, pictures, asked * samples)
        rows = [found[i : i + len(asked)] for i in range(0, len(found), len(asked))]
        journal.add({"picture": prompt.key, "yes": rows})
    if progress:
        progress(len(wanted), len(wanted))
    with untrusted.understanding(out):
        lines = {line["picture"]: line["yes"] for line in journal.lines}
        return {
            prompt.key: [
                {q.number: p >= 0.5 for q, p in zip(questions.of[prompt.key], row, strict=True)}
                for row in lines[prompt.key]
            ]
            for prompt in wanted
        }


def _ask(
    judge: Judge, name: str, pictures: Sequence[np.ndarray], questions: Sequence[str]
) -> list[float]:
    """The probabilities of yes, checked."""
    if hasattr(judge, "batch"):
        found = list(judge.batch(pictures, questions))
    else:
        found = [judge(p, q) for p, q in zip(pictures, questions, strict=True)]
    try:
        values = [float(p) for p in found]
    except (TypeError, ValueError):
        values = []
    if len(values) != len(questions) or not all(0 <= p <= 1 for p in values):
        raise UserError(
            f"the judge {name} must return the probability of yes, 0 to 1, for each question, not "
            f"{untrusted.shown(found)}"
        )
    return values


def _picture(directory: Path, key: str) -> Path:
    """The picture of a prompt; PNG or JPEG, as the official script allows."""
    for suffix in (".png", ".jpg", ".jpeg"):
        if untrusted.is_file(directory / f"{key}{suffix}"):
            return directory / f"{key}{suffix}"
    raise UserError(
        f"{untrusted.printable(directory, 200)} has no picture {untrusted.printable(key)}.png: "
        "draw it first, or judge "
        "only some prompts"
    )


def judged_by(header: Mapping[str, Any]) -> str:
    """How a score has to be called: by the judge in the header of its file (`journal.read_header`)."""
    name = header.get("judge") or header.get("detector")
    return f"judged by {name}, not by the benchmark's own" if name else "the official scorer's"
