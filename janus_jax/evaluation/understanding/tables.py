"""Tables of a benchmark from what its answers were found to say: row -> column -> number, in percent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from janus_jax.evaluation.understanding.benchmarks import (
    COGNITION,
    MMVET_ABILITIES,
    PERCEPTION,
    POPE_SUBSETS,
)
from janus_jax.evaluation.understanding.verdicts import Verdict

Row = dict[str, float | None]
NamedTables = dict[str, dict[str, Row]]
_ROTATED = 10**6  # MMBench: rotations of question i have the indices i + k * 10^6


def pope_tables(verdicts: Sequence[Verdict], recall_of_no: bool = False) -> NamedTables:
    """By subset, over all of them, and the mean of the three. A question of two subsets counts in both.

    Args:
      verdicts: of all questions.
      recall_of_no: only an answer "No" lowers recall, one that says neither does not (lmms-eval).
    """
    subsets: dict[str, list[Verdict]] = {name: [] for name in POPE_SUBSETS}
    pooled = []
    for verdict in verdicts:
        for subset in verdict.groups or ("",):
            subsets.setdefault(subset, []).append(verdict)
            pooled.append(verdict)
    table = {name: _yes_no_row(of, recall_of_no) for name, of in subsets.items() if name and of}
    table["overall"] = _yes_no_row(pooled, recall_of_no)
    if all(name in table for name in POPE_SUBSETS):
        rows = [table[name] for name in POPE_SUBSETS]
        table["mean of 3"] = {
            column: sum(row[column] for row in rows) / 3
            for column in ("f1", "accuracy", "precision", "recall", "yes")
        }
    return {"pope": table}


def _yes_no_row(verdicts: Sequence[Verdict], recall_of_no: bool) -> Row:
    true = [v for v in verdicts if v.truth == "Yes"]
    answered = [v for v in verdicts if v.said == "Yes"]
    hits = sum(v.said == "Yes" for v in true)
    asked = sum(v.said in ("Yes", "No") for v in true) if recall_of_no else len(true)
    precision, recall = _share(hits, len(answered)), _share(hits, asked)
    total = precision + recall
    return {
        "f1": 2 * precision * recall / total if total else 0.0,
        "accuracy": _accuracy(verdicts),
        "precision": precision,
        "recall": recall,
        "yes": _share(len(answered), len(verdicts)),
        "count": len(verdicts),
    }


def mme_tables(verdicts: Sequence[Verdict]) -> NamedTables:
    """By subtask: acc over questions, acc_plus over pictures with both questions right; score is their sum."""
    table: dict[str, Row] = {}
    for subtask, of in _by(verdicts, lambda v: [v.category]).items():
        pictures = _by(of, lambda v: [v.picture_key]) if all(v.picture_key for v in of) else {}
        pairs = [pair for pair in pictures.values() if len(pair) == 2]
        both = (
            _share(sum(all(v.right for v in pair) for pair in pairs), len(pairs)) if pairs else None
        )
        acc = _accuracy(of)
        table[subtask] = {
            "score": None if both is None else acc + both,
            "acc": acc,
            "acc_plus": both,
            "count": len(of),
            "pairs": len(pairs),
        }
    for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
        scores = [table[s]["score"] for s in subtasks if s in table]
        known = [score for score in scores if score is not None]
        table[name] = {"score": sum(known) if known else None, "subtasks": len(known)}
    return {"mme": table}


def mmbench_tables(verdicts: Sequence[Verdict]) -> NamedTables:
    """vanilla_0 without rotations, vanilla_all with them; circular: right if all its rotations are right."""
    first = [v for v in verdicts if int(v.index) < _ROTATED]
    rotations = _by(verdicts, lambda v: [str(int(v.index) % _ROTATED)])
    right = {index: all(v.right for v in group) for index, group in rotations.items()}
    names = lambda v: [v.category] if v.category else []
    tables: NamedTables = {}
    for name, keys in (
        ("mmbench", lambda v: ["all"]),
        ("mmbench_category", names),
        ("mmbench_l2", lambda v: v.groups),
    ):
        table: dict[str, Row] = {}
        everything, once = _by(verdicts, keys), _by(first, keys)
        for key in everything:
            of = once.get(key, [])
            table[key] = {
                "vanilla_0": _accuracy(of),
                "vanilla_all": _accuracy(everything[key]),
                "circular": _percent([right[v.index] for v in of]),
                "count": len(of),
            }
        if table:
            tables[name] = table
    whole = tables["mmbench"].pop("all")
    counts = {"vanilla_0": len(first), "vanilla_all": len(verdicts), "circular": len(first)}
    tables["mmbench"] = {
        name: {"accuracy": whole[name], "count": count} for name, count in counts.items()
    }
    return tables


def accuracy_tables(name: str) -> Callable[[Sequence[Verdict]], NamedTables]:
    """Over all questions and by category."""

    def tables(verdicts: Sequence[Verdict]) -> NamedTables:
        rows = {
            "overall": list(verdicts),
            **_by(verdicts, lambda v: [v.category] * bool(v.category)),
        }
        return {name: {key: _accuracy_row(of) for key, of in rows.items()}}

    return tables


def mmmu_tables(verdicts: Sequence[Verdict]) -> NamedTables:
    """Over all questions, which is the mean of the subjects by their number; by subject; by discipline."""
    tables = accuracy_tables("mmmu")(verdicts)
    disciplines = _by(verdicts, lambda v: v.groups)
    if disciplines:
        tables["mmmu_discipline"] = {key: _accuracy_row(of) for key, of in disciplines.items()}
    return tables


def mmvet_tables(verdicts: Sequence[Verdict]) -> NamedTables:
    """Mean grades: of all answers, of those that need an ability, and by what abilities they need together.

    Answers to which the judge gave no grade are left out, of the counts too.
    """
    abilities = _by(verdicts, lambda v: v.groups)
    order = [*MMVET_ABILITIES, *(a for a in abilities if a not in MMVET_ABILITIES)]
    table = {ability: _grade_row(abilities[ability]) for ability in order if ability in abilities}
    together = _by(verdicts, lambda v: ["_".join(v.groups)] if v.groups else [])
    tables = {"mmvet": {**table, "total": _grade_row(verdicts)}}
    if together:
        tables["mmvet_combination"] = {key: _grade_row(of) for key, of in together.items()}
    return tables


TABLES: Mapping[str, Callable[[Sequence[Verdict]], NamedTables]] = {
    "pope": pope_tables,
    "mme": mme_tables,
    "mmbench": mmbench_tables,
    "seed": accuracy_tables("seed"),
    "gqa": accuracy_tables("gqa"),
    "mmmu": mmmu_tables,
    "mmvet": mmvet_tables,
}


def _by(
    verdicts: Iterable[Verdict], keys: Callable[[Verdict], Iterable[str]]
) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        for key in keys(verdict):
            found[key].append(verdict)
    return dict(found)


def _share(part: float, whole: int) -> float:
    return 100 * part / whole if whole else 0.0


def _percent(values: Sequence[float]) -> float | None:
    return 100 * sum(values) / len(values) if values else None


def _accuracy(verdicts: Sequence[Verdict]) -> float | None:
    return _percent([v.right for v in verdicts])


def _accuracy_row(verdicts: Sequence[Verdict]) -> Row:
    return {"accuracy": _accuracy(verdicts), "count": len(verdicts)}


def _grade_row(verdicts: Sequence[Verdict]) -> Row:
    grades = [v.grade for v in verdicts if v.grade is not None]
    return {"score": _percent(grades), "count": len(grades)}
