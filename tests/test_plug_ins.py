"""What one registers of one's own: what is wrong with it is one line, and it is used as what is built in."""

import numpy as np
import pytest

from janus_jax.data import SOURCES, make_source
from janus_jax.errors import UserError
from janus_jax.evaluation import ANSWER, DRAW, Benchmark, run_benchmarks
from janus_jax.evaluation.registry import build_benchmark
from janus_jax.registry import Registry
from janus_jax.run.scoring import abilities
from janus_jax.run.starting import _first_difference
from janus_jax.training import OBJECTIVES, Stage
from janus_jax.training.objectives.janus import JanusObjective

FIELDS = dict(
    name="s", trainable=("decoder",), steps=1, learning_rate=1e-3, warmup_steps=0, batch_size=1
)


@pytest.fixture
def registry():
    return Registry("source")


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        (5, "a:b", "name of a source must be text, not 5"),
        ("", "a:b", "name of a source must be text"),
        ("mine", None, "source 'mine' must be a class, a function or 'module:attribute', not None"),
        ("mine", "my_package.Mine", "'module:attribute', not 'my_package.Mine'"),
    ],
)
def test_a_place_of_another_form_is_refused_at_once(registry, name, place, message):
    with pytest.raises(UserError, match=message):
        registry.register(name, place)
    assert registry.names == ()


@pytest.mark.parametrize("place", ["no_such_module:X", "janus_jax.registry:Nothing"])
def test_what_cannot_be_imported_is_named_with_its_place(registry, place):
    registry.register("mine", place)
    with pytest.raises(UserError, match=f"source 'mine' cannot be imported from {place}: "):
        registry.get("mine")


@pytest.mark.parametrize("name", [5, None, []])
def test_a_name_that_is_no_text_is_one_line(registry, name):
    with pytest.raises(UserError, match="no source "):
        registry.get(name)
    with pytest.raises(UserError, match=r"^config\.x: no source "):
        make_source(name, "und", {}, where="config.x")
    with pytest.raises(UserError, match=r"^config\.x: no benchmark "):
        build_benchmark({"name": name}, "config.x")


def test_a_class_that_is_defined_again_takes_its_place(registry):
    def define():
        class Mine:
            pass

        return Mine

    first, second = define(), define()
    registry.register("mine", first)
    registry.register("mine", second)
    assert registry.get("mine") is second
    for other in (lambda task: None, "somewhere:else"):
        with pytest.raises(UserError, match="a source named 'mine' already"):
            registry.register("mine", other)
    registry.register("short", lambda task: 1)
    with pytest.raises(UserError, match="already"):
        registry.register("short", lambda task: 2)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda task, seed, path: [1], "missing a required argument: 'path'"),
        (lambda task: [1], "unexpected keyword argument 'seed'"),
        (lambda task, seed: iter([1]), "must have __len__ and __getitem__; list_iterator has not"),
    ],
)
def test_a_source_that_cannot_be_made_is_one_line(monkeypatch, factory, message):
    monkeypatch.setattr(SOURCES, "_places", {"mine": factory})
    with pytest.raises(UserError, match=rf"^config\.x: source 'mine'.*{message}"):
        make_source("mine", "und", {}, where="config.x")


def test_a_world_that_is_no_dict_is_one_line():
    with pytest.raises(UserError, match="world must be a dict with image_size"):
        make_source("emoji", "und", {"world": 3})


class Returns(Benchmark):
    name, needs = "mine", DRAW

    def __init__(self, found):
        self.found = found

    def run(self, predictor):
        return self.found


@pytest.mark.parametrize("found", [None, 0.5, {"mine": {"red": 0.5}}, {"t": {"r": {"c": "x"}}}])
def test_a_benchmark_that_returns_no_tables_is_one_line(found):
    with pytest.raises(UserError, match=r"benchmark mine: run must return \{table: \{row") as error:
        run_benchmarks([Returns(found)], None)
    assert "\n" not in str(error.value)


def test_scores_are_numbers_that_files_can_hold():
    found = {"t": {"r": {"c": np.float32(0.5), "n": np.int64(3), "none": None}}}
    scores = run_benchmarks([Returns(found)], None)["t"]["r"]
    assert scores == {"c": 0.5, "n": 3, "none": None}
    assert [type(v) for v in scores.values()] == [float, int, type(None)]


def test_a_stage_with_an_objective_of_ones_own_is_scored(monkeypatch):
    monkeypatch.setattr(OBJECTIVES, "_places", OBJECTIVES._places | {"mine": JanusObjective})
    stage = Stage(**FIELDS, objective="mine", ratio=(1.0, 0.0, 1.0))
    assert stage.packed and abilities(stage) == {ANSWER, DRAW}
    with pytest.raises(UserError, match="not all zero"):
        Stage(**FIELDS, objective="mine", ratio=(0.0, 0.0, 0.0))
    assert not Stage(**FIELDS, objective="siglip").packed


def test_two_architectures_of_one_name_are_told_apart():
    have = {"name": "a", "decoder": {"layers": 6, "width": 64}}
    need = {"name": "a", "decoder": {"layers": 6, "width": 32}}
    assert _first_difference(have, need) == "decoder.width is 64, not 32"
    assert _first_difference(have, have | {"name": "b"}) == "name is a, not b"
