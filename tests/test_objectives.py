"""What objectives add to a stage, and stages that train parts of groups."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.config import JANUS_TINY
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, init_params
from janus_jax.parallel import make_mesh, shard_params
from janus_jax.training import (
    OBJECTIVES,
    MetricsLog,
    Stage,
    check_trainable,
    evaluated_params,
    init_state,
    make_objective,
    make_step,
    run_stage,
)
from janus_jax.training.objectives.base import Objective

pytestmark = pytest.mark.heavy

CONFIG = JANUS_TINY.replace(
    siglip=JANUS_TINY.siglip.replace(width=32, layers=1, heads=2),
    vq=JANUS_TINY.vq.replace(codebook_size=16, z_channels=16, ch=16, norm_groups=4),
    decoder=JANUS_TINY.decoder.replace(
        width=32, ffw=64, layers=2, heads=2, kv_heads=2, head_dim=16, vocab_size=64
    ),
)
MODEL = JanusModel(CONFIG)
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])
VQ = {"commitment": 0.25, "warmup": 2, "revive_every": 2, "fixed_from": 5}


class Smallness(Objective):
    """Pulls the decoder's norm scale to the batch, counts its steps, and halves it after two of them."""

    def loss(self, model, params, batch, phase):
        scale = params["decoder"]["final_norm"]["scale"]
        loss = jnp.mean(jnp.square(scale - batch["x"]))
        return loss, ({"loss": loss, "tokens": jnp.float32(1)}, {"seen": batch["x"]})

    def init(self, trainable):
        return {"seen": jnp.zeros(())}

    def update_extra(self, extra, aux, phase):
        seen = extra["seen"] + jnp.sum(aux["seen"])
        return {"seen": seen}, {"seen": seen, "late": jnp.float32(phase == "late")}

    def after_update(self, before, after, phase):
        return before if phase == "late" else after

    def before_step(self, state, done):
        if done != 2:
            return state
        return state.replace(trainable=jax.tree.map(lambda x: x / 2, state.trainable))

    def phase(self, done):
        return "late" if done >= 2 else ""


@pytest.fixture
def smallness():
    if "smallness" not in OBJECTIVES.names:
        OBJECTIVES.register("smallness", Smallness)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda key: init_params(MODEL, key), jax.random.key(0))
    return jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)


def stage(objective="smallness", trainable=("decoder/final_norm",), **fields):
    values = dict(steps=4, learning_rate=0.1, warmup_steps=0, batch_size=1, ratio=(0, 1, 0))
    return Stage("own", objective, trainable, **{**values, **fields})


class Ones:
    """Batches whose position is saved."""

    def __init__(self):
        self.at = 0

    def __next__(self):
        self.at += 1
        return {"x": np.zeros(1, np.float32) + self.at}

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.at = state["at"]


def run(directory, params, steps, **fields):
    log = MetricsLog(directory)
    try:
        own = stage(steps=steps, **fields)
        end = run_stage(
            own,
            make_step(MODEL, own, 0),
            shard_params(params, ONE_DEVICE),
            Ones(),
            directory / "checkpoints",
            log,
            ONE_DEVICE,
            save_every=1,
            quiet=True,
        )
    finally:
        log.close()
    return end, [json.loads(line) for line in (directory / "metrics.jsonl").open()]


