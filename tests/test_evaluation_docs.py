"""What docs/evaluation.md says in numbers is what the package has."""

import re
from pathlib import Path

import pytest

from janus_jax.evaluation.published import MODELS, PUBLISHED, published
from janus_jax.evaluation.understanding import BENCHMARK_FACTS, PROTOCOLS

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "evaluation.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.splitlines()
    if line.startswith("|")
]


@pytest.mark.parametrize("model", MODELS)
def test_the_tables_of_the_paper(model):
    third, others = (row[1:] for row in ROWS if row[0] == model and len(row) in (8, 9))
    of = {(p.benchmark, p.metric): p.value for p in published(model, of_paper=True)}
    assert [float(cell) for cell in third] == [
        v for (b, _), v in of.items() if b in BENCHMARK_FACTS
    ]
    drawn = [v for (b, metric), v in of.items() if b == "geneval"] + [of["dpg", "overall"]]
    assert [float(cell) for cell in others] == drawn


def test_what_others_measured():
    start = PAGE.index("What others measured")
    table = PAGE[start : PAGE.index("## Drawing")]
    numbers = [
        float(n)
        for line in re.findall(r"^\|.*", table, re.MULTILINE)[2:]
        for n in re.findall(r"\d+(?:\.\d+)?", line.split("|")[3])
    ]
    known = {round(p.value, 1) for p in PUBLISHED if not p.of_paper} | {
        p.value for p in PUBLISHED if not p.of_paper
    }
    assert len(numbers) >= 9 and set(numbers) <= known


def test_files_and_protocols_are_named():
    files = {
        row[0].strip("`"): row[1].strip("`") for row in ROWS if row[0].strip("`") in BENCHMARK_FACTS
    }
    assert files == {name: f"{facts.vlmevalkit}.tsv" for name, facts in BENCHMARK_FACTS.items()}
    assert all(f"`{name}`" in PAGE for name in PROTOCOLS)


def test_links_and_files_exist():
    root = Path(__file__).resolve().parent.parent
    for name in re.findall(r"\]\(([\w/.]+)\)", PAGE):
        assert (root / "docs" / name).is_file(), name
    for name in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", PAGE):
        assert (root / name).exists(), name
