"""Stages: what each may change, Table 2 of Janus-Pro, one device or eight, stopping and going on."""

import functools
import importlib
import math

import jax
import numpy as np
import pytest
from dummies_data import TOKENIZER, DummySource

from janus_jax.config import JANUS_TINY
from janus_jax.data import (
    TASKS,
    PackedShape,
    PairEncoder,
    PictureEncoder,
    SequenceEncoder,
    WeightedSource,
    mixed_batches,
    unpacked_batches,
)
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, init_params
from janus_jax.parallel import global_batch, make_mesh, shard_params, state_shardings
from janus_jax.processing import Processor, ProcessorConfig
from janus_jax.training import (
    TRAINABLE,
    MetricsLog,
    Stage,
    evaluated_params,
    init_state,
    make_step,
    run_stage,
    select_stages,
    split_params,
)
from janus_jax.training.objectives.siglip import init_heads

pytestmark = pytest.mark.heavy

CONFIG = JANUS_TINY.replace(
    siglip=JANUS_TINY.siglip.replace(width=32, layers=1, heads=2),
    vq=JANUS_TINY.vq.replace(codebook_size=64, z_channels=16, ch=16, norm_groups=4),
    decoder=JANUS_TINY.decoder.replace(
        width=32, ffw=64, layers=1, heads=2, kv_heads=2, head_dim=16
    ),
)
MODEL = JanusModel(CONFIG)
PROCESSOR = Processor(ProcessorConfig.from_model(CONFIG), TOKENIZER)
ROW = PackedShape(tokens=160, targets=96, und_images=2, gen_images=2)
GROUPS = {"siglip", "und_adaptor", "gen_embed", "gen_adaptor", "image_head", "decoder", "vq"}
ONE_DEVICE = make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def params():
    """Host arrays, so that a step which donates its state cannot hurt them."""
    shapes = jax.eval_shape(lambda key: init_params(MODEL, key), jax.random.key(0))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        norm = path[-1].key == "scale"
        return norm + 0.1 * rng.standard_normal(leaf.shape, np.float32)

    tree = jax.tree_util.tree_map_with_path(draw, shapes)
    aux = jax.jit(lambda key: init_heads(MODEL, key, 24))(jax.random.key(1))
    return tree | {"aux": jax.device_get(aux)}


def stage(name, **fields):
    """A stage of the smallest size with the freeze set `name`."""
    objective = name if name in ("vq", "siglip") else "janus"
    options = {"commitment": 0.25, "warmup": 2, "revive_every": 2, "fixed_from": 6}
    values = dict(
        name=name,
        objective=objective,
        trainable=TRAINABLE[name],
        steps=8,
        learning_rate=1e-3,
        warmup_steps=0,
        batch_size=8,
        ratio=(2.0, 3.0, 5.0) if objective == "janus" else (0, 0, 0),
        options=options if objective == "vq" else {},
        ema_decay=0.9 if name in ("vq", "siglip") else 0.0,
    )
    return Stage(**{**values, **fields})


@functools.cache
def step_of(name):
    """Compiled once for all tests."""
    return make_step(MODEL, stage(name), TOKENIZER.pad_id)


def start(name, params, mesh=ONE_DEVICE):
    """(state, frozen parameters), laid out as in a run: what is compiled once serves all tests."""
    state, frozen = init_state(stage(name), shard_params(params, mesh))
    return jax.device_put(state, state_shardings(state, mesh)), frozen


def batches(name, seed=0):
    if name in ("vq", "siglip"):
        task = {"vq": "pictures", "siglip": "pairs"}[name]
        encode = PictureEncoder(PROCESSOR) if name == "vq" else PairEncoder(PROCESSOR, 24)
        sources = [WeightedSource(task, DummySource(task, seed=seed, side=48))]
        return iter(unpacked_batches(sources, encode, 4 if name == "vq" else 6, seed=seed))
    sources = [WeightedSource(t, DummySource(t, seed=seed, side=48)) for t in TASKS]
    encode = SequenceEncoder(PROCESSOR, ROW)
    return iter(mixed_batches(sources, (2.0, 3.0, 5.0), encode, ROW, 8, seed=seed))


def leaves(tree):
    return {jax.tree_util.keystr(p): np.array(x) for p, x in jax.tree.leaves_with_path(tree)}


# Freeze sets


def test_the_freeze_sets_are_the_papers():
    everything_but = lambda *groups: GROUPS - set(groups)
    # Janus-Pro, Table 2 and figure 3; the VQ tokenizer is frozen in all three stages.
    adaptors = {"und_adaptor", "gen_adaptor", "gen_embed", "image_head"}
    assert set(TRAINABLE["stage1"]) == adaptors
    assert set(TRAINABLE["stage2"]) == everything_but("siglip", "vq")
    assert set(TRAINABLE["stage3"]) == everything_but("vq")
    assert set(TRAINABLE["vq"]) == {"vq"}
    assert set(TRAINABLE["siglip"]) == {"siglip", "aux"}
    assert set(TRAINABLE["lm"]) == {"decoder"}


