"""From answers to the tables of a benchmark, its headline number and what was wrong with single answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from janus_jax.errors import UserError, nearest
from janus_jax.evaluation.understanding.benchmarks import (
    COGNITION,
    PERCEPTION,
    benchmark_facts,
)
from janus_jax.evaluation.understanding.items import Item
from janus_jax.evaluation.understanding.mmvet import Grade
from janus_jax.evaluation.understanding.parsers import (
    JUDGED,
    MISSING,
    NO_PICTURE,
    UNREAD,
    Judge,
    Reading,
    parse_answer,
)
from janus_jax.evaluation.understanding.protocols import Cell, Protocol
from janus_jax.evaluation.understanding.tables import TABLES, NamedTables, pope_tables
from janus_jax.evaluation.understanding.verdicts import Verdict
from janus_jax.untrusted import shown


@dataclasses.dataclass(frozen=True)
class BenchmarkScores:
    """The scores of a benchmark under a protocol.

    Attributes:
      protocol: it.
      tables: name -> row -> column -> number, in percent but for MME's scores and counts.
      headline: the number that stands for the benchmark; None where the answers give none.
      beside: by other conventions: name -> number.
      counts: how answers were read -> how many (`parsers`).
      verdicts: of all items, in order.
      warnings: why the numbers may not be comparable.
    """

    protocol: Protocol
    tables: NamedTables
    headline: float | None
    beside: Mapping[str, float | None]
    counts: Mapping[str, int]
    verdicts: Sequence[Verdict]
    warnings: Sequence[str]


def score_answers(
    items: Iterable[Item],
    answers: Mapping[str, str | None],
    protocol: Protocol,
    judge: Judge | None = None,
    grade: Grade | None = None,
    unreadable: Collection[str] = (),
    seed: int = 0,
) -> BenchmarkScores:
    """Scores the answers to a benchmark's items; it opens no picture.

    Args:
      items: what was asked: all, or those that should count.
      answers: index -> answer. A missing one, or None, is wrong, and counted.
      protocol: of the benchmark.
      judge: is asked where the rules of the protocol read nothing in an answer; see `parsers.Judge`.
      grade: of MM-Vet's answers; see `mmvet.grader`.
      unreadable: indices of items whose pictures cannot be read: they are wrong whatever was answered.
      seed: of what is drawn at random where MMMU's rule does so.

    Raises:
      UserError: an answer to an item that there is not; no items; items without true answers; MM-Vet without
        `grade`.
    """
    title = benchmark_facts(protocol.benchmark).title
    if protocol.parser == "judged" and grade is None:
        raise UserError(
            f"{title}: answers are graded by a language model: give a judge, or write the predictions "
            "for the official evaluator"
        )
    verdicts = []
    for item in items:
        if not item.answer:
            raise UserError(
                f"{title}: question {shown(item.index)} has no true answer in its file, such as those of "
                "a test split: predictions can be exported, but not scored"
            )
        answer = answers.get(item.index)
        reading, mark = _read(item, answer, protocol, judge, grade, item.index in unreadable, seed)
        verdicts.append(
            Verdict(
                *(item.index, answer, reading.said, item.answer, reading.right, reading.how, mark),
                *(item.category, item.groups, item.picture_key),
            )
        )
    if not verdicts:
        raise UserError(f"{title}: there is no question to score")
    known = {verdict.index for verdict in verdicts}
    for index in answers:
        if index not in known:
            raise UserError(
                f"{title}: there is an answer to {shown(index)}, which is none of its questions."
                + nearest(str(index)[:100], list(known)[:2000])
            )
    tables = _tables(protocol, verdicts)
    return BenchmarkScores(
        protocol=protocol,
        tables=tables,
        headline=_cell(tables, protocol.headline),
        beside={name: _cell(tables, cell) for name, cell in protocol.beside.items()},
        counts=dict(Counter(verdict.how for verdict in verdicts)),
        verdicts=verdicts,
        warnings=_warnings(protocol, tables),
    )


def _read(
    item: Item,
    answer: str | None,
    protocol: Protocol,
    judge: Judge | None,
    grade: Grade | None,
    no_picture: bool,
    seed: int,
) -> tuple[Reading, float | None]:
    """(what an answer says, its grade; None where a judge should have given one and did not)."""
    if no_picture:
        return Reading("", False, NO_PICTURE), 0.0
    if answer is None:
        return Reading("", False, MISSING), 0.0
    for text in protocol.stop:
        answer = answer.split(text)[0]
    if protocol.parser != "judged":
        reading = parse_answer(protocol.parser, answer, item, judge, seed)
        return reading, float(reading.right)
    given = grade(item.question, item.answer, answer)
    if given is None:
        return Reading(answer, False, UNREAD), None
    mark = float(given)
    if not 0 <= mark <= 1:
        raise UserError(f"the judge of {shown(item.index)} gave {mark}, which is not from 0 to 1")
    return Reading(answer, mark == 1, JUDGED), mark


def _tables(protocol: Protocol, verdicts: Sequence[Verdict]) -> NamedTables:
    if protocol.parser == "yes_no_exact" and protocol.benchmark == "pope":
        return pope_tables(verdicts, recall_of_no=True)
    return TABLES[protocol.benchmark](verdicts)


def _cell(tables: NamedTables, cell: Cell) -> float | None:
    name, row, column = cell
    return tables.get(name, {}).get(row, {}).get(column)


def _warnings(protocol: Protocol, tables: NamedTables) -> list[str]:
    warnings = []
    if _cell(tables, protocol.headline) is None:
        warnings.append(
            f"{protocol.benchmark}: the questions give no {' / '.join(protocol.headline)}, the number of "
            "this protocol"
        )
    if protocol.benchmark == "mme":
        table = tables["mme"]
        for name, subtasks in (("perception", PERCEPTION), ("cognition", COGNITION)):
            there = table[name]["subtasks"]
            if 0 < there < len(subtasks):
                warnings.append(
                    f"mme: {name} is the sum of {there} of its {len(subtasks)} subtasks"
                )
        for subtask, row in table.items():
            odd = row["count"] - 2 * row["pairs"] if "pairs" in row else 0
            if odd:
                warnings.append(
                    f"mme: {odd} questions of {shown(subtask)} are not two about one picture, so acc_plus "
                    "leaves them out"
                )
    return warnings
