"""Published numbers of Janus and Janus-Pro as data, and one's own beside them.

The paper's are those of Tables 3, 4 and 5 of Janus-Pro (Chen et al. 2025, arXiv 2501.17811), with the protocol
as far as it is known: what the authors have said is in `protocol`, what was concluded is marked there as
likely. Others are from public threads, as those who measured them wrote them down; nobody has checked them.

    own = Own("geneval", "overall", 0.71, done=553, total=553)
    print(beside_paper(own, "Janus-Pro-1B").difference)      # -0.02
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from janus_jax.errors import UserError, nearest

PAPER = "https://arxiv.org/abs/2501.17811"
MODELS = ("Janus", "Janus-Pro-1B", "Janus-Pro-7B")


@dataclasses.dataclass(frozen=True)
class Published:
    """One number.

    Attributes:
      model: "Janus" (1.3B), "Janus-Pro-1B" or "Janus-Pro-7B".
      benchmark: "pope", "mme", "mmbench", "seed", "gqa", "mmmu", "mmvet", "geneval" or "dpg".
      metric: what was measured; all but those of "geneval", which are shares, and "mme", points, are out of 100.
      value: the number as printed.
      protocol: how, as far as it is known.
      source: where it stands.
      of_paper: whether it is in the Janus-Pro paper.
    """

    model: str
    benchmark: str
    metric: str
    value: float
    protocol: str
    source: str
    of_paper: bool = True


@dataclasses.dataclass(frozen=True)
class Own:
    """A number of one's own.

    Attributes:
      benchmark, metric: as in `Published`.
      value: in the unit of the paper.
      done, total: how many questions or prompts were scored, of how many.
      other: what else makes it another measure than the paper's, such as "judged by Janus", "protocol
        lmms-eval" or `GenEvalScores.incomplete`; "" for nothing.
    """

    benchmark: str
    metric: str
    value: float
    done: int
    total: int
    other: str = ""


@dataclasses.dataclass(frozen=True)
class Beside:
    """A number of one's own beside the paper's; `paper`, `difference`: None where they must not be compared."""

    benchmark: str
    metric: str
    own: float
    paper: float | None
    difference: float | None
    note: str


# Table 3's columns: benchmark -> (metric, protocol).
_UNDERSTANDING = {
    "pope": (
        "F1 random",
        "random split, as the authors wrote of Janus; that it is F1 is likely (VLMEvalKit's first column)",
    ),
    "mme": (
        "perception",
        "sum of accuracy and accuracy+ over the ten tasks of perception, at most 2000",
    ),
    "mmbench": (
        "vanilla_all",
        "DEV_EN, not circular, as the authors wrote of Janus: every rotation is a row",
    ),
    "seed": ("accuracy", "the questions about images"),
    "gqa": ("accuracy", "testdev balanced; which evaluator is not known"),
    "mmmu": ("accuracy", "validation, 900 questions, as the authors wrote of Janus"),
    "mmvet": ("score", "the official evaluator with GPT-4, as the authors wrote of Janus"),
}
_TABLE_3 = {
    "Janus": (87.0, 1338.0, 69.4, 63.7, 59.1, 30.5, 34.3),
    "Janus-Pro-1B": (86.2, 1444.0, 75.5, 68.3, 59.3, 36.3, 39.8),
    "Janus-Pro-7B": (87.4, 1567.1, 79.2, 72.1, 62.0, 41.0, 50.0),
}
_GENEVAL = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "overall",
)
_GENEVAL_PROTOCOL = (
    "official evaluator; 4 pictures a prompt, temperature 1, guidance 5, prompts as they are, "
    "the roles <|User|> and "
    "<|Assistant|> are likely: others came to the paper's number with them"
)
_TABLE_4 = {
    "Janus": (0.97, 0.68, 0.30, 0.84, 0.46, 0.42, 0.61),
    "Janus-Pro-1B": (0.98, 0.82, 0.51, 0.89, 0.65, 0.56, 0.73),
    "Janus-Pro-7B": (0.99, 0.89, 0.59, 0.90, 0.79, 0.66, 0.80),
}
_DPG = ("global", "entity", "attribute", "relation", "other", "overall")
_DPG_PROTOCOL = (
    "official script (mPLUG large); 4 pictures a prompt in a grid of 2 x 2 at 384 are likely"
)
_TABLE_5 = {
    "Janus": (82.33, 87.38, 87.70, 85.46, 86.41, 79.68),
    "Janus-Pro-1B": (87.58, 88.63, 88.17, 88.98, 88.30, 82.63),
    "Janus-Pro-7B": (86.90, 88.90, 89.40, 89.32, 89.48, 84.19),
}

_JANUS = "https://github.com/deepseek-ai/Janus/issues/"
_VLMEVAL = "https://github.com/open-compass/VLMEvalKit/"
_OTHER_ROLES = (
    "official evaluator; generation_inference.py as it is, whose roles are User and Assistant; temperature 1, "
    "4 pictures"
)
_BY_OTHERS = (
    # (model, benchmark, metric, value, protocol, source)
    ("Janus-Pro-1B", "pope", "F1 overall", 84.11, "VLMEvalKit, exact matching", f"{_JANUS}239"),
    (
        "Janus-Pro-1B",
        "mmbench",
        "accuracy",
        74.2,
        "VLMEvalKit, exact matching; circular or not is not said",
        f"{_JANUS}239",
    ),
    (
        "Janus-Pro-1B",
        "mmbench",
        "accuracy",
        74.3,
        "VLMEvalKit, deepseek-v4-flash extracts; circular or not is not said",
        f"{_JANUS}239",
    ),
    ("Janus-Pro-1B", "seed", "accuracy", 67.28, "VLMEvalKit, exact matching", f"{_JANUS}239"),
    ("Janus-Pro-1B", "mmmu", "accuracy", 34.89, "VLMEvalKit, exact matching", f"{_JANUS}239"),
    (
        "Janus-Pro-1B",
        "mmmu",
        "accuracy",
        35.22,
        "VLMEvalKit, deepseek-v4-flash extracts",
        f"{_JANUS}239",
    ),
    ("Janus-Pro-1B", "mmvet", "score", 36.7, "VLMEvalKit, judged by GPT-4.1", f"{_JANUS}239"),
    (
        "Janus-Pro-1B",
        "mmvet",
        "score",
        35.32,
        "VLMEvalKit, judged by deepseek-v4-flash",
        f"{_JANUS}239",
    ),
    ("Janus-Pro-1B", "mmvet", "score", 37.52, "VLMEvalKit, judged by GPT-4o", f"{_JANUS}239"),
    (
        "Janus-Pro-7B",
        "mme",
        "perception",
        1520.0,
        "not said; reported to VLMEvalKit",
        f"{_VLMEVAL}issues/794",
    ),
    (
        "Janus-Pro-7B",
        "mmbench",
        "circular",
        65.81,
        "lmms-eval, mmbench_en_dev",
        f"{_JANUS}205",
    ),
    (
        "Janus-Pro-7B",
        "mmbench",
        "circular",
        65.98,
        "lmms-eval, mmbench_en_test",
        f"{_JANUS}205",
    ),
    ("Janus-Pro-1B", "geneval", "two_object", 0.6970, _OTHER_ROLES, f"{_JANUS}210"),
    ("Janus-Pro-1B", "geneval", "position", 0.4625, _OTHER_ROLES, f"{_JANUS}210"),
    (
        "Janus-Pro-1B",
        "dpg",
        "overall",
        74.64,
        "official script, installed as its page says; compared by its author with the paper's 82.63",
        "https://github.com/JiuhaiChen/BLIP3o/issues/46",
    ),
    ("Janus", "pope", "F1 random", 87.1, "the authors, with VLMEvalKit", f"{_VLMEVAL}pull/541"),
    ("Janus", "pope", "F1 overall", 85.5, "the authors, with VLMEvalKit", f"{_VLMEVAL}pull/541"),
    ("Janus", "mme", "perception", 1342.4, "the authors, with VLMEvalKit", f"{_VLMEVAL}pull/541"),
    (
        "Janus",
        "mmbench",
        "vanilla_all",
        69.8,
        "the authors, with VLMEvalKit, not circular",
        f"{_VLMEVAL}pull/541",
    ),
    ("Janus", "seed", "accuracy", 63.8, "the authors, with VLMEvalKit", f"{_VLMEVAL}pull/541"),
    (
        "Janus",
        "mmmu",
        "accuracy",
        31.2,
        "the authors, with VLMEvalKit, validation",
        f"{_VLMEVAL}pull/541",
    ),
    (
        "Janus",
        "mmvet",
        "score",
        36.8,
        "the authors, with the official evaluator, GPT-4",
        f"{_VLMEVAL}pull/541",
    ),
)


def _of_paper() -> Iterable[Published]:
    for model in MODELS:
        for (benchmark, (metric, protocol)), value in zip(
            _UNDERSTANDING.items(), _TABLE_3[model], strict=True
        ):
            yield Published(model, benchmark, metric, value, protocol, f"{PAPER}, Table 3")
        for metric, value in zip(_GENEVAL, _TABLE_4[model], strict=True):
            yield Published(model, "geneval", metric, value, _GENEVAL_PROTOCOL, f"{PAPER}, Table 4")
        for metric, value in zip(_DPG, _TABLE_5[model], strict=True):
            yield Published(model, "dpg", metric, value, _DPG_PROTOCOL, f"{PAPER}, Table 5")


PUBLISHED: tuple[Published, ...] = (
    *_of_paper(),
    *(Published(*fields, of_paper=False) for fields in _BY_OTHERS),
)
# How many questions or prompts a whole run of a benchmark has, where the set is fixed.
WHOLE = {"geneval": 553, "dpg": 1065}


def published(
    model: str | None = None, benchmark: str | None = None, of_paper: bool | None = None
) -> list[Published]:
    """The numbers of a model, of a benchmark, of the paper or of others; None is all.

    Raises:
      UserError: no such model or benchmark.
    """
    _check("model", model, MODELS)
    _check("benchmark", benchmark, dict.fromkeys(p.benchmark for p in PUBLISHED))
    return [
        p
        for p in PUBLISHED
        if model in (None, p.model)
        and benchmark in (None, p.benchmark)
        and of_paper in (None, p.of_paper)
    ]


def paper_number(model: str, benchmark: str, metric: str) -> Published:
    """The paper's number.

    Raises:
      UserError: the paper has none.
    """
    found = {p.metric: p for p in published(model, benchmark, of_paper=True)}
    _check(f"metric of {benchmark}", metric, found)
    return found[metric]


def beside_paper(own: Own, model: str) -> Beside:
    """A number of one's own beside the paper's, where both mean the same.

    Raises:
      UserError: the paper has no such number; or one's own is of a part of the benchmark, or of another judge,
        and so must not have the paper's name.
    """
    paper = paper_number(model, own.benchmark, own.metric)
    if reason := unlike(own):
        raise UserError(
            f"{own.benchmark}, {own.metric}: a number of another measure ({reason}) must not "
            "stand beside the paper's "
            "under its name"
        )
    return Beside(
        own.benchmark,
        own.metric,
        own.value,
        paper.value,
        round(own.value - paper.value, 6),
        paper.protocol,
    )


def compared(owns: Iterable[Own], model: str) -> list[Beside]:
    """Rows of a table: those that mean what the paper's do beside them, others alone, with why in their name."""
    rows = []
    for own in owns:
        reason = unlike(own)
        in_paper = any(
            p.metric == own.metric for p in published(model, own.benchmark, of_paper=True)
        )
        if reason or not in_paper:
            name = f"{own.metric} ({reason})" if reason else own.metric
            note = f"not the paper's measure: {reason}" if reason else "not in the paper"
            rows.append(Beside(own.benchmark, name, own.value, None, None, note))
        else:
            rows.append(beside_paper(own, model))
    return rows


def unlike(own: Own) -> str:
    """Why a number is not one of the whole benchmark as the paper has it, such as "100 of 553"; "" if it is."""
    whole = WHOLE.get(own.benchmark, own.total)
    if own.done != own.total or own.total != whole or own.done < 1:
        part = f"{own.done} of {max(own.total, whole)}"
        return f"{part}, {own.other}" if own.other else part
    return own.other


def understanding_average(scores: Mapping[str, float]) -> float:
    """Figure 1's average: of POPE, MME-Perception / 20, GQA and MMMU, by the names of `Published.benchmark`.

    Raises:
      UserError: one of the four is missing.
    """
    wanted = {"pope": 1.0, "mme": 20.0, "gqa": 1.0, "mmmu": 1.0}
    if missing := [name for name in wanted if name not in scores]:
        raise UserError(
            f"the average of Figure 1 needs {', '.join(wanted)}; there is no {missing[0]}"
        )
    return sum(scores[name] / by for name, by in wanted.items()) / len(wanted)


def _check(what: str, name: str | None, options: Iterable[str]) -> None:
    options = list(options)
    if name is not None and name not in options:
        raise UserError(f"no {what} {name!r} ({', '.join(options)}).{nearest(name, options)}")
