"""Parity with the official PyTorch implementation on a tiny recorded checkpoint."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from janus_jax.errors import UserError
from janus_jax.interop import config_from_official, params_from_torch, params_to_torch
from janus_jax.interop.conversion.names import OFFICIAL
from janus_jax.models import JanusModel, causal_mask, init_cache, init_params

pytestmark = pytest.mark.heavy

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
TOLERANCE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model():
    return JanusModel(config_from_official(json.loads((GOLDEN / "config.json").read_text())))


@pytest.fixture(scope="module")
def state():
    return load_file(GOLDEN / "model.safetensors")


@pytest.fixture(scope="module")
def variables(model, state):
    params = params_from_torch(state, model.config, "float32")
    return {"params": jax.tree.map(jnp.asarray, params)}


@pytest.fixture(scope="module")
def apply(model, variables):
    """apply(method, *args): the model with the official weights, compiled."""

    @functools.partial(jax.jit, static_argnames="method")
    def run(variables, method, args):
        return model.apply(variables, *args, method=method)

    return lambda method, *args: run(variables, method, args)


def close(native, theirs):
    np.testing.assert_allclose(np.asarray(native), theirs, rtol=0, atol=TOLERANCE)


def nhwc(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


def test_understanding_encoder(apply, expected):
    pixels = nhwc(expected["pixel_values"])
    close(apply("siglip_features", pixels), expected["siglip_features"])
    close(apply("embed_images", pixels), expected["und_embeds"])


def understanding_inputs(apply, expected):
    text = np.array(apply("embed_text", jnp.asarray(expected["und_input_ids"])))
    images = np.asarray(apply("embed_images", nhwc(expected["pixel_values"])))
    slots = expected["und_image_mask"]
    text[slots] = images.reshape(-1, images.shape[-1])
    attended = expected["und_attention_mask"].astype(bool)
    return jnp.asarray(text), attended, np.maximum(np.cumsum(attended, 1) - 1, 0)


def test_understanding_logits(apply, expected):
    embeds, attended, positions = understanding_inputs(apply, expected)
    mask = causal_mask(embeds.shape[1]) & attended[:, None, :]
    hidden, cache = apply("decode", embeds, positions, mask)
    assert cache is None
    logits = np.asarray(apply("text_logits", hidden))
    assert logits.dtype == np.float32
    close(logits[attended], expected["und_logits"][attended])


def greedy(model, variables, embeds, attended, positions, steps, choose, embed):
    """Prefill, then one token at a time: the choices [B, steps] and the first and last logits."""
    length = embeds.shape[1]

    @jax.jit
    def decode(embeds, positions, mask, cache, index):
        arguments = (embeds, positions, mask, cache, index)
        hidden, cache = model.apply(variables, *arguments, method="decode")
        token, logits = choose(hidden[:, -1])
        return token, logits, embed(token)[:, None], cache

    slots = np.pad(attended, ((0, 0), (0, steps)))
    mask = np.pad(causal_mask(length) & attended[:, None, :], ((0, 0), (0, 0), (0, steps)))
    cache = init_cache(model.config, len(embeds), length + steps, jnp.float32)
    token, first, embeds, cache = decode(embeds, positions, mask, cache, 0)
    tokens, logits = [token], first
    for index in range(length, length + steps - 1):
        slots = slots | (np.arange(length + steps) == index)  # a new array: jax may alias the old
        position = positions[:, -1:] + 1 + index - length
        token, logits, embeds, cache = decode(embeds, position, slots[:, None], cache, index)
        tokens.append(token)
    return np.stack(tokens, 1), first, logits


def test_understanding_greedy(model, variables, apply, expected):
    embeds, attended, positions = understanding_inputs(apply, expected)

    def choose(hidden):
        logits = model.apply(variables, hidden, method="text_logits")
        return jnp.argmax(logits, -1), logits

    def embed(token):
        return model.apply(variables, token, method="embed_text")

    steps = expected["und_greedy"].shape[1]
    tokens, _, _ = greedy(model, variables, embeds, attended, positions, steps, choose, embed)
    np.testing.assert_array_equal(tokens, expected["und_greedy"])


def generate_codes(model, variables, expected, prompts):
    """Greedy codes under guidance for prompts of any lengths in one left-padded batch."""
    pad, weight = int(expected["gen_pad_id"]), float(expected["gen_cfg_weight"])
    longest = max(map(len, prompts))
    ids = np.full((2 * len(prompts), longest), pad)
    attended = np.zeros(ids.shape, bool)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        attended[[row, row + len(prompts)], start:] = True
        ids[row, start:] = prompt
        # Unconditional: same length, everything but the first and last token is an ATTENDED pad.
        ids[row + len(prompts), [start, -1]] = prompt[[0, -1]]
    positions = np.maximum(np.cumsum(attended, 1) - 1, 0)

    def choose(hidden):
        logits = model.apply(variables, hidden, method="image_logits")
        conditional, unconditional = jnp.split(logits, 2)
        guided = unconditional + weight * (conditional - unconditional)
        return jnp.tile(jnp.argmax(guided, -1), 2), guided

    def embed(codes):
        return model.apply(variables, codes, method="embed_codes")

    steps = model.config.vq.num_codes
    embeds = model.apply(variables, jnp.asarray(ids), method="embed_text")
    codes, first, last = greedy(model, variables, embeds, attended, positions, steps, choose, embed)
    return codes[: len(prompts)], first, last


def test_generation(model, variables, apply, expected):
    prompts = expected["gen_prompt_ids"]
    codes, first, last = generate_codes(model, variables, expected, prompts)
    np.testing.assert_array_equal(codes, expected["gen_codes_greedy"])
    close(first, expected["gen_cfg_logits_first"])
    close(last, expected["gen_cfg_logits_last"])

    pixels = np.asarray(apply("decode_codes", jnp.asarray(codes)))
    images = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    difference = np.abs(images.astype(int) - expected["gen_pixels_uint8"])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # truncation at the boundary


def test_short_prompts_batched_with_long_ones(model, variables, expected):
    prompts = [*expected["gen_prompt_ids"], *expected["short_prompt_ids"]]
    codes, _, _ = generate_codes(model, variables, expected, prompts)
    np.testing.assert_array_equal(codes[:2], expected["gen_codes_greedy"])
    np.testing.assert_array_equal(codes[2:], expected["short_codes_greedy"])


def test_image_tokenizer(apply, expected):
    image = nhwc(expected["vq_image"])
    np.testing.assert_array_equal(apply("encode_codes", image), expected["vq_codes"])
    decoded = np.moveaxis(expected["vq_decoded"], 1, -1)
    close(apply("decode_codes", jnp.asarray(expected["vq_codes"])), decoded)


def test_image_tokenizer_through_im2col(model, variables, expected):
    vq = model.config.vq.replace(conv_impl="im2col")
    other = JanusModel(model.config.replace(vq=vq))
    forward = jax.jit(lambda image: other.apply(variables, image, method="vq_forward"))
    out = forward(nhwc(expected["vq_image"]))
    np.testing.assert_array_equal(out["codes"], expected["vq_codes"])
    close(out["quantized"], np.moveaxis(expected["vq_quant"], 1, -1))
    close(out["reconstruction"], np.moveaxis(expected["vq_decoded"], 1, -1))


def test_conversion_is_reversible(model, state):
    params = params_from_torch(state, model.config)
    back = params_to_torch(params, model.config)
    assert set(state) - set(back) == {name for name in state if OFFICIAL.is_dropped(name)}
    for name, value in back.items():
        assert value.dtype == state[name].dtype  # bfloat16, not widened on the way
        np.testing.assert_array_equal(value, state[name])


def test_conversion_to_scanned_layers(model, state):
    config = model.config.replace(scan_layers=True)
    params = params_from_torch(state, config, "float32")
    want = jax.eval_shape(lambda key: init_params(JanusModel(config), key), jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(want)
    assert [a.shape for a in jax.tree.leaves(params)] == [a.shape for a in jax.tree.leaves(want)]
    layers = params["decoder"]["layers"]["mlp"]["up_proj"]["kernel"]
    second = state["language_model.model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(layers[1], second.T.astype("float32"))


def test_conversion_reports_every_problem_at_once(model, state):
    bad = dict(state)
    del bad["language_model.lm_head.weight"]
    bad["language_model.model.layers.7.mlp.up_proj.weight"] = np.zeros((160, 64))
    bad["surprise"] = np.zeros(1)
    bad["gen_embed.weight"] = np.zeros((8, 256))
    with pytest.raises(UserError) as error:
        params_from_torch(bad, model.config)
    message = str(error.value)
    assert "1 missing: language_model.lm_head.weight" in message
    assert "2 unexpected: language_model.model.layers.7.mlp.up_proj.weight, surprise" in message
    assert "1 mis-shaped: gen_embed.weight is [8, 256] but should be [256, 8]" in message
    assert "\n" not in message
