"""Benchmarks that a user brings: made from a config, run on any predictor, shown in the report."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from janus_jax import emoji, evaluation
from janus_jax.emoji.benchmarks import JudgeCeiling, MiniGenEval, Questions
from janus_jax.errors import UserError
from janus_jax.evaluation import (
    BENCHMARKS,
    DRAW,
    Benchmark,
    ModelPredictor,
    Tuning,
    build_benchmarks,
    choose_cfg_weight,
    normalize_answer,
    run_benchmarks,
)
from janus_jax.registry import Registry
from janus_jax.run.report import write_report


class Brightness(Benchmark):
    """Whether pictures of light things are bright: a benchmark that knows nothing of emoji."""

    name = "test/brightness"
    needs = DRAW

    def __init__(self, prompts=2, cfg_weights=()):
        self.prompts, self.cfg_weights = prompts, cfg_weights

    def run(self, predictor):
        pictures = predictor.draw([f"snow {i}" for i in range(self.prompts)])
        bright = float(np.mean(pictures) / 255)
        return {"brightness": {"snow": {"share": bright, "count": self.prompts}}}

    def tuning(self):
        return Tuning(self, self.cfg_weights, lambda table: -abs(table["snow"]["share"] - 0.5))


class Model:
    """Draws pictures as bright as the guidance is strong."""

    def generate_arrays(self, prompts, cfg_weight=1.0, temperature=1.0):
        assert isinstance(prompts, list)
        return np.full((len(prompts), 4, 4, 3), round(51 * cfg_weight), np.uint8)

    def answer_batch(self, images, questions, max_new_tokens=512):
        return [f"{question} {max_new_tokens}" for question in questions]


@pytest.fixture
def registry(monkeypatch):
    mine = Registry("benchmark", {"test/brightness": f"{__name__}:Brightness"})
    monkeypatch.setattr(evaluation.registry, "BENCHMARKS", mine)
    return mine


def test_a_users_benchmark_is_made_by_name_and_run(registry):
    registry.register("test/other", Brightness)
    one, other = build_benchmarks(
        [{"name": "test/brightness", "prompts": 3}, {"name": "test/other"}]
    )
    predictor = ModelPredictor(Model(), drawing={"cfg_weight": 5.0})
    assert run_benchmarks([one], predictor) == {"brightness": {"snow": {"share": 1.0, "count": 3}}}
    # What the caller says comes before the predictor's own settings.
    assert predictor.draw(["x"], cfg_weight=0.0).max() == 0
    assert predictor.drawing_with(cfg_weight=1.0).draw(["x"]).max() == 51
    with pytest.raises(UserError, match="another one has a table 'brightness'"):
        run_benchmarks([one, other], predictor)
    with pytest.raises(UserError, match="no image tokenizer"):
        predictor.reconstruct(np.zeros((1, 4, 4, 3), np.uint8))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"name": "test/brightnes"}], r"x\[0\]: no benchmark .*Did you mean 'test/brightness'"),
        (
            [{"name": "test/brightness"}, {"name": "test/brightness", "promts": 3}],
            r"x\[1\]: no opt",
        ),
        ([3], r"x\[0\] must be a dict"),
        ([{}], r"x\[0\] must be a dict"),
        ("test/brightness", "must be a tuple of dicts"),
        ({"name": "test/brightness"}, "must be a tuple of dicts"),
        (None, "must be a tuple of dicts"),
    ],
)
def test_a_bad_entry_is_one_line(registry, listed, message):
    with pytest.raises(UserError, match=message) as error:
        build_benchmarks(listed, "x")
    assert "\n" not in str(error.value)


def test_guidance_is_the_weight_that_a_benchmark_likes_best():
    predictor = ModelPredictor(Model())
    tuning = Brightness(cfg_weights=(1.0, 2.0, 3.0, 5.0)).tuning()
    weight, tables = choose_cfg_weight(tuning, lambda w: predictor.drawing_with(cfg_weight=w))
    assert weight == 2.0 and list(tables) == ["1.0", "2.0", "3.0", "5.0"]  # the first of equals
    assert tables["5.0"]["snow"]["share"] == 1.0


def test_built_in_benchmarks_know_what_they_need_and_how_to_be_shorter():
    whole = (
        MiniGenEval(prompts=9, cfg_weights=(1.0, 2.0)),
        Questions(questions=9),
        JudgeCeiling(9),
    )
    assert [BENCHMARKS.get(b.name) for b in whole] == [type(b) for b in whole]
    drawn, asked, judged = (b.shortened() for b in whole)
    assert (drawn.prompts, drawn.held_out) == (4, False)
    assert (asked.questions, asked.held_out) == (4, False)
    assert judged == whole[2]
    assert MiniGenEval(prompts=1).shortened().prompts == 2
    tuned = whole[0].tuning()
    assert tuned.benchmark.seed != whole[0].seed and tuned.benchmark.prompts == 4
    assert MiniGenEval(cfg_weights=(2.0,)).tuning() is None
    assert not any(b.scored for b in (MiniGenEval(0), Questions(0), JudgeCeiling(0)))
    assert all(b.scored for b in whole)


def test_previews_show_what_a_stage_learns_to_draw():
    drawn = {"kinds": {"colors": 1.0, "counting": 0.0, "dense": 3.0}}
    asked = SimpleNamespace(task="und", options={"kinds": {"position": 1.0}})
    sources = (asked, SimpleNamespace(task="gen", options=drawn))
    benchmark = MiniGenEval(0)
    prompts = benchmark.preview_prompts(SimpleNamespace(sources=sources))
    assert (
        len(prompts) == 24
        and prompts[0] == emoji.make_prompts(emoji.World(), "colors", 1, seed=1)[0].text
    )
    assert len(set(prompts) & set(benchmark.preview_prompts(object()))) == 4
    assert JudgeCeiling(0).preview_pictures().shape == (24, 48, 48, 3)


def test_the_old_place_of_a_name_still_has_it_and_says_where_it_went():
    with pytest.warns(DeprecationWarning, match=r"is janus_jax\.emoji\.mini_geneval now"):
        assert evaluation.mini_geneval is emoji.mini_geneval
    with pytest.warns(DeprecationWarning, match="normalize_answer now"):
        assert evaluation.plain is normalize_answer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(AttributeError, match="has no attribute 'mini_genevl'"):
            _ = evaluation.mini_genevl


# In the report


def write_run(run_dir, entry, benchmarks):
    config = {"name": "small", "eval": {"benchmarks": benchmarks}, "stages": {}}
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "scores.json").write_text(json.dumps({"stage3": entry}))


def test_a_table_that_no_report_knows_is_shown_whole(tmp_path, capsys):
    table = {"snow": {"share": 0.5, "count": 16}, "night": {"share": None, "dark|ness": 1.0}}
    entry = {"brightness": table, "groups": {"a": table, "b": {"mean": {"share": 0.25}}}}
    write_run(tmp_path, entry, [{"name": "test/brightness"}])
    text = write_report(tmp_path).read_text()
    assert "## brightness\n\nAfter stage3." in text and "up to 0.12" in text
    assert "|  | share | count | dark\\|ness |" in text
    assert "| snow | 0.50 | 16.00 | - |" in text and "| night | - | - | 1.00 |" in text
    assert "## groups" in text and "b:\n\n|  | share |" in text and "| mean | 0.25 |" in text
    # No column of benchmarks that this run does not have.
    assert "mini-GenEval" not in text and "questions, mean" not in text
    assert capsys.readouterr().err == ""


def test_a_benchmark_that_cannot_be_imported_costs_no_report(tmp_path, capsys, monkeypatch):
    gone = {"a/gone": "janus_jax.emoji.report:missing", "b/gone": "no_such_module:Anything"}
    places = dict(BENCHMARKS._places) | gone
    monkeypatch.setattr(BENCHMARKS, "_places", places)
    write_run(tmp_path, {"questions": {"what": {"accuracy": 0.5}}}, [{"name": "emoji/questions"}])
    text = write_report(tmp_path).read_text()
    assert "## Understanding: questions" in text and "questions, mean" in text
    assert "mini-GenEval" not in text
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 2
    assert all(line.startswith("warning: not in the report: benchmark ") for line in warned)