def test_an_objective_of_ones_own_has_all_its_hooks_called(smallness, params, tmp_path):
    end, records = run(tmp_path, params, 4)
    assert [r["seen"] for r in records] == [1, 3, 6, 10]
    assert [r["late"] for r in records] == [0, 0, 1, 1]
    # Steps 3 and 4 are undone; what they start from was halved.
    moved = np.asarray(end["decoder"]["final_norm"]["scale"])
    assert np.ptp(moved) == 0 and 0.4 < moved[0] < 0.7
    assert end["decoder"]["layers_0"]["mlp_norm"]["scale"][0] == 1


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_stage_that_trains_part_of_a_group_is_resumed(smallness, params, tmp_path, ema):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, wanted = run(tmp_path / "whole", params, 4, ema_decay=ema)
    run(tmp_path / "parts", params, 2, ema_decay=ema)
    parts, found = run(tmp_path / "parts", params, 4, ema_decay=ema)
    assert [r["loss"] for r in found] == [r["loss"] for r in wanted]
    jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_only_what_a_pattern_names_trains_beside_frozen_ones(params):
    def loss_step(trainable):
        own = stage("janus", trainable, ratio=(0.0, 1.0, 0.0))
        state, frozen = init_state(own, params)
        return state, frozen

    state, frozen = loss_step(("decoder/layers_*/attn", "und_adaptor"))
    assert state.trainable.keys() == {"decoder", "und_adaptor"}
    assert state.trainable["decoder"].keys() == {"layers_0", "layers_1"}
    assert state.trainable["decoder"]["layers_0"].keys() == {"attn"}
    assert state.opt_state[1][0].mu.keys() == {"decoder", "und_adaptor"}
    assert "attn" not in frozen["decoder"]["layers_0"] and "mlp" in frozen["decoder"]["layers_0"]
    full = evaluated_params(state, frozen)
    assert jax.tree.structure(full) == jax.tree.structure(params)
    # Leaves that an adapter puts next to frozen ones.
    layer = params["decoder"]["layers_0"]
    attn = layer["attn"]
    adapted = attn | {"q_proj": attn["q_proj"] | {"lora_a": jnp.zeros((32, 4))}}
    tree = params | {
        "decoder": params["decoder"] | {"layers_0": layer | {"attn": adapted}},
    }
    state, frozen = init_state(stage("janus", ("**/lora_*",), ratio=(0.0, 1.0, 0.0)), tree)
    assert len(jax.tree.leaves(state.trainable)) == 1
    assert jax.tree.structure(evaluated_params(state, frozen)) == jax.tree.structure(tree)


def test_the_heads_of_siglip_are_made_and_stripped_by_it(params):
    objective = make_objective("siglip", {"text_length": 24})
    extra = jax.eval_shape(functools.partial(objective.extra_params, MODEL), jax.random.key(1))
    assert extra.keys() == {"aux"} and extra["aux"]["text_tower"]["positions"].shape == (24, 32)
    assert objective.strip({**params, **extra}) == params
    for name in ("janus", "vq"):
        assert make_objective(name, {}).extra_params(MODEL, jax.random.key(1)) == {}
        assert make_objective(name, {}).strip(params) == params


@pytest.mark.parametrize(
    ("objective", "trainable", "message"),
    [
        ("janus", ("decoder/layer_0",), r"own: .*Did you mean 'decoder/layers_0'"),
        ("janus", ("siglip/**/kernl",), r"own: no parameter matches"),
        ("janus", ("aux",), "no parameter matches 'aux'"),
        ("vq", ("vq/decoder",), "vq/quantize/embedding"),
        ("vq", ("vq/quantize", "vq/decoder"), None),
        ("siglip", ("aux", "siglip/blocks_*/**/kernel"), None),
    ],
)
def test_what_a_stage_trains_is_checked_on_shapes(objective, trainable, message):
    fields = {"janus": dict(ratio=(1.0, 0.0, 0.0)), "vq": dict(options=VQ), "siglip": {}}
    own = stage(objective, trainable, **fields[objective])
    if message is None:
        check_trainable(MODEL, [own])
        return
    with pytest.raises(UserError, match=message):
        check_trainable(MODEL, [own])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "vqq"}, "Did you mean 'vq'"),
        ({"objective": "vq", "trainable": ()}, "trainable names no parameters"),
    ],
)
def test_impossible_stages_are_user_errors(fields, message):
    with pytest.raises(UserError, match=f"stage own: .*{message}"):
        stage(**fields)
    with pytest.raises(UserError, match="no objective 'vqq'"):
        make_objective("vqq", {})
