"""Fixed prompts and questions that are looked at while a stage trains: what they are, and when they are drawn."""

import json
import signal

import jax
import numpy as np
import pytest
from PIL import Image
from test_held_out_watch import Losses, stage
from test_loop import run_toy, toy_step

from janus_jax.adapters import add_lora, plain
from janus_jax.adapters.lora import LoraOptions
from janus_jax.configs import finetune
from janus_jax.errors import UserError
from janus_jax.models import init_params
from janus_jax.run import build
from janus_jax.run.predictors import Predictors, layer_by_layer
from janus_jax.run.watch_list import Given, make_list, read_given
from janus_jax.run.watching import ANSWER_TOKENS, Watching
from janus_jax.training import HeldOutWatch, MetricsLog, Stopped, StoppedEarly

CAPTIONS = ["a red cat", "a blue dog", "a red cat", "an owl", "a green car", "a cat", "a dog"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures with captions, one that cannot be read, and a manifest that draws and describes them."""
    path = tmp_path_factory.mktemp("data")
    for number, caption in enumerate(CAPTIONS):
        picture = Image.new("RGB", (60 + 9 * number, 50), (30 * number, 0, 0))
        picture.save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(caption)
    (path / "1.png").write_bytes(b"no picture")
    chat = {"messages": [{"role": "user", "content": "what?"}]}
    chat["messages"].append({"role": "assistant", "content": "a cat."})
    (path / "chats.jsonl").write_text(2 * (json.dumps(chat) + "\n"))
    sources = [
        {"name": "draw", "task": "generation", "format": "imagefolder", "path": "."},
        {"name": "describe", "task": "understanding", "format": "imagefolder", "path": "."},
        {"name": "words", "task": "text", "format": "messages", "path": "chats.jsonl"},
    ]
    sources[1]["prompt"] = ["what is it?"]
    (path / "m.yaml").write_text(json.dumps({"sources": sources}))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def experiment_of(data, **settings):
    config = finetune.get_config("lora_smoke")
    config.tokenizer, config.data.manifest, config.mesh.fsdp = "builtin", str(data / "m.yaml"), 1
    config.data.held_out = settings.pop("held_out", 0.5)
    config.eval.update(settings)
    return build(config)


def list_of(experiment, given=None):
    return make_list(experiment, experiment.stages[0], given or read_given(experiment))


# What is looked at


def test_without_being_told_it_takes_held_out_records(data):
    found = list_of(experiment_of(data))
    assert found.prompts_are == found.questions_are == "held out"
    texts = [prompt.text for prompt in found.prompts]
    assert 1 <= len(texts) == len(set(texts)) and set(texts) <= set(CAPTIONS)
    assert all(p.truth.shape == (48, 48, 3) and p.truth.dtype == np.uint8 for p in found.prompts)
    assert [q.text for q in found.questions] == ["what is it?"] * len(found.questions)
    assert {q.truth for q in found.questions} >= set(texts)
    again = list_of(experiment_of(data))
    assert [p.text for p in again.prompts] == texts


def test_with_nothing_held_out_it_takes_the_first_that_it_trains_on(data):
    found = list_of(experiment_of(data, held_out=0.0))
    assert found.prompts_are == found.questions_are == "trained on"
    # The same prompt once, and nothing of the picture that cannot be read.
    assert [p.text for p in found.prompts] == ["a red cat", *CAPTIONS[3:]]
    assert [q.truth for q in found.questions] == [CAPTIONS[0], *CAPTIONS[2:]]
    assert found.prompts[1].truth[24, 24, 0] == 90  # of record 3


def test_a_task_without_a_share_is_not_looked_at(data):
    experiment = experiment_of(data)
    with experiment.config.unlocked():
        experiment.config.stages.finetune.ratio = (1.0, 1.0, 0.0)
    found = list_of(build(experiment.config))
    assert found.prompts == () and found.questions


def watch_file(data, content):
    path = data / "watch.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_what_is_given_comes_in_the_place_of_records(data):
    questions = [{"image": "0.png", "question": "what?", "answer": "a cat"}]
    questions.append({"image": str(data / "3.png"), "question": "how many?"})
    path = watch_file(data, {"questions": questions})
    found = list_of(experiment_of(data, watch=path, watch_prompts=("a cat", "two dogs")))
    assert [(p.text, p.truth) for p in found.prompts] == [("a cat", None), ("two dogs", None)]
    assert [(q.text, q.truth) for q in found.questions] == [("what?", "a cat"), ("how many?", None)]
    assert found.prompts_are == found.questions_are == "given"
    # One kind alone, and none of the other.
    path = watch_file(data, {"prompts": ["an owl"]})
    found = list_of(experiment_of(data, watch=path))
    assert [p.text for p in found.prompts] == ["an owl"] and found.questions_are == "held out"
    path = watch_file(data, {"prompts": [], "questions": []})
    assert not list_of(experiment_of(data, watch=path))


QUESTION = {"image": "0.png", "question": "what?"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must have the key prompts or questions"),
        ("[1]", "must have the key prompts or questions"),
        ("prompts: [a\n", "no YAML"),
        ("prompts: [a]\nprompts: [b]", "'prompts' is there twice"),
        ({"promts": ["a"]}, "no key 'promts'. Did you mean 'prompts'?"),
        ({"prompts": "a cat"}, "prompts must be a list of texts"),
        ({"prompts": ["a", " "]}, "prompt 2 is empty|prompt 2 must be a text"),
        ({"prompts": ["a", None]}, "prompt 2 is empty"),
        ({"prompts": [{"a": 1}]}, "prompt 1 must be a text"),
        ({"prompts": ["a"] * 65}, "65 are too many"),
        ({"prompts": ["a cat " * 999]}, "prompt 1: the prompt is too long: .* the limit"),
        ({"questions": {"image": "0.png"}}, "questions must be a list"),
        ({"questions": ["what?"]}, "question 1 must have the keys image and question"),
        ({"questions": [{"image": "0.png"}]}, "question 1: question is missing"),
        ({"questions": [QUESTION | {"question": ""}]}, "question 1: question must be a text"),
        ({"questions": [QUESTION | {"awnser": "a"}]}, "'awnser'. Did you mean 'answer'"),
        ({"questions": [QUESTION | {"answer": 3}]}, "answer must be a text, not 3"),
        ({"questions": [QUESTION, QUESTION | {"image": "9.png"}]}, "question 2: .*9.png"),
        ({"questions": [QUESTION | {"image": "1.png"}]}, "question 1: .*1.png"),
        ({"questions": [QUESTION | {"image": "."}]}, "question 1: "),
        ({"questions": [QUESTION | {"question": "a " * 999}]}, "question is too long"),
        ({"prompts": ["\x1b[31m" * 999]}, "prompt 1: the prompt is too long"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_file_is_one_line(data, content, message):
    experiment = experiment_of(data, watch=watch_file(data, content))
    with pytest.raises(UserError, match=message) as error:
        read_given(experiment)
    text = str(error.value)
    assert "watch.yaml" in text and "\n" not in text and "\x1b" not in text and len(text) < 500


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"watch_prompts": ("a", "")}, "config.eval.watch_prompts: prompt 2 is empty"),
        ({"watch_prompts": (3,)}, "config.eval.watch_prompts: prompt 1 must be a text, not 3"),
        ({"watch": "nothing.yaml"}, "nothing.yaml: there is no such file"),
        ({"watch": 3}, "config.eval.watch must be the name of a YAML file"),
    ],
)
def test_a_bad_setting_is_one_line(data, settings, message):
    experiment = experiment_of(data)
    with experiment.config.eval.ignore_type():
        experiment.config.eval.update(settings)
    with pytest.raises(UserError, match=message):
        read_given(experiment)


def test_prompts_in_two_places_are_refused(data):
    path = watch_file(data, {"prompts": ["a"]})
    with pytest.raises(UserError, match="leave one of them out"):
        read_given(experiment_of(data, watch=path, watch_prompts=("b",)))


# When


def test_the_loop_samples_before_on_the_way_and_at_the_end(tmp_path):
    seen = []
    sample = lambda step, params: seen.append(
        (step, float(params["decoder"]["final_norm"]["scale"][0]))
    )
    run_toy(tmp_path, toy_step(), sample_every=4, on_sample=sample)
    # Of the parameters after so many steps: 1 + the sum of the batches.
    assert seen == [(0, 1), (4, 11), (8, 37), (10, 56)]


def test_a_stage_that_ends_early_samples_where_it_ends(tmp_path):
    seen = []
    watch = HeldOutWatch(stage(10), MetricsLog(tmp_path), Losses([9, 8, 9, 9]), 1, 2, quiet=True)
    fields = dict(held_out=watch, save_every=10, sample_every=5)
    with pytest.raises(StoppedEarly, match="at step 3"):
        run_toy(tmp_path, toy_step(), on_sample=lambda step, _: seen.append(step), **fields)
    assert seen == [0, 3]


def test_who_asks_to_stop_does_not_wait_for_samples(tmp_path):
    seen, asked = [], iter([None] * 3 + [signal.SIGTERM] * 9)
    fields = dict(stop=lambda: next(asked), on_sample=lambda step, _: seen.append(step))
    with pytest.raises(Stopped):
        run_toy(tmp_path, toy_step(), sample_every=4, **fields)
    assert seen == [0]
    run_toy(tmp_path, toy_step(), sample_every=4, on_sample=fields["on_sample"])
    assert seen == [0, 4, 8, 10]  # what is missing is made up for


# What is written


class Painter:
    """Stands in for the model; counts how often it is asked."""

    weights = generation_params = None

    def __init__(self, error=None):
        self.drawn, self.asked, self.error = [], [], error

    def generate_arrays(self, prompts, seed):
        if self.error:
            raise self.error
        self.drawn.append((tuple(prompts), seed))
        shade = 10 * len(self.drawn)
        return np.full((len(prompts), 48, 48, 3), shade, np.uint8)

    def answer_batch(self, images, questions, max_new_tokens):
        assert max_new_tokens == ANSWER_TOKENS and all(len(some) == 1 for some in images)
        self.asked.append(tuple(questions))
        return [f"answer {len(self.asked)}" for _ in questions]


@pytest.fixture
def painter(monkeypatch):
    painter = Painter()
    monkeypatch.setattr(Predictors, "_model", lambda self, params: painter)
    return painter


def watching(data, run_dir, **settings):
    experiment = experiment_of(data, **settings)
    run_dir.mkdir(exist_ok=True)
    given = read_given(experiment)
    return experiment, Watching(experiment, run_dir, Predictors(experiment), given)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "samples").iterdir())


def test_pictures_and_answers_are_written_with_what_they_are_of(data, painter, tmp_path):
    experiment, watch = watching(data, tmp_path)
    (tuned,) = experiment.stages
    watch.look(tuned, 20, {})
    listed = watch.list_of(tuned)
    record = json.loads((tmp_path / "samples/finetune_000020.json").read_text())
    texts = tuple(record["prompts"])
    assert texts == tuple(p.text for p in listed.prompts) and painter.drawn == [(texts, 0)]
    assert record["are"] == "held out" and record["seed"] == 0
    assert record["cfg_weight"] == experiment.processor.config.cfg_weight
    found = json.loads((tmp_path / "samples/finetune_000020_answers.json").read_text())
    assert [(q["question"], q["answer"]) for q in found["answers"]] == [
        ("what is it?", "answer 1") for _ in listed.questions
    ]
    assert [q["truth"] for q in found["answers"]] == [q.truth for q in listed.questions]
    for entry in found["answers"]:
        with Image.open(tmp_path / entry["image"]) as picture:
            picture.load()
    with Image.open(tmp_path / "samples/finetune_true.png") as true:
        assert true.height == 144


def test_what_is_there_is_kept_while_it_is_what_would_be_drawn(data, painter, tmp_path):
    _, watch = watching(data, tmp_path)
    (tuned,) = watching(data, tmp_path)[0].stages
    watch.look(tuned, 0, {}, keep=True)
    before = {name: (tmp_path / "samples" / name).read_bytes() for name in names(tmp_path)}
    # The same command again, in another process.
    _, again = watching(data, tmp_path)
    again.look(tuned, 0, {}, keep=True)
    assert len(painter.drawn) == 1
    assert before == {name: (tmp_path / "samples" / name).read_bytes() for name in names(tmp_path)}
    again.look(tuned, 0, {})
    assert len(painter.drawn) == 2
    # Other prompts are another picture, and so is a file that was cut short.
    _, other = watching(data, tmp_path, watch_prompts=("an owl",))
    other.look(tuned, 0, {}, keep=True)
    assert painter.drawn[-1] == (("an owl",), 0) and len(painter.drawn) == 3
    (tmp_path / "samples/finetune_000000_answers.json").write_text('{"answers": [3]}')
    other.look(tuned, 0, {}, keep=True)
    assert len(painter.drawn) == 4


def test_a_finished_stage_gets_what_it_was_killed_before(data, painter, tmp_path):
    experiment, watch = watching(data, tmp_path)
    (tuned,) = experiment.stages
    watch.complete(tuned, {})  # a run of before there were any
    assert painter.drawn == []
    watch.look(tuned, 0, {})
    watch.complete(tuned, {})
    watch.complete(tuned, {})
    assert len(painter.drawn) == 2 and f"finetune_{tuned.steps:06d}.png" in names(tmp_path)


def test_too_little_memory_ends_the_samples_and_not_the_run(data, painter, tmp_path, capsys):
    experiment, watch = watching(data, tmp_path)
    painter.error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"
    )
    for step in (0, 20):
        watch.look(experiment.stages[0], step, {})
    err = capsys.readouterr().err
    assert err.count("warning: finetune step 0: no samples from here on") == 1
    assert err.count("\n") == 1 and not (tmp_path / "samples").exists()


def test_another_error_of_the_device_is_one(data, painter, tmp_path):
    experiment, watch = watching(data, tmp_path)
    painter.error = jax.errors.JaxRuntimeError("INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        watch.look(experiment.stages[0], 0, {})


def test_it_is_said_what_will_be_seen(data, tmp_path, capsys):
    experiment, watch = watching(data, tmp_path, watch_prompts=("a cat",))
    watch.say(experiment.stages[0], 20)
    err = capsys.readouterr().err
    assert "1 prompt (given) and " in err and "(held out) go to samples/" in err
    watch.say(experiment.stages[0], 0)
    assert "never, as config.log.sample_every is 0" in capsys.readouterr().err
    Watching(experiment, tmp_path, None, Given()).say(experiment.stages[0], 0)
    assert capsys.readouterr().err == ""


# The weights


def test_weights_that_are_taken_by_the_layer_are_those_of_the_whole(data):
    experiment = experiment_of(data)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda k: init_params(experiment.model, k), key)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jax.numpy.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    params = add_lora(params, LoraOptions(rank=2), key)
    nudge = lambda path, x: x + 0.5 if path[-1].key == "lora_b" else x
    params = jax.tree_util.tree_map_with_path(nudge, params)
    predictors = Predictors(experiment)
    predictors.of(plain(layer_by_layer(params)))
    found = predictors._janus.weights
    predictors.let_go()
    assert not jax.tree.leaves(predictors._janus.weights)
    predictors.of(plain(params))
    jax.tree.map(np.testing.assert_array_equal, found, predictors._janus.weights)