# Of an adapter `test_lora` says the same: its leaves are not in these parameters.
@pytest.mark.parametrize("name", [n for n in TRAINABLE if n != "lora"])
def test_a_step_changes_what_trains_and_nothing_else(name, params):
    before = leaves(params)
    state, frozen = start(name, params)
    # The image tokenizer's codebook has no gradient before the end of its warm-up.
    done = 2 if name == "vq" else 0
    batch = global_batch(next(batches(name)), ONE_DEVICE)
    state, metrics = step_of(name)(state, frozen, batch, done)
    assert int(state.step) == 1 and math.isfinite(float(metrics["loss"]))
    after = leaves(frozen | state.trainable)
    assert after.keys() == before.keys()
    same = {path for path in before if np.array_equal(before[path], after[path])}
    group = lambda path: path.split("'")[1]
    for path in before:
        assert group(path) in TRAINABLE[name] or path in same, path
    # At least one leaf of every group that trains moved; in fact nearly all did.
    trainable = [path for path in before if group(path) in TRAINABLE[name]]
    assert {group(p) for p in trainable if p not in same} == set(TRAINABLE[name])
    assert sum(p in same for p in trainable) <= 0.1 * len(trainable)


def test_parameters_are_split_at_the_top_level():
    tree = {"decoder": {"a": 1}, "vq": {"b": 2}}
    assert split_params(tree, ("vq",)) == ({"vq": {"b": 2}}, {"decoder": {"a": 1}})
    with pytest.raises(UserError, match="Did you mean 'decoder'"):
        split_params(tree, ("decode",))


# Configs


@pytest.mark.parametrize(
    ("module", "preset", "template", "stage3_steps"),
    [
        ("janus_1b", "janus-1.3b", "deepseek_old", 80_000),
        ("janus_pro_1b", "janus-pro-1b", "deepseek", 80_000),
        ("janus_pro_7b", "janus-pro-7b", "deepseek", 40_000),
    ],
)
def test_the_full_size_configs_are_table_2(module, preset, template, stage3_steps):
    get_config = importlib.import_module(f"configs.{module}").get_config
    config = get_config()
    assert config.model.preset == preset and config.processor.template == template
    assert config.stage_order == ("stage1", "stage2", "stage3")
    #         steps, rate, warm-up, batch, und : text : gen
    table = {
        "stage1": (20_000, 1e-3, 600, 256, (1, 0, 3)),
        "stage2": (270_000, 1e-4, 5_000, 512, (2, 3, 5)),
        "stage3": (stage3_steps, 4e-5, 0, 128, (5, 1, 4)),
    }
    for name, wanted in table.items():
        s = config.stages[name]
        found = (s.steps, s.learning_rate, s.warmup_steps, s.batch_size, tuple(s.ratio))
        assert found == wanted, name
        assert tuple(s.trainable) == TRAINABLE[name] and s.objective == "janus"
        assert s.ema_decay == 0 and s.condition_dropout == 0.1
        assert get_config(name).only_stage == name
    assert config.only_stage == "" and config.data.row.tokens == 4096
    with pytest.raises(ValueError, match="stage4"):
        get_config("stage4")


