"""How the emoji world's scores are shown: mini-GenEval next to its ceiling, questions next to the majority."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from janus_jax.evaluation.tables import (
    Grid,
    Highlight,
    ScoreLookup,
    Section,
    cell,
    guidance_section,
    rows_of,
    score,
    standard_error,
)

_SHARES = ("plain", "strict")
_POPE = ("precision", "recall", "f1")


class _Drawing:
    """mini-GenEval by kind, next to what a perfect model would get with the same image tokenizer."""

    tables = ("mini_geneval", "mini_geneval_held_out", "judge", "guidance")
    highlights = (
        Highlight("mini-GenEval, one object", "mini_geneval", "single_object", "plain"),
        Highlight("mini-GenEval, mean", "mini_geneval", "mean", "plain"),
    )

    def sections(self, scores: ScoreLookup) -> list[Section]:
        drawn, judge = scores.newest("mini_geneval"), scores.newest("judge").entry.get("judge", {})
        columns = {
            "drawn": drawn.entry.get("mini_geneval"),
            "drawn, held out": drawn.entry.get("mini_geneval_held_out"),
            "ceiling": judge.get("reconstructed"),
            "ceiling, held out": judge.get("reconstructed_held_out"),
            "true scenes": judge.get("true"),
            "wrong prompts": judge.get("shuffled"),
        }
        columns = {k: v for k, v in columns.items() if v}
        if not columns:
            return []
        rows = [
            [kind, *(cell(table, kind, _SHARES) for table in columns.values())]
            for kind in rows_of(list(columns.values()))
        ]
        text = _text(
            f"After {drawn.stage}, drawn at random with guidance "
            f"{drawn.entry.get('cfg_weight', 'unknown')} and temperature "
            f"{drawn.entry.get('temperature', 1.0)}."
            if drawn.stage
            else "",
            "Each cell: share of pictures that show what the prompt asks for / that show nothing else "
            "as well. Held out: combinations that training never showed.",
            "Ceiling: true scenes through the image tokenizer, so about what a perfect model would "
            "get. True scenes and wrong prompts check the judge: they should be 1 and about 0."
            if judge
            else "",
            standard_error(drawn.entry.get("mini_geneval", {})),
        )
        drawing = Section("Drawing: mini-GenEval", [text, Grid(["kind", *columns], rows)])
        guidance = guidance_section(drawn)
        return [drawing, guidance] if guidance else [drawing]


class _Questions:
    """Accuracy by kind, next to always giving the commonest answer; yes/no as POPE does."""

    tables = ("questions", "questions_held_out")
    highlights = (Highlight("questions, mean", "questions", "mean", "accuracy"),)

    def sections(self, scores: ScoreLookup) -> list[Section]:
        asked = scores.newest("questions")
        columns = {
            "seen": asked.entry.get("questions"),
            "held out": asked.entry.get("questions_held_out"),
        }
        columns = {k: v for k, v in columns.items() if v}
        if not columns:
            return []
        fields = ("accuracy", "majority")
        rows = [
            [kind, *(score(table, kind, f) for table in columns.values() for f in fields)]
            for kind in rows_of(list(columns.values()))
        ]
        text = _text(
            f"After {asked.stage}, on scenes drawn at random for this. Held out: with combinations "
            "that training never showed, where a kind's scenes have any. Majority: always giving the "
            "commonest right answer.",
            standard_error(asked.entry.get("questions", {})),
        )
        header = ["kind", *(f"{f}, {c}" for c in columns for f in fields)]
        parts = [text, Grid(header, rows), *_yes_no(columns)]
        return [Section("Understanding: questions", parts)]


def _yes_no(columns: Mapping[str, Mapping[str, Any]]) -> list[str | Grid]:
    found = {name: table.get("yes_no", {}) for name, table in columns.items()}
    found = {n: row for n, row in found.items() if all(row.get(f) is not None for f in _POPE)}
    if not found:
        return []
    rows = [[name, *(f"{row[f]:.2f}" for f in _POPE)] for name, row in found.items()]
    return ['Yes/no questions, of "yes":', Grid(["scenes", *_POPE], rows)]


def _text(*sentences: str) -> str:
    return " ".join(s for s in sentences if s)


DRAWING, QUESTIONS = _Drawing(), _Questions()
