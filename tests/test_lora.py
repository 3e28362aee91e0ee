"""Adapters: where they are, that they change nothing at first, and that merging them changes nothing at last."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import CONFIG, random_params
from smoke import tiny

from janus_jax.adapters import (
    LORA_PARAMS,
    LoraOptions,
    add_lora,
    has_lora,
    lora_shapes,
    merge_lora,
    split_lora,
)
from janus_jax.checkpoints import LazyArray, StageCheckpoints, load_leaves, load_model
from janus_jax.config import PRESETS
from janus_jax.errors import UserError
from janus_jax.interop.adapters import read_adapter
from janus_jax.models import JanusModel, causal_mask, init_params, stack_layers, unstack_layers
from janus_jax.param_groups import merge_params, split_params
from janus_jax.run import build, train
from janus_jax.training.metrics import read_metrics

SMALL = LoraOptions(rank=2, alpha=4.0)
MODEL = JanusModel(CONFIG)


def adapted(options=SMALL, scanned=False, seed=0):
    """Parameters with an adapter whose b is not zero."""
    params = random_params(CONFIG)
    if scanned:
        params = stack_layers(params, CONFIG)
    params = add_lora(params, options, jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def fill(path, x):
        name = path[-1].key
        return jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) if name == "lora_b" else x

    return jax.tree_util.tree_map_with_path(fill, params)


@functools.partial(jax.jit, static_argnums=0)
def logits(model, params, ids):
    """Of both heads, for rows of ids."""

    def both(module):
        rows, length = ids.shape
        positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
        mask = jnp.broadcast_to(causal_mask(length), (rows, length, length))
        hidden, _ = module.decode(module.embed_text(ids), positions, mask)
        return module.text_logits(hidden), module.image_logits(hidden)

    return model.apply({"params": params}, method=both)


IDS = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 9)))


def test_an_adapter_changes_nothing_until_it_is_trained():
    params = jax.tree.map(np.float32, random_params(CONFIG))
    with_adapter = add_lora(params, SMALL, jax.random.key(0))
    for one, other in zip(
        logits(MODEL, params, IDS), logits(MODEL, with_adapter, IDS), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    adapter, rest = split_lora(with_adapter)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, rest, params))
    assert has_lora(adapter) and not has_lora(rest) and split_lora(params) == ({}, params)
    merged = merge_lora(with_adapter)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), merged, params))


@pytest.mark.parametrize("targets", [LoraOptions().targets, ("decoder/**", "image_head/**")])
def test_what_is_merged_computes_what_the_adapter_did(targets):
    params = adapted(dataclasses.replace(SMALL, targets=targets))
    merged = merge_lora(params)
    assert not has_lora(merged)
    for one, other, base in zip(
        *(logits(MODEL, p, IDS) for p in (params, merged, random_params(CONFIG))), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.abs(one - base).max() > 0.1


def test_scanned_layers_have_the_adapter_of_unrolled_ones():
    params = adapted()
    stacked = stack_layers(params, CONFIG)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, adapted(scanned=True))
    scanned = JanusModel(CONFIG.replace(scan_layers=True))
    for one, other in zip(logits(MODEL, params, IDS), logits(scanned, stacked, IDS), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    both = merge_lora(stacked), stack_layers(merge_lora(params), CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both)


@pytest.mark.parametrize("scanned", [False, True])
def test_every_factor_gets_a_gradient(scanned):
    params = adapted(scanned=scanned)
    model = JanusModel(CONFIG.replace(scan_layers=scanned), remat="dots" if scanned else "none")
    adapter, rest = split_params(params, LORA_PARAMS)
    loss = lambda a: sum((x**2).mean() for x in logits(model, merge_params(rest, a), IDS))
    for path, gradient in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(adapter)):
        layers = gradient if scanned else gradient[None]
        assert (np.abs(layers).max(axis=(1, 2)) > 0).all(), path


@pytest.mark.parametrize(
    ("name", "count"), [("janus-pro-1b", 15_138_816), ("janus-pro-7b", 37_478_400)]
)
@pytest.mark.parametrize("scanned", [False, True])
def test_adapters_of_the_released_models(name, count, scanned):
    config = PRESETS[name].replace(scan_layers=scanned)
    shapes = jax.eval_shape(lambda k: init_params(JanusModel(config), k), jax.random.key(0))
    adapter = lora_shapes(shapes, LoraOptions(rank=16))
    trained, rest = split_params(adapter, LORA_PARAMS)
    assert sum(x.size for x in jax.tree.leaves(trained)) == count
    assert sum(x.size for x in jax.tree.leaves(rest)) == 7 * config.decoder.layers  # scales
    projections = {path[-2].key for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    wanted = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
    assert projections == set(wanted.split()) and set(adapter) == {"decoder"}


def test_a_lazy_kernel_stays_lazy():
    params = jax.tree.map(np.asarray, adapted(scanned=True))
    lazy = jax.tree.map(lambda x: LazyArray(x.shape, x.dtype, lambda: x), params)
    merged, wanted = merge_lora(lazy), merge_lora(params)
    kernel = merged["decoder"]["layers"]["attn"]["q_proj"]["kernel"]
    assert isinstance(kernel, LazyArray)
    expected = wanted["decoder"]["layers"]["attn"]["q_proj"]["kernel"]
    assert isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(kernel.load(), expected)
    np.testing.assert_array_equal(kernel[1].load(), expected[1])
    jax.tree.map(np.testing.assert_array_equal, load_leaves(merged), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rank=0), r"lora\.rank must be a whole number above 0, not 0"),
        (dict(rank=2.5), r"lora\.rank must be a whole number"),
        (dict(alpha=float("nan")), r"lora\.alpha must be a finite number above 0"),
        (dict(targets=()), r"lora\.targets must be patterns"),
        (dict(rnk=8), r"lora has no field 'rnk'\. Did you mean 'rank'"),
        (dict(targets=["decoder/*/attn/q_prj"]), r"'decoder/\*/attn/q_prj' matches no dense layer"),
        (dict(targets="decoder/embed"), r"'decoder/embed' matches no dense layer"),
        (
            dict(targets="decoder/*/attn/q_proj/kernel"),
            r"matches no dense layer \(.*\)\. Did you mean",
        ),
    ],
)
def test_what_cannot_be_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        add_lora(random_params(CONFIG), LoraOptions.of({"lora": options}), jax.random.key(0))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="have an adapter"):
        add_lora(adapted(), SMALL, jax.random.key(0))


# In a run


def lora_run(**fields):
    config = tiny(stage_order=("stage2",), **fields)
    stage = config.stages.stage2
    stage.steps, stage.trainable = 6, LORA_PARAMS
    with stage.unlocked():
        stage.options.lora = dict(rank=2, alpha=4.0, targets=LoraOptions().targets)
    config.log.update(save_every=3, log_every=1)
    return config


def saved(run, step):
    with StageCheckpoints(run / "checkpoints" / "stage2") as checkpoints:
        return checkpoints.restore_params(step)


def test_a_run_trains_the_adapter_alone_and_hands_on_the_sum(tmp_path):
    run = tmp_path / "run"
    train(lora_run(), run, quiet=True)
    first, last = (split_params(saved(run, step), LORA_PARAMS) for step in (3, 6))
    jax.tree.map(np.testing.assert_array_equal, first[1], last[1])  # not a bit of what is frozen
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), first[0], last[0])
    assert jax.tree.all(changed)
    # What samples is the sum, without a word of an adapter.
    loaded = load_model(run)
    whole = merge_params(*last)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, merge_lora(whole))
    assert not has_lora(loaded.params)
    # For PEFT, the adapter alone.
    own, _ = split_lora(unstack_layers(whole, loaded.config))
    found = read_adapter(run / "adapter" / "stage2", loaded.config)
    jax.tree.map(np.testing.assert_array_equal, found, own)
    report = (run / "report.md").read_text()
    assert "stage2" in report


def test_a_run_with_an_adapter_goes_on_as_if_nothing_had_been(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(lora_run(), whole, quiet=True)
    train(lora_run(stages__stage2__steps=3), parts, quiet=True)
    train(lora_run(), parts, quiet=True)
    jax.tree.map(np.testing.assert_array_equal, saved(whole, 6), saved(parts, 6))
    losses = lambda run: [(r["step"], r["loss"]) for r in read_metrics(run / "metrics.jsonl")]
    assert losses(parts) == losses(whole) and [step for step, _ in losses(whole)] == [*range(1, 7)]
    weights = [run / "adapter" / "stage2" / "adapter_model.safetensors" for run in (whole, parts)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_bad_adapter_is_said_before_anything_is_written(tmp_path):
    config = lora_run()
    config.stages.stage2.options.lora.targets = ("decoder/*/attn/qproj",)
    with pytest.raises(
        UserError, match=r"stages\.stage2: lora\.targets: .* matches no dense layer"
    ):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    config.stages.stage2.options.lora.rank = -1
    with pytest.raises(UserError, match=r"stage stage2: options\.lora\.rank"):
        build(config)
