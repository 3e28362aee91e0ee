"""The engine of the server with all of its programs: rare settings, and no compiler once it is ready."""

import jax
import numpy as np
import pytest
from dummies_model import GUIDED, LONGER, make_janus, picture
from serving_engine_client import ask, pictures, text, user

from janus_jax.inference import Janus
from janus_jax.parallel import make_mesh
from janus_jax.serving.engine import ServingEngine
from janus_jax.serving.jobs import ChatJob, DrawJob, Message

pytestmark = pytest.mark.slow
SEEN = np.asarray(picture(0))
SIZES = dict(longest_prompt=30, context=130, most_pictures=1)


@pytest.fixture(scope="module")
def janus():
    return make_janus(LONGER, fields=GUIDED)


@pytest.fixture(scope="module")
def engine(janus):
    made = ServingEngine(janus, sizes=[2], **SIZES)
    assert not made.ready
    assert made.warm_up() > 10
    assert made.ready
    yield made
    made.close()


class Compiled(list):
    """The programs that XLA compiles while it is entered."""

    def __enter__(self):
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error):
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, name, seconds, **_):
        if name.endswith("backend_compile_duration"):
            self.append(name)


def use_everything(engine):
    for settings in ({}, dict(top_p=0.5), dict(cfg_weight=1), dict(cfg_weight=1, top_k=2)):
        ask(engine, DrawJob("a cat", previews=2, **settings), DrawJob("a dog " * 6, **settings))
    for shown in ([], [SEEN]):
        for top_p in (None, 0.5):
            hot = dict(temperature=3.0, top_p=top_p, max_tokens=40)
            question = user("what ?", *shown)
            ask(engine, ChatJob((question,), **hot), ChatJob((question,)))


def test_nothing_is_compiled_once_it_is_ready(engine):
    with Compiled() as compiled:
        use_everything(engine)
        jax.jit(lambda x: x + 7)(np.ones(3))
    assert len(compiled) == 1, "only what the last line compiles"


@pytest.mark.multidevice
@pytest.mark.parametrize("axes", [dict(data=2), dict(tensor=2)], ids=str)
def test_nor_on_a_mesh_where_the_same_is_drawn(janus, axes):
    mesh = make_mesh(**{"data": 1} | axes, devices=jax.devices()[:2])
    sharded = make_janus(LONGER, fields=GUIDED, mesh=mesh)
    engine = ServingEngine(sharded, sizes=[1, 2], **SIZES)
    assert engine.warm_up() > 10
    with Compiled() as compiled:
        use_everything(engine)
    assert not compiled
    (events,) = ask(engine, DrawJob("a red cat", n=3, seed=2))
    np.testing.assert_array_equal(pictures(events), janus.generate_arrays("a red cat", 3, 2))
    job = ChatJob((user("what is it ?", SEEN),), max_tokens=20)
    (events,) = ask(engine, job)
    assert text(events) == janus.answer(SEEN, "what is it ?", max_new_tokens=20)
    engine.close()


RARE = [dict(temperature=0), dict(cfg_weight=1), dict(top_k=3, temperature=2.0), dict(top_p=0.5)]


@pytest.mark.parametrize("settings", RARE, ids=str)
def test_pictures_of_other_programs(janus, engine, settings):
    want = janus.generate_arrays("a green car", 1, 4, **settings)
    (alone,) = ask(engine, DrawJob("a green car", seed=4, **settings))
    beside = DrawJob("a dog", top_p=0.9, cfg_weight=settings.get("cfg_weight"))
    both = ask(engine, DrawJob("a green car", seed=4, **settings), beside)
    np.testing.assert_array_equal(pictures(alone), want)
    np.testing.assert_array_equal(pictures(both[0]), want)


@pytest.mark.parametrize("settings", [{}, dict(top_p=0.8)], ids=str)
def test_a_sampled_answer_is_that_of_a_conversation(janus, engine, settings):
    talk = janus.conversation(temperature=0.9, seed=5, **settings)
    talk.add("what is it ?", "a cat")
    want = "".join(talk.ask("on the left ?", max_new_tokens=30))
    turns = user("what is it ?"), Message("assistant", "a cat"), user("on the left ?")
    job = ChatJob(turns, max_tokens=30, temperature=0.9, seed=5, **settings)
    (alone,) = ask(engine, job)
    both = ask(engine, job, ChatJob((user("a dog"),), top_p=0.5, temperature=1.0))
    assert text(alone) == text(both[0]) == want


def test_the_smoke_model_is_served_as_it_draws_and_answers(smoke_model):
    janus = Janus.load(smoke_model)
    engine = ServingEngine(janus, sizes=[1, 4], longest_prompt=64)
    prompts = "a red car", "a panda", "a blue dog above a red car"
    drawn = ask(engine, *(DrawJob(prompt, seed=seed) for seed, prompt in enumerate(prompts)))
    for seed, (prompt, events) in enumerate(zip(prompts, drawn, strict=True)):
        np.testing.assert_array_equal(pictures(events), janus.generate_arrays(prompt, 1, seed))
    side = np.asarray(picture(1))
    answered = ask(engine, *(ChatJob((user(prompt, side),), max_tokens=40) for prompt in prompts))
    for prompt, events in zip(prompts, answered, strict=True):
        assert text(events) == janus.answer(side, prompt, max_new_tokens=40)
    engine.close()
