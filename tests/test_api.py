"""The public methods of `Janus`: samples, scores, codes, streams, several pictures, saving, options."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import CONFIG, GUIDED, LONG, SHORT, make_janus, random_params, uncached_logits
from PIL import Image

from janus_jax import models
from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.inference import GenerationConfig, Janus, programs
from janus_jax.inference.logits import filter_logits
from janus_jax.inference.text_stream import TextStream, find_stop
from janus_jax.parallel import make_mesh, parse_mesh

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parent.parent
N = CONFIG.vq.num_codes
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def make(**options) -> Janus:
    return make_janus(fields=GUIDED, **options)


@pytest.fixture(scope="module")
def janus():
    return make()


# Samples and scores


@pytest.mark.parametrize(
    "settings", [dict(cfg_weight=2.0), dict(cfg_weight=1.0, temperature=0.7, top_k=9, top_p=0.8)]
)
def test_samples_are_the_pictures_with_their_codes(janus, settings):
    plain = janus.sample([SHORT, LONG], n=2, seed=3, **settings)
    scored = janus.sample([SHORT, LONG], n=2, seed=3, log_probs=True, **settings)
    assert plain.log_probs is None
    np.testing.assert_array_equal(plain.codes, scored.codes)
    np.testing.assert_array_equal(plain.pixels, scored.pixels)
    drawn = janus.generate_arrays([SHORT, LONG], n=2, seed=3, **settings)
    np.testing.assert_array_equal(plain.pixels, drawn)
    np.testing.assert_array_equal(np.asarray(plain.images[1]), drawn[1])
    np.testing.assert_array_equal(janus.decode_codes_arrays(plain.codes), drawn)
    # Of the distribution that was drawn from.
    for row, prompt in ((0, SHORT), (3, LONG)):
        logits = uncached_logits(janus, prompt)(scored.codes[row, :-1], settings["cfg_weight"])
        logits = logits / settings.get("temperature", 0.8)
        if "top_k" in settings:
            logits = filter_logits(logits, settings["top_k"], settings["top_p"])
        expected = jax.nn.log_softmax(logits)[np.arange(N), scored.codes[row]]
        np.testing.assert_allclose(scored.log_probs[row], expected, atol=1e-4)


def test_greedy_samples_are_certain(janus):
    assert not janus.sample(SHORT, temperature=0, log_probs=True).log_probs.any()


def test_scores_of_pictures_are_those_of_the_model_without_guidance(janus):
    codes = janus.sample([SHORT, LONG], n=2, seed=5).codes[1:]
    prompts = [SHORT, LONG, LONG]
    scores = janus.score_images(prompts, codes)
    assert scores.shape == (3, N) and scores.dtype == np.float32
    for prompt, row, score in zip(prompts, codes, scores, strict=True):
        logits = uncached_logits(janus, prompt)(row[:-1], 1.0)
        expected = jax.nn.log_softmax(logits)[np.arange(N), row]
        np.testing.assert_allclose(score, expected, atol=1e-4)
    np.testing.assert_allclose(janus.score_images(LONG, codes[1:]), scores[1:], atol=1e-5)
    # What was drawn without guidance at temperature 1 has the same log-probabilities there.
    drawn = janus.sample(SHORT, n=2, cfg_weight=1, temperature=1, log_probs=True)
    np.testing.assert_allclose(janus.score_images(SHORT, drawn.codes), drawn.log_probs, atol=1e-4)


def test_scores_of_pictures_on_a_mesh(janus):
    codes = janus.sample(SHORT, n=3).codes
    sharded = make(mesh=make_mesh(data=2, tensor=2))
    np.testing.assert_allclose(
        sharded.score_images(SHORT, codes), janus.score_images(SHORT, codes), atol=1e-4
    )


def reference_scores(janus, shown, question, answer):
    """The model's plain forward on one conversation, without padding."""
    model, params = models.JanusModel(janus.config), {"params": random_params(CONFIG)}
    processor = janus.processor
    ids = processor.text_ids(question)
    if shown:
        ids = processor.understanding_ids(question, len(shown))
    given = processor.answer_ids(answer)
    tokens = jnp.array([ids + given])
    embeds = model.apply(params, tokens, method="embed_text")
    if shown:
        pixels = jnp.asarray(np.stack(shown) / 127.5 - 1, jnp.float32)
        features = model.apply(params, pixels, method="embed_images")
        at = np.flatnonzero(np.array(ids) == processor.tokenizer.image_id)
        embeds = embeds.at[0, at].set(features.reshape(-1, features.shape[-1]))
    length = tokens.shape[1]
    positions = jnp.arange(length)[None]
    mask = models.causal_mask(length)
    hidden, _ = model.apply(params, embeds, positions, mask, method="decode")
    logits = model.apply(params, hidden[0, len(ids) - 1 : -1], method="text_logits")
    return jax.nn.log_softmax(logits)[np.arange(len(given)), np.array(given)]


