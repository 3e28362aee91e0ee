"""The engines against step-by-step decoding without a cache, and identities of sampling."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import (
    CONFIG,
    GUIDED,
    LONG,
    SHORT,
    draw_codes,
    make_janus,
    random_params,
    uncached_logits,
)
from PIL import Image
from safetensors.numpy import load_file

from janus_jax import models
from janus_jax.config import Policy
from janus_jax.errors import UserError
from janus_jax.inference import ImageEngine, Janus, TextEngine, make_sampling_params
from janus_jax.inference.batching import deduplicate_prompts, left_pad, padded_size
from janus_jax.inference.dialogue import Dialogue
from janus_jax.inference.fused_params import fuse_params
from janus_jax.inference.image_engine import Prompts
from janus_jax.inference.logits import filter_logits, sample
from janus_jax.inference.slots import stacked
from janus_jax.interop import config_from_official, params_from_torch
from janus_jax.processing import Processor, ProcessorConfig

pytestmark = pytest.mark.heavy

OFFICIAL = Path(__file__).parent / "data/golden/official_tiny"


@pytest.fixture(scope="module")
def janus():
    return make_janus(fields=GUIDED)


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def reference_codes(janus, prompt, weight):
    """Greedy codes of one prompt: no padding, no cache, the whole sequence at every step."""
    logits, codes = uncached_logits(janus, prompt), np.zeros(CONFIG.vq.num_codes, np.int32)
    for i in range(len(codes)):
        codes[i] = int(jnp.argmax(logits(codes[:-1], weight)[i]))
    return codes


def test_image_engine_reproduces_the_official_pictures():
    """Prompts of both lengths in one padded batch; officially each length was drawn alone."""
    config = config_from_official(json.loads((OFFICIAL / "config.json").read_text()))
    config = config.replace(scan_layers=False)
    state = load_file(OFFICIAL / "model.safetensors")
    params = models.unstack_layers(params_from_torch(state, config, "float32"), config)
    with np.load(OFFICIAL / "expected.npz") as arrays:
        expected = dict(arrays)
    engine = ImageEngine(config, Policy())
    sampling, static = make_sampling_params(256, float(expected["gen_cfg_weight"]), temperature=0)
    asked = [row.tolist() for key in ("gen", "short") for row in expected[f"{key}_prompt_ids"]]
    prompts, rows = deduplicate_prompts(asked, 4, True, int(expected["gen_pad_id"]))
    ids, mask = left_pad(prompts, len(prompts), fill=0)
    keys = jax.random.split(jax.random.key(0), 4)
    with jax.default_matmul_precision("highest"):
        weights = fuse_params(params, config, Policy())
        codes, pixels = engine.draw(
            weights, Prompts(ids, mask, np.array(rows)), keys, sampling, static
        )
    pixels = np.asarray(pixels[:2])
    np.testing.assert_array_equal(codes[:2], expected["gen_codes_greedy"])
    np.testing.assert_array_equal(codes[2:], expected["short_codes_greedy"])
    difference = np.abs(pixels.astype(int) - expected["gen_pixels_uint8"])
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3  # truncation may flip


def test_prompts_and_unconditional_rows_are_shared():
    a, b, c = [1, 5, 6, 2], [1, 7, 8, 2], [1, 5, 2]
    prompts, rows = deduplicate_prompts([a, a, b, c], 5, True, pad_id=9)
    assert prompts == [a, b, c, [1, 9, 9, 2], [1, 9, 2]]  # one unconditional prompt a length
    assert rows == [[0, 0, 1, 2, 2], [3, 3, 3, 4, 4]]
    assert deduplicate_prompts([a, b], 2, False, pad_id=9) == ([a, b], [[0, 1]])


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_greedy_codes_equal_uncached_decoding_in_a_padded_batch(janus, weight):
    codes = draw_codes(janus, [SHORT, LONG], temperature=0, cfg_weight=weight)
    np.testing.assert_array_equal(codes[0], reference_codes(janus, SHORT, weight))
    np.testing.assert_array_equal(codes[1], reference_codes(janus, LONG, weight))
    assert len(set(codes.ravel())) > 4


def test_guidance_one_skips_the_unconditional_half_without_changing_anything(janus):
    assert not make_sampling_params(40, cfg_weight=1.0)[1].guided
    skipped = draw_codes(janus, [SHORT, LONG], cfg_weight=1.0)
    computed = draw_codes(janus, [SHORT, LONG], cfg_weight=1.0 + 1e-7)
    np.testing.assert_array_equal(skipped, computed)
    assert (draw_codes(janus, [SHORT, LONG], cfg_weight=4.0) != skipped).any()


def test_guidance_zero_depends_on_the_length_of_the_prompt_alone(janus):
    unguided = lambda prompt: draw_codes(janus, [prompt], cfg_weight=0.0, temperature=0)
    same = unguided("a red cat")
    np.testing.assert_array_equal(same, unguided("the green dog"))
    assert (same != unguided(SHORT)).any()


def test_a_picture_does_not_depend_on_what_else_is_drawn(janus):
    alone = janus.generate_arrays(SHORT, n=2, seed=5)
    assert alone.shape == (2, 16, 16, 3) and alone.dtype == np.uint8
    together = janus.generate_arrays([LONG, SHORT], n=2, seed=5)
    np.testing.assert_array_equal(alone, together[2:])
    np.testing.assert_array_equal(alone[:1], janus.generate_arrays(SHORT, n=1, seed=5))
    split = janus.with_params(random_params(CONFIG))
    split.max_batch = 2
    np.testing.assert_array_equal(together, split.generate_arrays([LONG, SHORT], n=2, seed=5))
    assert (alone[0] != alone[1]).any()
    assert (alone != janus.generate_arrays(SHORT, n=2, seed=6)).any()


def test_images_are_the_arrays(janus):
    images = janus.generate(SHORT, n=2, seed=2)
    arrays = janus.generate_arrays(SHORT, n=2, seed=2)
    np.testing.assert_array_equal(np.stack([np.asarray(i) for i in images]), arrays)


def test_default_guidance_and_temperature_are_the_checkpoints_own(janus):
    explicit = janus.generate_arrays(SHORT, n=3, cfg_weight=2.0, temperature=0.8)
    np.testing.assert_array_equal(janus.generate_arrays(SHORT, n=3), explicit)
    assert (janus.generate_arrays(SHORT, n=3, temperature=1.6) != explicit).any()


def test_greedy_is_top_k_one(janus):
    greedy = draw_codes(janus, [SHORT, LONG], temperature=0)
    np.testing.assert_array_equal(greedy, draw_codes(janus, [SHORT, LONG], top_k=1))
    np.testing.assert_array_equal(greedy, draw_codes(janus, [SHORT, LONG], top_p=1e-6))


def test_pixels_are_decoded_in_chunks(janus):
    codes = np.random.default_rng(1).integers(0, 40, (32, CONFIG.vq.num_codes))
    pixels = np.asarray(janus.image_engine.pixels(janus.weights, codes))
    few = np.asarray(janus.image_engine.pixels(janus.weights, codes[30:]))
    assert np.abs(pixels[30:].astype(int) - few).max() <= 1


def test_other_parameters_share_compiled_functions(janus):
    janus.generate_arrays(SHORT, n=2)
    compiled = janus.image_engine.draw._cache_size()
    other = janus.with_params(jax.tree.map(lambda x: x * 0.9, random_params(CONFIG)))
    assert (other.generate_arrays(SHORT, n=2) != janus.generate_arrays(SHORT, n=2)).any()
    assert janus.image_engine.draw._cache_size() == compiled


def test_scanned_parameters_are_unrolled(janus):
    scanned = CONFIG.replace(scan_layers=True)
    other = Janus(scanned, models.stack_layers(random_params(CONFIG), CONFIG), janus.processor)
    assert not other.config.scan_layers
    jax.tree.map(np.testing.assert_array_equal, other.weights, janus.weights)


def reference_answer(janus, picture, question, steps):
    """Greedy answer ids of one question: no padding, no cache."""
    model, params = models.JanusModel(janus.config), {"params": random_params(CONFIG)}
    ids = janus.processor.understanding_ids(question)
    features = model.apply(params, picture[None] / 127.5 - 1, method="embed_images")
    start = ids.index(janus.processor.tokenizer.image_id)
    length = len(ids) + steps

    @jax.jit
    def logits(tokens):
        embeds = model.apply(params, tokens[None], method="embed_text")
        embeds = embeds.at[:, start : start + features.shape[1]].set(features)
        hidden, _ = model.apply(
            params, embeds, jnp.arange(length)[None], models.causal_mask(length), method="decode"
        )
        return model.apply(params, hidden[0], method="text_logits")

    tokens = np.zeros(length, np.int32)
    tokens[: len(ids)] = ids
    for i in range(len(ids), length):
        tokens[i] = int(jnp.argmax(logits(tokens)[i - 1]))
    return tokens[len(ids) :]


QUESTIONS = ["what is it?", "is the red cat on the left of the green car?"]


def answer_tokens(janus, pictures, limits, eos_id):
    """Greedy answer ids to QUESTIONS up to `limits`, straight from the engine."""
    sampling, static = make_sampling_params(CONFIG.decoder.vocab_size, temperature=0)
    engine = TextEngine(janus.config, Policy(), janus.processor.tokenizer.image_id, eos_id)
    dialogue = Dialogue(engine, janus.weights, 2, sampling, static, pad_id=0, eos_id=eos_id)
    ids = [janus.processor.understanding_ids(q) for q in QUESTIONS]
    keys = jnp.broadcast_to(jax.random.key(0), (2,))
    pieces = list(dialogue.turn(ids, [[p] for p in pictures], limits, keys))
    tokens = np.concatenate(pieces, axis=1)
    return [dialogue.truncate(row, limit) for row, limit in zip(tokens, limits, strict=True)]


def test_greedy_answers_equal_uncached_decoding_in_a_padded_batch(janus, pictures):
    expected = [reference_answer(janus, pictures[i], QUESTIONS[i], 20).tolist() for i in range(2)]
    free = answer_tokens(janus, pictures[:2], [20, 20], eos_id=-1)  # never drawn
    assert free == expected
    swapped = answer_tokens(janus, pictures[1::-1], [20, 20], eos_id=-1)
    assert swapped[0] != free[0] and swapped[1] != free[1]  # the picture matters

    eos = free[0][3]  # an answer ends with its first EOS, or at its limit
    cut = answer_tokens(janus, pictures[:2], [20, 1], eos_id=eos)
    assert cut[0] == free[0][: free[0].index(eos)] and cut[1] in (free[1][:1], [])


def test_an_answer_does_not_depend_on_the_batch(janus, pictures):
    settings = dict(max_new_tokens=10, temperature=1.0, seed=3)
    together = janus.answer_batch(pictures[:2], QUESTIONS, **settings)
    assert len(together) == 2 and all(together)
    assert janus.answer(Image.fromarray(pictures[1]), QUESTIONS[1], **settings) == together[1]
    assert janus.answer_batch([], []) == []


def test_a_long_answer_stops_where_positions_end(janus, pictures, monkeypatch):
    asked = {}

    class Silent(Dialogue):
        def turn(self, ids, pixels, limits, keys):
            asked.update(limits=np.array(limits), lengths=np.array([len(i) for i in ids]))
            yield np.zeros((len(ids), 1), np.int32)

    monkeypatch.setattr("janus_jax.inference.model.Dialogue", Silent)
    janus.answer_batch(pictures[:2], QUESTIONS, max_new_tokens=1000)
    # The last token takes no position, for it is never fed back.
    assert (asked["limits"] + asked["lengths"] - 1).tolist() == [64, 64]


def test_filter_keeps_the_right_classes():
    logits = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]))

    def kept(top_k, top_p):
        return np.isfinite(np.asarray(filter_logits(logits, top_k, top_p))).astype(int).tolist()

    assert kept(2, 1.0) == [[0, 1, 0, 1], [1, 1, 0, 0]]  # ties do not let more through
    assert kept(4, 0.6) == [[0, 1, 0, 1], [1, 1, 1, 0]]
    assert kept(4, 1.0) == [[1, 1, 1, 1], [1, 1, 1, 1]]
    # The nucleus is taken among the top k: 0.4 / 0.7 of the mass is over one half.
    assert kept(2, 0.55)[0] == [0, 1, 0, 0]
    # The most likely class stays, also where float32 has no such number above 0.
    for tiny in (1e-9, 1e-40, 1e-50):
        assert kept(4, tiny) == [[0, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    "tiny", [dict(temperature=1e-29), dict(temperature=1e-40), dict(top_p=1e-50)], ids=str
)
def test_tiny_settings_draw_the_most_likely_class(tiny):
    logits = jax.random.normal(jax.random.key(0), (8, 40)) * 3 - 20
    keys = jax.random.split(jax.random.key(1), 8)
    sampling, static = make_sampling_params(40, **tiny)
    for settings in (sampling, stacked([sampling] * 8)):
        drawn = sample(logits, keys, settings, static)
        np.testing.assert_array_equal(drawn, jnp.argmax(logits, -1))


def test_sample_follows_the_distribution():
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    keys = jax.random.split(jax.random.key(0), 4000)
    for temperature in (1.0, 0.5):
        sampling, static = make_sampling_params(3, temperature=temperature)
        drawn = sample(jnp.broadcast_to(logits, (4000, 3)), keys, sampling, static)
        share = np.bincount(np.asarray(drawn), minlength=3) / 4000
        expected = np.array([0.1, 0.2, 0.7]) ** (1 / temperature)
        np.testing.assert_allclose(share, expected / expected.sum(), atol=0.03)


def test_batches_have_few_sizes():
    assert [padded_size(n, 64) for n in (1, 2, 3, 5, 33, 64)] == [1, 2, 4, 8, 64, 64]
    assert padded_size(5, 6) == 6
    ids, mask = left_pad([[1, 2], [3]], 4, fill=9)
    assert ids.shape == mask.shape == (4, 16)
    assert ids[:, -2:].tolist() == [[1, 2], [9, 3], [9, 3], [9, 3]] and mask.sum() == 5


BAD = {
    "n": dict(n=0),
    "cfg_weight": dict(cfg_weight=float("nan")),
    "temperature": dict(temperature=-1.0),
    "top_k": dict(top_k=41),
    "top_p": dict(top_p=0.0),
    "seed": dict(seed=-1),
    "prompt is empty": dict(prompt=" "),
    "limit of this model is 49": dict(prompt="a cat " * 30),
}


@pytest.mark.parametrize("expected", BAD)
def test_bad_arguments_are_named_on_one_line(janus, expected):
    with pytest.raises(UserError, match=expected) as error:
        janus.generate(**{"prompt": SHORT, **BAD[expected]})
    assert "\n" not in str(error.value)


def test_bad_questions(janus, pictures):
    with pytest.raises(UserError, match="question is empty"):
        janus.answer(pictures[0], "")
    with pytest.raises(UserError, match="limit of this model is 64"):
        janus.answer(pictures[0], "what is it? " * 30)
    with pytest.raises(UserError, match="max_new_tokens"):
        janus.answer(pictures[0], "what?", max_new_tokens=0)
    with pytest.raises(UserError, match="images: 2, but questions: 1"):
        janus.answer_batch(pictures[:2], ["what?"])


def test_a_processor_of_another_model_is_refused(janus):
    config = ProcessorConfig.from_model(CONFIG, num_codes=99)
    with pytest.raises(UserError, match="num_codes is 99, but test needs 16"):
        Janus(CONFIG, random_params(CONFIG), Processor(config, janus.processor.tokenizer))
