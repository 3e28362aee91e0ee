"""The model in lmms-eval: its answers are those of `Janus`, whatever is asked in which order."""

import copy
import importlib
import importlib.metadata
import importlib.util
import sys
import tomllib
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dummies_model import LONGER, make_janus, picture

from janus_jax.errors import UserError

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parent.parent
REAL = importlib.util.find_spec("lmms_eval") is not None
DOCUMENTS = [{"pictures": [picture(i)] if i else [], "says": "yes"} for i in range(4)]
QUESTIONS = ["what is it ?", "is a cat on the left of a car ?", "red ? yes no", "cat dog"]


class StubLmms:
    """What the adapter needs of lmms-eval's base class."""

    is_simple = True

    def __init__(self):
        self.task_dict, self.rank, self.cached = {}, 0, []
        self.cache_hook = SimpleNamespace(add_partial=lambda *given: self.cached.append(given))


@pytest.fixture(scope="module")
def loaded():
    """A model with a system prompt of its own."""
    return make_janus(
        LONGER, fields=dict(system_prompt="of the dog ."), max_batch=2
    )  # few shapes: compiling takes longest here


@pytest.fixture(scope="module")
def janus(loaded):
    """The same without a system prompt, as lmms-eval asks it; compiled functions are shared."""
    janus = copy.copy(loaded)
    janus.processor = make_janus(LONGER).processor
    return janus