def test_scores_of_answers_are_those_of_the_plain_forward(janus):
    shown = [[PICTURES[0]], [], [PICTURES[1], PICTURES[2]], [PICTURES[0]]]
    questions = ["what is it?", "is it red?", "is the cat on the left?", "what is it?"]
    answers = ["a red cat.", "no.", "yes.", "a dog on the right of the car."]
    images = [PICTURES[0], None, [PICTURES[1], PICTURES[2]], [PICTURES[0]]]
    scores = janus.score_answers(images, questions, answers)
    for some, question, answer, score in zip(shown, questions, answers, scores, strict=True):
        expected = reference_scores(janus, some, question, answer)
        assert score.shape == expected.shape
        np.testing.assert_allclose(score, expected, atol=1e-4)
    assert janus.score_answers([], [], []) == []


# Pictures and texts in, out, and piece by piece


def test_codes_of_pictures(janus):
    one = janus.encode_image(PICTURES[0])
    several = janus.encode_image(PICTURES)
    assert one.shape == (N,) and one.dtype == np.int32
    np.testing.assert_array_equal(several[0], one)
    np.testing.assert_array_equal(several, janus.encode_image(list(PICTURES)))
    model = models.JanusModel(janus.config)
    pixels = jnp.asarray(PICTURES / 127.5 - 1, jnp.float32)
    params = {"params": random_params(CONFIG)}
    expected = model.apply(params, pixels, method="encode_codes")
    np.testing.assert_array_equal(several, expected)
    picture, pictures = janus.decode_codes(one), janus.decode_codes(several)
    assert picture.size == (16, 16) and len(pictures) == 3
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(pictures[0]))


def test_streamed_pictures_end_in_those_that_are_drawn(janus):
    seen = [
        (p.first, p.done, p.pixels())
        for p in janus.stream_images([SHORT, LONG], every=6, config=GenerationConfig(seed=4))
    ]
    assert [(first, done) for first, done, _ in seen] == [(0, 1), (0, 6), (0, 12), (0, 16)]
    drawn = janus.generate_arrays([SHORT, LONG], seed=4)
    np.testing.assert_array_equal(seen[-1][2], drawn)
    with pytest.raises(UserError, match="every must be >= 1"):  # at once, not at the first picture
        janus.stream_images(SHORT, every=0)


def test_a_streamed_answer_is_the_answer(janus):
    settings = dict(max_new_tokens=20, temperature=1.0, seed=3)
    whole = janus.answer(PICTURES[0], "what is it?", **settings)
    pieces = list(janus.stream_answer(PICTURES[0], "what is it?", **settings))
    assert "".join(pieces) == whole and all(pieces) and len(whole.split()) > 2
    with pytest.raises(UserError, match="question is empty"):
        janus.stream_answer(PICTURES[0], " ")


