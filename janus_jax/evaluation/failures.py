"""Some wrong answers with their pictures, for people to look at: few enough, and of all kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from janus_jax.errors import UserError
from janus_jax.evaluation.results import TaskResult
from janus_jax.evaluation.understanding import Verdict, make_prompt
from janus_jax.processing import data_uri

MOST = 60


@dataclasses.dataclass(frozen=True)
class Failure:
    """A wrong answer.

    Attributes:
      task: name of the task.
      verdict: what the answer was found to say.
      question: with its instruction, as it was asked.
      pictures: `data:` addresses of small pictures; none where they cannot be read.
      problem: why there is no picture or no answer.
    """

    task: str
    verdict: Verdict
    question: str
    pictures: Sequence[str]
    problem: str = ""


def pick_failures(results: Iterable[TaskResult], most: int = MOST) -> list[Failure]:
    """At most `most` wrong answers: as many of each task, and in a task of each category, as there is room for."""
    queues = {
        result.task.name: _by_turns(
            [v for v in result.scores.verdicts if not v.right], lambda v: v.category
        )
        for result in results
        if result.scores
    }
    by_name = {result.task.name: result for result in results}
    tagged = [(name, verdict) for name, of in queues.items() for verdict in of]
    chosen = _by_turns(tagged, lambda pair: pair[0])[:most]
    order = list(queues)
    chosen.sort(key=lambda pair: order.index(pair[0]))
    return [_failure(by_name[name], verdict) for name, verdict in chosen]


def _by_turns(values: Sequence, key) -> list:
    """The values so that those of each key come by turns, in the order of a key."""
    groups: dict = {}
    for value in values:
        groups.setdefault(key(value), []).append(value)
    longest = max(map(len, groups.values()), default=0)
    return [group[i] for i in range(longest) for group in groups.values() if i < len(group)]


def _failure(result: TaskResult, verdict: Verdict) -> Failure:
    task = result.task
    prompt = make_prompt(task.items.find(verdict.index), task.protocol)
    problem = result.unreadable.get(verdict.index) or result.failed.get(verdict.index) or ""
    pictures = []
    if verdict.index not in result.unreadable:
        try:
            pictures = [data_uri(picture) for picture in prompt.load_pictures()[:3]]
        except UserError as error:
            problem = problem or str(error)
    return Failure(task.name, verdict, prompt.text, pictures, problem)
