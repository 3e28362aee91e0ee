"""A model small enough for any test, its processor, and the same numbers without engine and cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from janus_jax import models
from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.inference import Janus, make_sampling_params
from janus_jax.inference.batching import deduplicate_prompts, left_pad
from janus_jax.inference.generator import Request
from janus_jax.inference.image_engine import Prompts
from janus_jax.processing import (
    Processor,
    ProcessorConfig,
    build_word_tokenizer,
    understanding_pixels,
)

CONFIG = JanusConfig(
    "test",
    SigLIPConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2),
    VQConfig(
        image_size=16,
        codebook_size=40,
        codebook_dim=4,
        z_channels=8,
        ch=8,
        ch_mult=(1, 2),
        num_res_blocks=1,
        norm_groups=4,
        patch_size=2,
    ),
    DecoderConfig(
        vocab_size=48, width=32, ffw=64, layers=2, heads=4, kv_heads=2, head_dim=8, max_position=64
    ),
)
WORDS = ["a red green cat dog car on the left right of what is it ? yes no ."]
LONGER = CONFIG.replace(decoder=CONFIG.decoder.replace(max_position=400))
SHORT, LONG = "a cat", "a red cat on the left of a green car on the right of the dog"
CODES = np.random.default_rng(3).integers(0, 40, (2, 16))


@functools.cache
def random_params(config: JanusConfig) -> dict:
    """Random parameters of unit gain; drawn by NumPy, since compiling `init_params` is slow."""
    model, rng = models.JanusModel(config), np.random.default_rng(0)

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:
            return noise * np.prod(leaf.shape[:-1]) ** -0.5
        return 0.1 * noise + (path[-1].key == "scale")

    shapes = jax.eval_shape(lambda key: models.init_params(model, key), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    # Sharper heads have greedy choices that rounding cannot flip, and inputs that matter.
    for part, name in (("decoder", "lm_head"), ("image_head", "head"), ("und_adaptor", "fc2")):
        params[part][name]["kernel"] *= 5
    for part in (params["decoder"]["embed"], params["gen_embed"]):
        part["embedding"] *= 10
    return params


def make_processor(config: JanusConfig = CONFIG, **fields) -> Processor:
    """Words instead of a vocabulary of a release; `fields` are those of `ProcessorConfig`."""
    return Processor(ProcessorConfig.from_model(config, **fields), build_word_tokenizer(WORDS))


def make_janus(config: JanusConfig = CONFIG, fields: dict | None = None, **options) -> Janus:
    """The model with random parameters; `fields` are those of the processor."""
    return Janus(config, random_params(config), make_processor(config, **fields or {}), **options)


GUIDED = {"cfg_weight": 2.0, "temperature": 0.8}


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    return Image.fromarray(pixels)


# The engine's numbers: directly, and computed without it


def draw_codes(janus, prompts, seed=0, **settings):
    """Codes of one picture a prompt, straight from the engine."""
    sampling, static = make_sampling_params(CONFIG.vq.codebook_size, **settings)
    requests = [Request(janus.processor.generation_ids(p), 0) for p in prompts]
    plan, keys = janus.generator().arrange(requests, 64, static.guided, jax.random.key(seed))
    codes, _ = janus.image_engine.draw(janus.weights, plan, keys, sampling, static=static)
    return np.asarray(codes)[: len(prompts)]


def score(engine, weights, processor, codes, weight=2.0):
    """Guided logits of two prompts on given codes [2, N]."""
    requests = [processor.generation_ids(p) for p in (SHORT, LONG)]
    prompts, rows = deduplicate_prompts(requests, 2, True, processor.tokenizer.pad_id)
    plan = Prompts(*left_pad(prompts, len(prompts), 0), np.array(rows))
    sampling, _ = make_sampling_params(CONFIG.vq.codebook_size, weight)
    return np.asarray(engine.score(weights, plan, codes, sampling))


@functools.cache
def uncached_logits(janus, prompt):
    """A function (codes drawn so far, guidance) -> guided logits of all codes."""
    model, params = models.JanusModel(janus.config), {"params": random_params(CONFIG)}
    cond = janus.processor.generation_ids(prompt)
    ids = jnp.array([cond, janus.processor.unconditional_ids(cond)])
    T, length = len(cond), len(cond) + CONFIG.vq.num_codes - 1

    @jax.jit
    def logits(codes, weight):  # causality hides the codes that are not drawn yet
        images = model.apply(params, jnp.stack([codes, codes]), method="embed_codes")
        text = model.apply(params, ids, method="embed_text")
        hidden, _ = model.apply(
            params,
            jnp.concatenate([text, images], axis=1),
            jnp.broadcast_to(jnp.arange(length), (2, length)),
            jnp.broadcast_to(models.causal_mask(length), (2, length, length)),
            method="decode",
        )
        both = model.apply(params, hidden[:, T - 1 :], method="image_logits")
        return both[1] + weight * (both[0] - both[1])

    return logits


def next_ids(janus, ids, pictures):
    """The most likely id after each position, from one pass without a cache."""
    length = len(ids)
    ids = [*ids, *[0] * (LONGER.decoder.max_position - length)]  # one shape for all
    model, params = models.JanusModel(LONGER), {"params": random_params(LONGER)}
    apply = lambda method, *args: model.apply(params, *args, method=method)
    embeds = np.array(apply("embed_text", jnp.asarray(ids)[None]))
    slots = np.asarray(ids) == janus.processor.tokenizer.image_id
    if pictures:
        pixels = np.stack([understanding_pixels(p, LONGER.siglip.image_size) for p in pictures])
        features = np.asarray(apply("embed_images", jnp.asarray(pixels / 127.5 - 1, jnp.float32)))
        embeds[0, slots] = features.reshape(-1, features.shape[-1])
    mask = models.causal_mask(len(ids))
    hidden, _ = apply("decode", jnp.asarray(embeds), jnp.arange(len(ids))[None], mask)
    return np.asarray(jnp.argmax(apply("text_logits", hidden), -1))[0, :length]