def test_an_answer_ends_before_its_stop_string(janus):
    settings = dict(max_new_tokens=30, temperature=1.0, seed=3)
    asked = ([PICTURES[0], PICTURES[1]], ["what is it?", "is it red?"])
    whole = janus.answer_batch(*asked, **settings)
    words = whole[0].split()
    stop = next(w for w in words[2:] if w != words[0])
    stopped = janus.answer_batch(*asked, stop=[stop, "no such text"], **settings)
    assert stopped == [text.partition(stop)[0].strip() for text in whole]
    assert stopped[0] and stopped[0] != whole[0]
    streamed = janus.stream_answer(PICTURES[0], "what is it?", stop=stop, **settings)
    assert "".join(streamed) == stopped[0]


@pytest.mark.parametrize("stop", ["", [""], [3], 7, b"x", [None]])
def test_stop_strings_are_texts(janus, stop):
    with pytest.raises(UserError, match=r"^stop must be"):
        janus.answer(None, "what?", stop=stop)


class Letters:
    """A tokenizer with one letter a token."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a b c", [], "a b c"),
        (" one\nUser: two", ["\nUser:"], "one"),
        ("aab", ["ab"], "a"),
        ("abcd", ["abcd", "bc"], "a"),  # the one that is complete first
        ("xabab", ["ababa"], "xabab"),  # held back until the end
        ("h\u00e9 \U0001f600.", ["."], "h\u00e9 \U0001f600"),
    ],
)
def test_pieces_of_a_text_join_to_what_stands_before_the_stop_string(text, stop, expected):
    tokens = list(text.encode())
    for step in (1, 3, 100):
        stream, pieces = TextStream(Letters(), stop), []
        ends = [*range(step, len(tokens), step), len(tokens)]
        for end in ends:
            pieces.append(stream.update(tokens[:end], end == len(tokens)))
        assert "".join(pieces) == stream.text == expected
        assert stream.finished
    assert find_stop("abc", ["d"]) is None


def test_no_one_or_several_pictures(janus):
    talk = "".join(janus.conversation().ask("is it red?", max_new_tokens=6))
    alone = janus.answer(None, "is it red?", 6)
    assert alone.startswith(talk) or talk.startswith(alone)
    two = janus.answer(list(PICTURES[:2]), "what is it?", 6)
    assert two == janus.answer(PICTURES[:2], "what is it?", 6)  # an array of two
    assert two == janus.answer_batch([PICTURES[:2]], ["what is it?"], 6)[0]
    together = janus.answer_batch(
        [None, PICTURES[:2], PICTURES[0]], ["is it red?", "what is it?", "what is it?"], 6
    )
    assert together == [alone, two, janus.answer(PICTURES[0], "what is it?", 6)]
    placed = "is <image_placeholder> or <image_placeholder> red?"
    assert isinstance(janus.answer(list(PICTURES[:2]), placed, 6), str)
    with pytest.raises(UserError, match="but there are 1 images"):
        janus.answer(PICTURES[0], placed)


# Options


def test_a_config_stands_for_the_arguments_that_are_not_given(janus):
    config = GenerationConfig(cfg_weight=3, seed=5, temperature=0.9, max_new_tokens=5)
    drawn = janus.generate_arrays(SHORT, config=config)
    explicit = janus.generate_arrays(SHORT, cfg_weight=3, seed=5, temperature=0.9)
    np.testing.assert_array_equal(drawn, explicit)
    other = janus.generate_arrays(SHORT, 1, 6, config=config)  # an argument goes first
    np.testing.assert_array_equal(
        other, janus.generate_arrays(SHORT, cfg_weight=3, seed=6, temperature=0.9)
    )
    answer = janus.answer(PICTURES[0], "what?", config=config)
    assert answer == janus.answer(PICTURES[0], "what?", 5, 0.9, seed=5)
    assert repr(config.replace(seed=None, max_new_tokens=None)) == (
        "GenerationConfig(cfg_weight=3, temperature=0.9)"
    )
    with pytest.raises(UserError, match="Did you mean 'cfg_weight'"):
        GenerationConfig.from_dict({"cfg_wieght": 3})
    with pytest.raises(UserError, match="config must be a GenerationConfig, not dict"):
        janus.generate(SHORT, config={"seed": 3})


UNKNOWN = {
    "load has no option 'revison'. Did you mean 'revision'?": lambda j: Janus.load(
        "nowhere", revison="main"
    ),
    "generate has no option 'cfg_wieght'. Did you mean 'cfg_weight'?": lambda j: j.generate(
        SHORT, cfg_wieght=3
    ),
    "answer has no option 'max_tokens'. Did you mean 'max_new_tokens'?": lambda j: j.answer(
        None, "what?", max_tokens=3
    ),
    "stream_images has no option 'preview_every'.": lambda j: j.stream_images(
        SHORT, preview_every=3
    ),
    "dtype must be one of auto, float32, bfloat16": lambda j: Janus.load("nowhere", dtype="f32"),
    "dtype and policy both": lambda j: Janus.load("nowhere", dtype="float32", policy=Policy()),
    "revision must be text": lambda j: Janus.load("nowhere", revision=3),
    "token must be text": lambda j: Janus.load("nowhere", token=3),
    "cache_dir must be a path": lambda j: Janus.load("nowhere", cache_dir=3),
    "revision is of a model of the hub, but ./x is none": lambda j: Janus.load(
        "./x", revision="main"
    ),
    "codes must be whole numbers [B, 16], not float64": lambda j: j.score_images(
        SHORT, np.zeros((1, 16))
    ),
    "codes must be from 0 to 39, got 0 to 40": lambda j: j.decode_codes([0] * 15 + [40]),
    "codes must be whole numbers [B, 16], not int64 of shape (3,)": lambda j: j.decode_codes(
        [1, 2, 3]
    ),
    "prompts: 2, but codes of 3 pictures": lambda j: j.score_images(
        [SHORT, LONG], np.zeros((3, 16), int)
    ),
    "answers: 0, but questions: 1": lambda j: j.score_answers([None], ["what?"], []),
}


@pytest.mark.parametrize("message", UNKNOWN)
def test_bad_options_are_one_line(janus, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        UNKNOWN[message](janus)
    assert "\n" not in str(error.value)


def test_signatures_stay_visible():
    import inspect

    names = list(inspect.signature(Janus.load).parameters)
    assert names[:3] == ["id_or_dir", "step", "dtype"] and "revision" in names
    for name in ("generate", "answer", "sample", "stream_images", "score_answers"):
        kinds = {p.kind for p in inspect.signature(getattr(Janus, name)).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
        assert ">>>" in getattr(Janus, name).__doc__


def test_a_mesh_is_read_from_text():
    assert parse_mesh("") is None
    assert dict(parse_mesh("data=2,tensor=4").shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    with pytest.raises(UserError, match=r"^--mesh must look like"):
        parse_mesh("data:2", "--mesh")


def test_repr_says_model_size_dtype_and_place(janus):
    count = sum(x.size for x in jax.tree.leaves(random_params(CONFIG)))
    assert repr(janus) == f"Janus(test, {count / 1000:.2f}K parameters, float32, cpu)"
    low = make(int8=("cache",), mesh=make_mesh(data=2), policy=Policy("bfloat16", "bfloat16"))
    assert repr(low).endswith("parameters, bfloat16, int8 cache, 2 x cpu (data=2))")


# Saving


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_read_back_with_equal_numbers(dtype, tmp_path):
    janus = make(policy=Policy(dtype, dtype))
    janus.save(tmp_path / "model")
    again = Janus.load(tmp_path / "model", dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, again.weights, janus.weights)
    assert again.config == janus.config and again.num_params == janus.num_params
    assert again.processor.config == janus.processor.config
    again.save(tmp_path / "model")  # an earlier model in the place is replaced
    jax.tree.map(
        np.testing.assert_array_equal,
        Janus.load(tmp_path / "model", dtype=dtype).weights,
        again.weights,
    )


def test_a_model_on_a_mesh_is_saved_whole(tmp_path):
    make(mesh=make_mesh(data=2, tensor=2)).save(tmp_path / "model")
    again = Janus.load(tmp_path / "model", dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, again.weights, make().weights)


def test_int8_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="weights in int8 cannot be saved"):
        make(int8=("weights",)).save(tmp_path / "model")
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="it is a file"):
        make().save(tmp_path / "taken")


# Warm-up


@pytest.mark.parametrize("previews", [False, True])
def test_a_run_needs_the_programs_of_the_warmup_and_no_others(previews, monkeypatch):
    fresh = make()
    tokens = 6
    from janus_jax.inference import warmup

    listed = warmup.list_programs(fresh, [1, 3], [1, 3], tokens, 30, None, None, 6, previews)
    needed = programs.ProgramList()

    def record(function, *args, **static):
        needed(function, *args, **static)
        return function(*args, **static)

    monkeypatch.setattr(programs, "execute", record)
    see = dict(preview=lambda p: None, preview_every=6) if previews else {}
    for words in range(1, tokens + 2):
        prompt = " ".join(["cat"] * words)
        for n in (1, 3):
            fresh.generate_arrays(prompt, n, **see)
            fresh.answer_batch(list(PICTURES[:n]), [prompt] * n, 30)
    keys = lambda found: {(p.label, p.key[1:]) for p in found}
    run, warm = keys(needed.programs), keys(listed)
    assert {label for label, _ in run - warm} == set()
    # An answer may end before its cache has to grow.
    assert {label for label, _ in warm - run} <= {"block", "grow"}


def test_an_answer_of_full_length_needs_all_of_the_warmup(monkeypatch):
    fresh = make()
    monkeypatch.setattr(fresh.text_engine, "_eos_id", -1)
    from janus_jax.inference import warmup

    listed = warmup.list_programs(fresh, [], [2], 2, 40, None, None, None, False)
    needed = programs.ProgramList()

    def record(function, *args, **static):
        needed(function, *args, **static)
        return function(*args, **static)

    monkeypatch.setattr(programs, "execute", record)
    for prompt in ("a", "a cat", "a red cat"):
        fresh.answer_batch(list(PICTURES[:2]), [prompt] * 2, 40)
    keys = lambda found: {(p.label, p.key[1:]) for p in found}
    assert keys(needed.programs) == keys(listed)
    assert {p.label for p in listed} >= {"features", "empty", "prefill", "block"}


# Imports

BLOCKED = """
import sys
for name in ("grain", "ml_collections", "optax", "janus_jax.training", "janus_jax.data"):
    sys.modules[name] = None
from janus_jax import Janus
janus = Janus.load(sys.argv[1])
drawn = janus.sample("a cat", n=2, log_probs=True)
janus.generate("a cat", preview=lambda p: p.pixels())
janus.answer(drawn.images[0], "what is it?", 3)
list(janus.conversation().ask("what is it?", max_new_tokens=3))
janus.score_images("a cat", drawn.codes), janus.encode_image(drawn.images[0])
janus.save(sys.argv[1] + "_again")
print(drawn.pixels.shape)
"""


def test_drawing_and_answering_need_no_training_library(janus, tmp_path):
    janus.save(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, tmp_path / "model"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JANUS_JAX_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 16, 16, 3)\n"
    metadata = json.loads((tmp_path / "model_again/janus.json").read_text())
    assert metadata["config"]["name"] == CONFIG.name


def test_the_package_is_typed():
    assert (ROOT / "janus_jax/py.typed").exists()
    assert isinstance(Image.Image, type)