def test_the_tiny_config_keeps_the_papers_ratios_and_freeze_sets():
    get_config = importlib.import_module("configs.janus_tiny").get_config
    config = get_config()
    assert sorted(config.stage_order) == sorted(config.stages)
    assert config.stage_order[-3:] == ("stage1", "stage2", "stage3")
    ratios = {"stage1": (1, 0, 3), "stage2": (2, 3, 5), "stage3": (5, 1, 4)}
    for name, ratio in ratios.items():
        assert tuple(config.stages[name].ratio) == ratio
        assert tuple(config.stages[name].trainable) == TRAINABLE[name]
    for name in ("vq", "siglip", "lm"):
        assert tuple(config.stages[f"stage0_{name}"].trainable) == TRAINABLE[name]
    smoke, long, one = get_config("smoke"), get_config("long"), get_config("stage2")
    assert all(smoke.stages[s].steps < 20 for s in smoke.stage_order)
    assert all(long.stages[s].steps > config.stages[s].steps for s in long.stage_order)
    assert one.only_stage == "stage2" and one.stages.stage2.steps == config.stages.stage2.steps
    assert len({c.name for c in (config, smoke, long)}) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"objective": "gan"}, "objective"),
        ({"steps": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"ratio": (0, 0, 0)}, "ratio"),
        ({"ratio": (1, -1, 1)}, "ratio"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_impossible_stages_are_user_errors(fields, message):
    with pytest.raises(UserError, match=f"stage stage2.*{message}"):
        stage("stage2", **fields)


def test_one_stage_of_several():
    stages = [stage("stage1"), stage("stage2")]
    assert select_stages(stages, "") == stages
    assert select_stages(stages, "stage2") == stages[1:]
    with pytest.raises(UserError, match="stage1, stage2"):
        select_stages(stages, "stage9")


# Stage 0


def test_pictures_find_their_texts_and_the_average_follows(params):
    texts = next(batches("siglip"))
    batch = global_batch(texts, ONE_DEVICE)
    state, frozen = start("siglip", params)
    average = leaves(state.trainable)
    losses, step = [], step_of("siglip")
    for done in range(60):
        state, metrics = step(state, frozen, batch, done)
        losses.append(float(metrics["loss"]))
        if done < 4:
            # A young average forgets faster: 1/10, 2/11, 3/12, ... up to 0.9.
            decay = min(0.9, (1 + done) / (10 + done))
            now = leaves(state.trainable)
            average = {k: decay * a + (1 - decay) * now[k] for k, a in average.items()}
            for path, value in leaves(state.ema).items():
                np.testing.assert_allclose(value, average[path], atol=1e-5)
    assert float(metrics["accuracy"]) == 1.0 and losses[-1] < 0.3 * losses[0]
    full = evaluated_params(state, frozen)
    assert full["siglip"] is state.ema["siglip"] and full["decoder"] is frozen["decoder"]
    # The same pictures with each other's texts.
    wrong = global_batch(texts | {"text": np.roll(texts["text"], 1, 0)}, ONE_DEVICE)
    _, metrics = step(state, frozen, wrong, 60)
    assert float(metrics["loss"]) > 3 * losses[-1] and float(metrics["accuracy"]) < 0.5


def test_the_codebook_is_placed_after_the_warm_up_and_fixed_at_the_end(params):
    state, frozen = start("vq", params)
    step, data = step_of("vq"), batches("vq")
    codebook = lambda: np.array(state.trainable["vq"]["quantize"]["embedding"])
    books, norms = [codebook()], []
    for done in range(8):
        state, metrics = step(state, frozen, global_batch(next(data), ONE_DEVICE), done)
        norms.append(float(metrics["grad_norm"]))
        books.append(codebook())
        assert ("codes_used" in metrics) == (done >= 2)
    first, warm, fixed = books[0], books[2], books[7:]
    np.testing.assert_array_equal(warm, first)  # no gradient, not moved
    assert np.abs(books[3] - first).max() > 0.1 and float(metrics["codes_used"]) > 0
    assert np.abs(books[6] - books[5]).max() > 0  # still learning
    # From step 6 on, momentum does not move it either; and what is handed on has the same codes.
    assert all(np.array_equal(book, fixed[0]) for book in fixed)
    np.testing.assert_allclose(state.ema["vq"]["quantize"]["embedding"], fixed[0], atol=1e-6)
    # A code at the origin has no direction: its gradient would drown all others.
    assert max(norms) < 1e3, norms


# One device or eight


@pytest.mark.multidevice
def test_eight_devices_give_the_losses_of_one(params):
    data = [next(iterator) for iterator in [batches("stage3")] for _ in range(5)]

    def losses(mesh):
        state, frozen = start("stage3", params, mesh)
        found = []
        for done, batch in enumerate(data):
            state, metrics = step_of("stage3")(state, frozen, global_batch(batch, mesh), done)
            found.append({k: float(v) for k, v in metrics.items()})
        return found, state

    one, _ = losses(ONE_DEVICE)
    eight, state = losses(make_mesh(data=2, fsdp=4))
    for a, b in zip(one, eight, strict=True):
        assert a == pytest.approx(b, rel=1e-5 * 5)
    assert one[0]["loss"] != one[4]["loss"]
    kernel = state.trainable["decoder"]["lm_head"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // 4
    moments = state.opt_state[1][0].mu["decoder"]["lm_head"]["kernel"]
    assert moments.sharding == kernel.sharding


# The loop; more of it, with a toy instead of a model, in test_loop.py


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [3, 5])
def test_a_stopped_stage_goes_on_value_for_value(kill_at, params, tmp_path):
    # Warm-up to step 2, codes placed there, moved at 4 and 6: state of every kind to lose.
    def run(directory, on_sample=None):
        directory.mkdir(exist_ok=True)
        log = MetricsLog(directory)
        end = run_stage(
            stage("vq"),
            step_of("vq"),
            shard_params(params, ONE_DEVICE),
            batches("vq"),
            directory / "checkpoints",
            log,
            ONE_DEVICE,
            save_every=2,
            log_every=1,
            sample_every=1 if on_sample else 0,
            on_sample=on_sample,
            quiet=True,
        )
        log.close()
        keep = ("stage", "step", "loss", "psnr", "grad_norm", "codes_used")
        return end, [{k: r.get(k) for k in keep} for r in MetricsLog(directory).read()]

    def kill(step, _):
        if step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", kill)
    end, records = run(tmp_path / "killed")
    wanted_end, wanted = uninterrupted(run, tmp_path)
    assert records == wanted and len(records) == 8
    for path, value in leaves(wanted_end).items():
        np.testing.assert_array_equal(leaves(end)[path], value, err_msg=path)


_DONE = []


def uninterrupted(run, tmp_path):
    if not _DONE:
        _DONE.append(run(tmp_path / "whole"))
    return _DONE[0]