@pytest.fixture
def make_model(loaded, monkeypatch):
    """Makes the model on the stub; its `given` is what it was loaded with."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = StubLmms
    sys.modules.pop("janus_jax.harness.lmms_eval", None)
    module = importlib.import_module("janus_jax.harness.lmms_eval")
    given = {}

    def load(place, **options):
        given.update(options, place=place)
        return copy.copy(loaded)

    monkeypatch.setattr(module.Janus, "load", load)

    def make(batch_size=2, **options):
        model = on_task(module.JanusJax("some/place", batch_size, **options))
        model.given = given
        return model

    yield make
    sys.modules.pop("janus_jax.harness.lmms_eval")


def on_task(model):
    model.task_dict = {"task": {"test": DOCUMENTS}}
    return model


def request(number, settings, text=None):
    """A request of lmms-eval about document `number`."""
    visuals = lambda document: document["pictures"]
    arguments = (text or QUESTIONS[number], settings, visuals, number, "task", "test")
    return SimpleNamespace(args=arguments)


def answers(janus, numbers, **settings):
    shown = [DOCUMENTS[n]["pictures"] or None for n in numbers]
    return janus.answer_batch(shown, [QUESTIONS[n] for n in numbers], **settings)


GREEDY = {"max_new_tokens": 8, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}


def test_answers_are_those_of_janus_in_the_order_of_the_requests(make_model, janus):
    model = make_model(dtype="float32")
    assert model.given["place"] == "some/place" and model.given["dtype"] == "float32"
    assert model.given["max_batch"] == 2
    found = model.generate_until([request(n, dict(GREEDY)) for n in range(4)])
    assert found == answers(janus, range(4), max_new_tokens=8)
    assert len(set(found)) > 2 and len(model.cached) == 4
    assert {given[1][0]: given[2] for given in model.cached} == dict(
        zip(QUESTIONS, found, strict=True)
    )


def test_requests_of_different_settings_are_answered_by_their_own(make_model, janus):
    pair = [1, 2]
    whole = answers(janus, pair, max_new_tokens=8)
    stop = whole[0].split()[2]
    settings = [
        GREEDY | {"until": ["\n\n"]},
        GREEDY | {"temperature": 0.2},  # MM-Vet's, which says that nothing is sampled
        GREEDY | {"max_new_tokens": 2},
        GREEDY | {"until": stop},
        GREEDY | {"temperature": 0.9, "do_sample": True, "top_p": 0.7},
    ]
    found = make_model().generate_until([request(n, one) for n in pair for one in settings])
    first, second = found[:5], found[5:]
    assert [first[:2], second[:2]] == [[whole[0]] * 2, [whole[1]] * 2]
    assert first[2] == " ".join(whole[0].split()[:2]) and second[2] != whole[1]
    assert first[3] == whole[0].split(stop)[0].strip()
    sampled = answers(janus, pair, max_new_tokens=8, temperature=0.9, top_p=0.7)
    assert [first[4], second[4]] == sampled != whole


def test_several_pictures_and_texts_that_look_like_ours(make_model, janus):
    pictures = [picture(7), None, picture(8)]
    asked = SimpleNamespace(
        args=("what ?<image_placeholder> red", GREEDY, lambda d: pictures, 0, "task", "test")
    )
    (found,) = make_model().generate_until([asked])
    shown = [pictures[0], pictures[2]]
    assert found == janus.answer(shown, "what ? red", max_new_tokens=8)


def test_a_system_prompt_can_be_given(make_model, janus):
    found = make_model(system_prompt="a red cat .").generate_until([request(1, GREEDY)])
    assert found != answers(janus, [1], max_new_tokens=8)


def test_likelihoods_are_those_of_janus(make_model, janus):
    visuals = lambda document: document["pictures"]
    asked = [
        (QUESTIONS[1], " yes .", visuals, 1, "task", "test"),
        (QUESTIONS[1], " no", visuals, 1, "task", "test"),
        (QUESTIONS[1], lambda document: document["says"], visuals, 1, "task", "test"),
        ("what ?", " yes ."),
    ]
    model = make_model()
    found = model.loglikelihood([SimpleNamespace(args=one) for one in asked])
    scores = janus.score_answers(
        [*[DOCUMENTS[1]["pictures"]] * 3, None],
        [*[QUESTIONS[1]] * 3, "what ?"],
        ["yes .", "no", "yes", "yes ."],
    )
    np.testing.assert_allclose([p for p, _ in found], [s[:-1].sum() for s in scores], rtol=1e-4)
    assert not any(is_greedy for _, is_greedy in found)

    replies = [[" yes .", "no way"], ["yes", "yes . yes"]]

    def says(pictures, texts, max_new_tokens, temperature):
        assert temperature == 0.0 and max_new_tokens in (2, 3)  # the longest answer, and its end
        return replies.pop(0)

    model._janus.answer_batch = says
    found = model.loglikelihood([SimpleNamespace(args=one) for one in asked])
    assert [is_greedy for _, is_greedy in found] == [True, False, True, False]


@pytest.mark.parametrize(
    ("settings", "visuals", "message"),
    [
        (GREEDY | {"num_beams": 4}, [], "num_beams=4"),
        (GREEDY | {"max_new_tokens": "many"}, [], "max_new_tokens must be a whole number"),
        (GREEDY, ["a/film.mp4"], "task shows a video; janus_jax answers"),
        (GREEDY, [{"array": 1}], "task shows a dict"),
    ],
)
def test_what_cannot_be_asked_is_one_line(make_model, settings, visuals, message):
    asked = SimpleNamespace(args=("what ?", settings, lambda d: visuals, 0, "task", "test"))
    with pytest.raises(UserError, match=message):
        make_model().generate_until([asked])


def test_several_rounds_are_refused(make_model):
    with pytest.raises(NotImplementedError, match="one question at a time"):
        make_model().generate_until_multi_round([])


@pytest.mark.parametrize("batch_size", ["many", 0, "-1"])
def test_a_bad_batch_size_is_refused_before_the_model_is_read(make_model, batch_size):
    with pytest.raises(UserError, match="batch_size must be"):
        make_model(batch_size=batch_size)


def test_the_entry_point_of_this_package_names_the_class(make_model, monkeypatch):
    for name in ("lmms_eval.models", "lmms_eval.models.registry_v2"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = lambda model_id, **paths: (
        model_id,
        paths,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (place,) = project["entry-points"]["lmms_eval.models"].values()
    module, _, function = place.partition(":")
    model_id, paths = getattr(importlib.import_module(module), function)()
    assert model_id == "janus_jax" and set(paths) == {"simple_class_path"}
    module, _, name = paths["simple_class_path"].rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), StubLmms)


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.skipif(not REAL, reason="needs lmms-eval")
def test_the_registry_of_lmms_eval_finds_the_model(loaded, janus, tmp_path):
    loaded.save(tmp_path / "model")
    from lmms_eval.models import get_model
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from janus_jax.harness import lmms_eval_model

    registry = ModelRegistryV2()
    registry.register_manifest(lmms_eval_model())
    assert registry.resolve("janus_jax").model_type == "simple"
    model_class = registry.get_model_class("janus_jax")
    if any(
        e.name == "janus_jax" for e in importlib.metadata.entry_points(group="lmms_eval.models")
    ):
        assert get_model("janus_jax") is model_class
    options = {"batch_size": "2", "max_batch_size": None, "device": None}
    model = on_task(model_class.create_from_arg_string(f"pretrained={tmp_path / 'model'}", options))
    found = model.generate_until([request(n, dict(GREEDY)) for n in range(4)])
    assert found == answers(janus, range(4), max_new_tokens=8)
    model.clean()
