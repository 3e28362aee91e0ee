"""Predictions for other evaluators: VLMEvalKit's tables, MM-Vet's JSON and its grades."""

import csv
import json
import sys

import pytest
from benchmark_files import LAYOUTS, write_layout

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding import (
    Item,
    get_protocol,
    grader,
    grading_prompt,
    open_benchmark,
    score_answers,
    write_official_predictions,
    write_predictions,
)
from janus_jax.evaluation.understanding.mmvet import read_grade

HOSTILE = '=1+1\t"quoted"\r\nline\x00\x1b[31m\ud800 é猫'


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_the_table_can_be_opened_and_scored_again(tmp_path, name, layout):
    paths, root = write_layout(name, layout, tmp_path / "in")
    items = open_benchmark(name, paths, root, split="image" if name == "seed" else None)
    answers = {item.index: item.answer for item in items}
    path = write_predictions(tmp_path, "Janus-Pro-1B", name, items, answers)
    rows = table(path)
    assert [row["prediction"] for row in rows] == list(answers.values())
    assert "image" not in rows[0]
    if layout == "tsv":  # what only this table has is still there
        assert [row.get("source") for row in rows] == [i.fields.get("source") for i in items]
    again = open_benchmark(name, path)
    grade = lambda question, truth, answer: 1.0
    first, second = (
        score_answers(which, answers, get_protocol("vlmevalkit", name), grade=grade)
        for which in (items, again)
    )
    assert first.tables == second.tables


def test_names_and_columns_are_those_of_vlmevalkit(tmp_path):
    names = {}
    for name, layout in LAYOUTS:
        if layout == "parquet":
            paths, root = write_layout(name, layout, tmp_path / name)
            items = open_benchmark(name, paths, root)
            path = write_predictions(tmp_path, "m", name, items, {})
            names[path.name] = list(table(path)[0])
    assert names["m_MMBench_DEV_EN.tsv"] == [
        *("index", "question", "A", "B", "C", "D", "answer", "category", "l2-category", "split"),
        *("hint", "prediction"),  # the first question has no hint
    ]
    assert set(names) == {
        *("m_POPE.tsv", "m_MME.tsv", "m_MMBench_DEV_EN.tsv", "m_SEEDBench_IMG.tsv"),
        *("m_GQA_TestDev_Balanced.tsv", "m_MMMU_DEV_VAL.tsv", "m_MMVet.tsv"),
    }
    assert names["m_POPE.tsv"] == ["index", "question", "answer", "category", "prediction"]
    assert names["m_MME.tsv"] == [
        *("index", "question", "answer", "image_path", "category", "prediction")
    ]
    assert names["m_SEEDBench_IMG.tsv"] == [
        *("index", "question", "A", "B", "C", "D", "answer", "category", "prediction")
    ]


def test_any_answer_can_be_written(tmp_path):
    items = [Item("1", HOSTILE, "Yes", category="random"), Item("2", "q", "No", category="random")]
    path = write_predictions(tmp_path, "m", "pope", items, {"1": HOSTILE})
    rows = table(path)
    assert rows[0]["prediction"] == HOSTILE.replace("\ud800", "?") and rows[1]["prediction"] == ""
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("model", ["", "../m", "a/b", "m\n", "-m"])
def test_a_name_that_is_no_name_is_refused(tmp_path, model):
    with pytest.raises(UserError, match="no name of a model"):
        write_predictions(tmp_path, model, "pope", [], {})


def test_wrong_exports_are_refused(tmp_path, monkeypatch):
    item = Item("1", "q", "Yes")
    with pytest.raises(UserError, match="an answer to '2'"):
        write_predictions(tmp_path, "m", "pope", [item], {"2": "x"})
    with pytest.raises(UserError, match="tsv or xlsx, not 'csv'"):
        write_predictions(tmp_path, "m", "pope", [item], {}, "csv")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match="needs openpyxl"):
        write_predictions(tmp_path, "m", "pope", [item], {}, "xlsx")
    assert not list(tmp_path.iterdir())


def test_a_sheet_holds_texts_and_no_formulas(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    items = [Item("17", "q", "Yes", category="random")]
    path = write_predictions(tmp_path, "m", "pope", items, {"17": HOSTILE + "x" * 40_000}, "xlsx")
    header, row = openpyxl.load_workbook(path).active.iter_rows()
    values = {name.value: cell for name, cell in zip(header, row, strict=True)}
    assert values["index"].value == 17
    assert values["prediction"].data_type == "s"
    text = values["prediction"].value
    assert text.startswith('=1+1\t"quoted"')
    assert len(text) == 32767 - 1  # "\r\n" is one character in XML


def test_official_predictions_of_mmvet(tmp_path):
    items = [Item("v1_0", "q", "a"), Item("7", "q", "a")]
    write_official_predictions(tmp_path / "out.json", items, {"v1_0": HOSTILE})
    assert json.loads((tmp_path / "out.json").read_text()) == {"v1_0": HOSTILE, "v1_7": ""}
    with pytest.raises(UserError, match="answer to 'x'"):
        write_official_predictions(tmp_path / "out.json", items, {"x": "y"})


def test_the_grading_prompt_ends_where_the_grade_belongs():
    prompt = grading_prompt("What is\nx | y?", "-1<AND>-5", "x = -1 |\n1.0")
    *_, last = prompt.split("\n")
    assert last == "What is x / y? | -1 <AND> -5 | x = -1 / 1.0 |"
    assert prompt.count(" | 0.5") == 1


def test_a_grade_is_asked_for_until_it_is_one():
    said = iter(["I would say a lot", "7", "nan", "0.4 because", "1.0"])
    asked = []

    def complete(prompt, number):
        asked.append(number)
        return next(said)

    assert grader(complete)("q", "a", "b") == 0.4 and asked == [0, 1, 2, 3]
    assert grader(lambda prompt, number: "no", tries=2)("q", "a", "b") is None
    assert read_grade("| 0.9 |") == 0.9 and read_grade("-0.1") is None and read_grade("") is None
