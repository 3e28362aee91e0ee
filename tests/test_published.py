"""The paper's numbers, and that one's own stand beside them only where both mean the same."""

import math

import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation.generation import GENEVAL_TASKS, L1_CATEGORIES
from janus_jax.evaluation.published import (
    PUBLISHED,
    Own,
    beside_paper,
    compared,
    paper_number,
    published,
    understanding_average,
)


@pytest.mark.parametrize("model", ["Janus", "Janus-Pro-1B", "Janus-Pro-7B"])
def test_the_overall_geneval_score_is_the_mean_of_the_six(model):
    """A check of each row of Table 4 against itself: the columns are rounded to 0.01, and so is their mean."""
    mean = math.fsum(paper_number(model, "geneval", task).value for task in GENEVAL_TASKS) / 6
    assert abs(mean - paper_number(model, "geneval", "overall").value) < 0.0101


def test_rows_are_complete_and_each_number_says_where_it_is_from():
    assert len({(p.model, p.benchmark, p.metric) for p in PUBLISHED if p.of_paper}) == 3 * (
        7 + 7 + 6
    )
    assert sum(p.of_paper for p in PUBLISHED) == 60
    for p in PUBLISHED:
        assert p.protocol and p.source.startswith("https://") and p.value > 0
    assert {p.metric for p in published("Janus-Pro-7B", "dpg", True)} == {*L1_CATEGORIES, "overall"}
    assert paper_number("Janus-Pro-7B", "dpg", "overall").value == 84.19
    assert paper_number("Janus-Pro-1B", "mme", "perception").value == 1444.0


def test_figure_1_averages_four_benchmarks():
    scores = {p.benchmark: p.value for p in published("Janus-Pro-7B", of_paper=True)}
    assert understanding_average(scores) == pytest.approx((87.4 + 1567.1 / 20 + 62.0 + 41.0) / 4)
    del scores["mme"]
    with pytest.raises(UserError, match="there is no mme"):
        understanding_average(scores)


def test_others_numbers_are_not_the_papers():
    found = published("Janus-Pro-1B", "geneval", of_paper=False)
    assert {p.metric: p.value for p in found} == {"two_object": 0.697, "position": 0.4625}
    assert all("User and Assistant" in p.protocol for p in found)


def test_a_whole_run_stands_beside_the_paper():
    row = beside_paper(Own("geneval", "overall", 0.71, 553, 553), "Janus-Pro-1B")
    assert (row.paper, row.difference) == (0.73, -0.02)
    row = beside_paper(Own("mme", "perception", 1520.0, 2114, 2114), "Janus-Pro-7B")
    assert row.difference == pytest.approx(-47.1)


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (Own("geneval", "overall", 0.9, 40, 553), "40 of 553"),
        (Own("geneval", "overall", 0.9, 40, 40), "40 of 553"),
        (Own("dpg", "overall", 90.0, 1064, 1064), "1064 of 1065"),
        (Own("pope", "F1 random", 90.0, 2999, 3000), "2999 of 3000"),
        (Own("pope", "F1 random", 0.0, 0, 0), "0 of 0"),
        (Own("dpg", "overall", 90.0, 1065, 1065, "judged by Janus"), "judged by Janus"),
    ],
)
def test_a_part_or_another_measure_never_has_the_papers_name(own, reason):
    with pytest.raises(UserError, match=reason):
        beside_paper(own, "Janus-Pro-1B")
    (row,) = compared([own], "Janus-Pro-1B")
    assert row.metric == f"{own.metric} ({reason})"
    assert row.paper is None and row.difference is None and reason in row.note


def test_rows_of_a_table_keep_their_order():
    owns = [
        Own("geneval", "overall", 0.8, 553, 553),
        Own("geneval", "images", 0.7, 553, 553),
        Own("gqa", "accuracy", 60.0, 10, 12578),
    ]
    rows = compared(owns, "Janus-Pro-7B")
    assert [(row.metric, row.paper) for row in rows] == [
        ("overall", 0.8),
        ("images", None),
        ("accuracy (10 of 12578)", None),
    ]
    assert rows[1].note == "not in the paper"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Janus-Pro-1b", "dpg", "overall"), "Did you mean 'Janus-Pro-1B'"),
        (("Janus-Pro-1B", "gen-eval", "overall"), "Did you mean 'geneval'"),
        (("Janus-Pro-1B", "pope", "f1"), "no metric of pope 'f1' \\(F1 random\\)"),
        (("Janus-Pro-1B", "pope", "F1 overall"), "no metric of pope"),
    ],
)
def test_names_that_the_paper_lacks_are_told(arguments, message):
    with pytest.raises(UserError, match=message):
        paper_number(*arguments)
