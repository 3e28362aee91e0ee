"""Numbers of GenEval and DPG-Bench, under names that say who judged the pictures and what is missing."""

from __future__ import annotations

from janus_jax.evaluation.generation import DpgScores, GenEvalScores
from janus_jax.evaluation.published import WHOLE, Own
from janus_jax.evaluation.results import Number, number

OFFICIAL = "official"


def geneval_numbers(
    scores: GenEvalScores, model: str | None = None, other: str = ""
) -> list[Number]:
    """The overall number, then one a task.

    Args:
      scores: of `generation.score_results`.
      model: of `published.MODELS`, beside whose numbers they may stand.
      other: what makes them another measure, such as "judged by X".
    """
    reasons = ", ".join(r for r in (scores.incomplete, other) if r)
    values = {"overall": scores.overall}
    values |= {name: task.share for name, task in scores.tasks.items()}
    return [
        _number("geneval", metric, value, reasons, model, metric == "overall")
        for metric, value in values.items()
    ]


def dpg_numbers(scores: DpgScores, model: str | None = None, other: str = "") -> list[Number]:
    """The overall number, then one a category; see `geneval_numbers`."""
    reasons = ", ".join(r for r in (scores.incomplete, other) if r)
    values = {"overall": scores.overall, **scores.l1}
    return [
        _number("dpg", metric, value, reasons, model, metric == "overall")
        for metric, value in values.items()
    ]


def _number(
    benchmark: str, metric: str, value: float, reasons: str, model: str | None, headline: bool
) -> Number:
    whole = WHOLE[benchmark]
    own = Own(benchmark, metric, value, whole, whole, reasons)
    protocol = "" if reasons else OFFICIAL
    return number(own, model, protocol=protocol, headline=headline)
