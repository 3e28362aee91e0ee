"""Parity with the official PyTorch implementation on a tiny recorded checkpoint."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from janus_jax.models import Janus, causal_mask, init_cache
from janus_jax.weights import config_from_official, params_from_official

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
    return Janus(config_from_official(json.loads((GOLDEN / "config.json").read_text())))


@pytest.fixture(scope="module")
def apply(model):
    """apply(method, *args): the model with the official weights in float32, compiled."""
    state = load_file(GOLDEN / "model.safetensors")
    params = params_from_official(state, model.config, "float32")
    variables = {"params": jax.tree.map(jnp.asarray, params)}

    @functools.partial(jax.jit, static_argnames="method")
    def run(variables, method, args):
        return model.apply(variables, *args, method=method)

    return lambda method, *args: run(variables, method, args)


def close(ours, theirs, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


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


def greedy(apply, cache, embeds, attended, positions, steps, choose, embed):
    """Prefill, then one token at a time; returns the choices [B, steps] and first and last logits."""
    rows, length = attended.shape
    size = cache[0]["k"].shape[1]
    slots = np.zeros((rows, size), bool)
    slots[:, :length] = attended
    mask = np.zeros((rows, length, size), bool)
    mask[:, :, :length] = np.asarray(causal_mask(length)) & attended[:, None, :]
    hidden, cache = apply("decode", embeds, positions, mask, cache, 0)
    tokens, logits = [], []
    for step in range(steps):
        token, scores = choose(hidden[:, -1])
        tokens.append(np.asarray(token))
        logits.append(np.asarray(scores))
        slots[:, length + step] = True
        position = positions[:, -1:] + 1 + step
        hidden, cache = apply(
            "decode", embed(token)[:, None], position, slots[:, None], cache, length + step
        )
    return np.stack(tokens, 1), logits[0], logits[-1]


def test_understanding_greedy(apply, model, expected):
    embeds, attended, positions = understanding_inputs(apply, expected)
    rows, length = attended.shape
    steps = expected["und_greedy"].shape[1]

    def choose(hidden):
        logits = apply("text_logits", hidden)
        return jnp.argmax(logits, -1), logits

    cache = init_cache(model.config, rows, length + steps, jnp.float32)
    tokens, _, _ = greedy(
        apply, cache, embeds, attended, positions, steps, choose, lambda t: apply("embed_text", t)
    )
    np.testing.assert_array_equal(tokens, expected["und_greedy"])


def generate_codes(apply, model, expected, prompts):
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
        conditional, unconditional = jnp.split(apply("image_logits", hidden), 2)
        logits = unconditional + weight * (conditional - unconditional)
        return jnp.tile(jnp.argmax(logits, -1), 2), logits

    steps = model.config.vq.num_codes
    cache = init_cache(model.config, len(ids), longest + steps, jnp.float32)
    embeds = apply("embed_text", jnp.asarray(ids))
    codes, first, last = greedy(
        apply, cache, embeds, attended, positions, steps, choose, lambda c: apply("embed_codes", c)
    )
    return codes[: len(prompts)], first, last


def test_generation(apply, model, expected):
    prompts = expected["gen_prompt_ids"]
    codes, first, last = generate_codes(apply, model, expected, prompts)
    np.testing.assert_array_equal(codes, expected["gen_codes_greedy"])
    # Guidance multiplies rounding by 2 * weight - 1 = 9.
    close(first, expected["gen_cfg_logits_first"], 5 * TOLERANCE)
    close(last, expected["gen_cfg_logits_last"], 5 * TOLERANCE)

    pixels = np.asarray(apply("decode_codes", jnp.asarray(codes)))
    images = np.clip((pixels + 1) / 2 * 255, 0, 255).astype(np.uint8)
    difference = np.abs(images.astype(int) - expected["gen_pixels_uint8"])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # truncation at the boundary


def test_short_prompts_batched_with_long_ones(apply, model, expected):
    prompts = [*expected["gen_prompt_ids"], *expected["short_prompt_ids"]]
    codes, _, _ = generate_codes(apply, model, expected, prompts)
    np.testing.assert_array_equal(codes[:2], expected["gen_codes_greedy"])
    np.testing.assert_array_equal(codes[2:], expected["short_codes_greedy"])


@pytest.mark.parametrize("conv_impl", ["lax", "im2col"])
def test_image_tokenizer(apply, model, expected, conv_impl):
    image = nhwc(expected["vq_image"])
    np.testing.assert_array_equal(apply("encode_codes", image), expected["vq_codes"])
    out = apply("vq_forward", image)
    np.testing.assert_array_equal(out["codes"], expected["vq_codes"])
    close(out["quantized"], np.moveaxis(expected["vq_quant"], 1, -1))
    decoded = np.moveaxis(expected["vq_decoded"], 1, -1)
    close(apply("decode_codes", jnp.asarray(expected["vq_codes"])), decoded)
    close(out["reconstruction"], decoded)
