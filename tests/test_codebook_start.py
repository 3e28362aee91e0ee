"""Where image codes enter and leave a decoder that has never seen them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from smoke import STAGES, tiny

from janus_jax.config import JANUS_TINY
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, init_params
from janus_jax.run import build, training_run
from janus_jax.training import start_from_codebook

pytestmark = pytest.mark.heavy

CONFIG = JANUS_TINY.replace(
    siglip=JANUS_TINY.siglip.replace(layers=1),
    vq=JANUS_TINY.vq.replace(codebook_size=64, z_channels=16, ch=16, norm_groups=4),
    decoder=JANUS_TINY.decoder.replace(
        width=32, ffw=64, layers=1, heads=2, kv_heads=2, head_dim=16
    ),
)


@pytest.fixture(scope="module")
def params():
    """Fresh parameters, but with biases that are not zero."""
    tree = init_params(JanusModel(CONFIG), jax.random.key(0))
    head = tree["image_head"]["head"]
    head = head | {"bias": 0.1 * jax.random.normal(jax.random.key(1), head["bias"].shape)}
    return tree | {"image_head": tree["image_head"] | {"head": head}}


def test_codes_start_where_the_codebook_has_them(params):
    codes, width = 64, CONFIG.decoder.width
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    book = np.asarray(params["vq"]["quantize"]["embedding"])
    quiet = jax.tree.map(np.zeros_like, params["image_head"]["head"])
    silent = params | {"image_head": params["image_head"] | {"head": quiet}}
    started = start_from_codebook(silent, jax.random.key(3))
    embedding = np.asarray(started["gen_embed"]["embedding"])
    np.testing.assert_allclose(embedding, unit(book) * book.shape[-1] ** 0.5, rtol=1e-5)
    # Two codes are as alike for the head as in the codebook.
    kernel = np.asarray(started["image_head"]["head"]["kernel"])
    assert kernel.shape == (width, len(book)) and len(book) >= codes
    alike = unit(book[:codes]) @ unit(book[:codes]).T
    np.testing.assert_allclose(kernel.T[:codes] @ kernel[:, :codes], alike, atol=1e-5)
    # What the head had stays, at half its size; nothing else changes.
    loud = start_from_codebook(params, jax.random.key(3))
    had = np.asarray(params["image_head"]["head"]["kernel"])
    np.testing.assert_allclose(loud["image_head"]["head"]["kernel"] - kernel, had / 2, atol=1e-5)
    same = {k for k in params if loud[k] is params[k]}
    assert same == set(params) - {"gen_embed", "image_head"}
    was = params["image_head"]["head"]["bias"]
    np.testing.assert_array_equal(loud["image_head"]["head"]["bias"], was)
    # The second of two equal codes cannot occur.
    twice = jnp.asarray(book).at[5].set(book[2]).at[9].set(book[2])
    merged = params | {"vq": params["vq"] | {"quantize": {"embedding": twice}}}
    bias = start_from_codebook(merged, jax.random.key(3))["image_head"]["head"]["bias"]
    assert np.flatnonzero(bias != was).tolist() == [5, 9] and (bias[jnp.array([5, 9])] < -5).all()
    assert loud["image_head"]["proj"] is params["image_head"]["proj"]


def starts_from_codebook(**fields):
    """Names of the stages whose image-code embedding starts from the codebook."""
    experiment = build(tiny(**fields))
    stages = experiment.stages
    return [s.name for s in stages if training_run._starts_from_codebook(experiment, s)]


def test_the_first_stage_that_draws_starts_from_a_codebook_of_the_same_run():
    order = ("stage0_vq", *STAGES)
    option = "init_gen_embed_from_codebook"
    assert starts_from_codebook() == []  # no image tokenizer is trained
    assert starts_from_codebook(stage_order=order) == ["stage1"]  # stage0_lm draws nothing
    assert starts_from_codebook(stage_order=("stage0_vq", "stage2", "stage3")) == ["stage2"]
    off = {"stages__stage1__options": {option: False}}
    assert starts_from_codebook(stage_order=order, **off) == []
    on = {"stages__stage2__options": {option: True}}
    assert starts_from_codebook(**on) == ["stage2"]
    with pytest.raises(UserError, match=f"{option} must be True or False"):
        build(tiny(stages__stage2__options={option: "yes"}))
