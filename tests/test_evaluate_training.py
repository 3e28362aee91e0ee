"""Published benchmarks as entries of a config: built early, asked of a run's predictor, named by what they are."""

import json

import numpy as np
import pytest
from benchmark_files import write_layout
from chat_server import chat_server
from dummies_answering import Answerer

from janus_jax.errors import RunError, UserError
from janus_jax.evaluation import BENCHMARKS, build_benchmarks, run_benchmarks
from janus_jax.evaluation.benchmark import ANSWER, DRAW
from janus_jax.evaluation.tables import is_table
from janus_jax.run.scores import sound_scores

SEVEN = ("pope", "mme", "mmbench", "seed", "gqa", "mmmu", "mmvet")


class Model(Answerer):
    def draw(self, prompts, **settings):
        self.settings.append(settings)
        return np.zeros((len(prompts), 4, 4, 3), np.uint8)


def entry(tmp_path, benchmark, **options):
    (path,), _ = write_layout(benchmark, "tsv", tmp_path / benchmark)
    return {"name": f"understanding/{benchmark}", "path": path, **options}


@pytest.fixture
def judge(tmp_path, monkeypatch):
    (tmp_path / "some_judge.py").write_text("def ask(prompt, number):\n    return '0.25'\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "some_judge:ask"


def test_all_seven_are_asked_at_once_and_give_tables_of_their_own(tmp_path, judge):
    entries = [entry(tmp_path, name, judge=judge) for name in SEVEN]
    benchmarks = build_benchmarks(entries)
    assert all(b.needs == ANSWER and b.scored for b in benchmarks)
    predictor = Model()
    scores = run_benchmarks(benchmarks, predictor)
    assert len(predictor.asked) == 81 and {t for t, _ in predictor.templates} == {"deepseek"}
    assert all(is_table(table) for table in scores.values())
    assert {name.split(",")[0] for name in scores} >= set(SEVEN)
    assert scores["mmvet, protocol paper"]["total"] == {"score": 25.0, "questions": 12}
    json.dumps(scores)
    assert sound_scores({"stage3": scores})[1] == []  # what a run accepts in its scores.json


def test_a_judge_that_is_gone_ends_nothing(tmp_path, capsys):
    with chat_server(lambda body, number: (404, b"", {})) as (url, _):
        address = f"{url}#gone"
        entries = [entry(tmp_path, name, judge=address) for name in ("mmvet", "pope")]
        scores = run_benchmarks(build_benchmarks(entries), Model())
    assert scores["mmvet, not graded, protocol paper"] == {
        "total": {"score": None, "questions": 12}
    }
    assert scores["pope, protocol paper, without its judge"]["overall"]["questions"] == 12
    assert sound_scores({"stage3": scores})[1] == []
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "warning: understanding/mmvet is not graded: the judge gone at 127.0.0.1"
    )
    assert second.startswith("warning: understanding/pope is scored without")


def test_a_judge_that_fails_in_part_is_in_the_name(tmp_path, monkeypatch, capsys):
    code = (
        "said = []\n"
        "def ask(prompt, number):\n"
        "    said.append(prompt)\n"
        "    return '0.25' if len(said) < 9 else 1 / 0\n"
    )
    (tmp_path / "part_judge.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (one,) = build_benchmarks([entry(tmp_path, "mmvet", judge="part_judge:ask")])
    scores = one.run(Model())
    assert scores["mmvet, protocol paper, 4 not judged"]["total"] == {"score": 25.0, "questions": 8}
    assert capsys.readouterr().err.count("ZeroDivisionError") == 1


def test_a_part_and_a_protocol_are_in_the_names_of_the_tables(tmp_path):
    (part,) = build_benchmarks([entry(tmp_path, "pope", limit=5, protocol="lmms-eval")])
    assert list(part.run(Model())) == ["pope, protocol lmms-eval, 5 of 12"]
    assert part.shortened().limit == 5
    (whole,) = build_benchmarks([entry(tmp_path, "mme")])
    assert whole.limit is None and whole.shortened().limit == 500


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"path": "/no/such.tsv"}, "/no/such.tsv"),
        ({"path": ""}, "give path"),
        ({"protocol": "papre"}, "Did you mean 'paper'?"),
        ({"limit": 0}, "limit"),
        ({"judge": "self"}, "give ADDRESS#MODEL of a server"),
        ({"limt": 5}, "Did you mean 'limit'?"),
        ({"batch_size": 0}, "batch_size"),
        ({"name": "understanding/mme"}, "is no mme"),
        ({"name": "understanding/mmvet"}, "give judge"),
        ({"name": "understanding/popr"}, "Did you mean 'understanding/pope'?"),
    ],
)
def test_a_bad_entry_is_refused_before_the_training(tmp_path, change, part):
    with pytest.raises(UserError, match=r"config\.eval\.benchmarks\[0\]") as error:
        build_benchmarks([entry(tmp_path, "pope") | change])
    assert part in str(error.value)


def test_forgotten_pictures_are_told_before_the_training(tmp_path):
    paths, _ = write_layout("pope", "json", tmp_path / "pope")
    with pytest.raises(UserError, match=r"no picture can be read .* with images"):
        build_benchmarks([{"name": "understanding/pope", "path": paths}])


def test_processes_that_cannot_read_the_same_pictures_end(tmp_path, monkeypatch):
    from janus_jax.evaluation import while_training

    monkeypatch.setattr("janus_jax.parallel.first_only", lambda work: ["random/1"])
    with pytest.raises(RunError, match="random/1 can be read by one process"):
        while_training._must_be_those_of_the_first([])
    while_training._must_be_those_of_the_first(["random/1"])


def test_geneval_is_drawn_into_a_new_folder_each_time(tmp_path, monkeypatch):
    out = tmp_path / "drawn"
    fields = {"name": "generation/geneval-draw", "out": str(out), "limit": 7, "samples": 2}
    (benchmark,) = build_benchmarks([fields])
    predictor = Model()
    assert benchmark.needs == DRAW
    assert benchmark.run(predictor) == {"geneval, drawn into 000": {"all": {"pictures": 14}}}
    assert benchmark.run(predictor) == {"geneval, drawn into 001": {"all": {"pictures": 14}}}
    assert len(list(out.glob("001/*/samples/*.png"))) == 14
    assert predictor.settings[0]["cfg_weight"] == 5.0
    (tmp_path / "some_detector.py").write_text(
        "class Finder:\n"
        "    name = 'finder'\n"
        "    def __call__(self, picture):\n"
        "        return {'bench': [[0, 0, 3, 3, 0.9]]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (judged,) = build_benchmarks([fields | {"detector": "some_detector:Finder"}])
    ((name, table),) = judged.run(predictor).items()
    assert name.startswith("geneval, judged by finder (7 of 553") and table["mean"]["count"] == 14


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"limit": 0}, "1 or more"),
        ({"samples": 0}, "samples"),
        ({"out": ""}, "give out"),
        ({"out": "s3://bucket/x"}, "object stores"),
        ({"out": __file__}, "directory"),
    ],
)
def test_a_bad_drawing_is_refused_before_the_training(tmp_path, change, part):
    fields = {"name": "generation/geneval-draw", "out": str(tmp_path)}
    with pytest.raises(UserError, match=part):
        build_benchmarks([fields | change])


def test_the_entries_are_in_the_registry():
    for name in SEVEN:
        assert BENCHMARKS.get(f"understanding/{name}").name == f"understanding/{name}"
