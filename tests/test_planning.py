"""What `--aot` and `--plan` answer, on devices that are here: nothing in it knows the difference."""

import json
import subprocess
import sys

import jax
import pytest

from benchmarks.paths import ROOT
from janus_jax.configs import finetune, janus_pro_1b, janus_tiny
from janus_jax.errors import UserError
from janus_jax.parallel import topology
from janus_jax.parallel.hlo import collectives, parse
from janus_jax.run import fit, planning
from janus_jax.run.aot import abstract_arguments, batch_shapes, compile_step
from janus_jax.run.experiment import build
from janus_jax.run.stage_checks import check_batch
from janus_jax.run.stage_data import batches
from janus_jax.training.optimizer_options import optimizer_options

pytestmark = [pytest.mark.heavy, pytest.mark.multidevice]


def make_config(**changes):
    config = janus_tiny.get_config("smoke")
    config.model.overrides.decoder.layers = 2
    for name, value in changes.items():
        *parts, last = name.split(".")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    return config


def experiment_of(count=8, **changes):
    changes = {"mesh.fsdp": -1, "mesh.data": 1, **changes}
    return build(make_config(**changes), jax.devices()[:count], weights=False)


def stage_of(experiment, name="stage3"):
    return next(s for s in experiment.stages if s.name == name)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_shapes_are_those_of_a_real_batch():
    experiment = experiment_of(1)
    stage = stage_of(experiment)
    iterator = batches(experiment, stage)
    try:
        real = next(iterator)
    finally:
        iterator.close()
    shapes = batch_shapes(experiment, stage)
    assert {k: (v.shape, v.dtype) for k, v in real.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }
    codes = batch_shapes(experiment, stage, codes=True)
    assert "gen_images" not in codes and codes["gen_codes"].shape == (*real["gen_starts"].shape, 36)


def test_a_sharded_step_gathers_weights_and_scatters_gradients():
    experiment = experiment_of(8, **{"policy.targets_at_once": 64, "policy.pictures_at_once": 1})
    stage = stage_of(experiment, "stage2")
    compiled = compile_step(experiment, stage)
    moved = compiled.collectives
    assert moved["all-gather"]["count"] and moved["reduce-scatter"]["count"]
    # Nothing is as large as the activations of all rows would be.
    state, frozen, _ = abstract_arguments(experiment, stage)
    everything = sum(x.size * 4 for x in jax.tree.leaves((state.trainable, frozen)))
    assert moved["all-gather"]["bytes"] < 3 * everything
    assert compiled.memory["arguments"] > 0 and compiled.memory["total"] > 0


def test_parts_of_a_batch_need_less():
    whole = experiment_of(1, **{"stages.stage2.batch_size": 16})
    parts = experiment_of(1, **{"stages.stage2.batch_size": 16, "stages.stage2.accumulate": 8})
    memory = [compile_step(e, stage_of(e, "stage2")).memory["temporary"] for e in (whole, parts)]
    assert memory[1] < 0.5 * memory[0]


def test_what_a_device_holds_is_what_its_arrays_take():
    experiment = experiment_of(4)
    stage = stage_of(experiment)
    parts = fit.resident(experiment, stage)
    state, frozen, _ = abstract_arguments(experiment, stage)
    whole = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    assert whole(state.trainable) / 4 <= parts.trained < whole(state.trainable)
    assert parts.optimizer >= 2 * parts.trained
    assert parts.frozen == whole(frozen)  # the image tokenizer, which is copied everywhere


def test_plan_says_what_fits(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "device_limit", lambda device: 400 * 2**20)
    out = tmp_path / "plan.json"
    config = make_config(**{"only_stage": "stage2", "stages.stage2.batch_size": 4096})
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    found = planning.plan(config, out=out)["stage2"]
    assert json.loads(out.read_text())["stage2"] == found
    rows = found["rows_a_device"]
    assert 1 < rows < 4096 and found["temporary_gib_by_rows"][str(rows)] < 400 / 1024
    assert 4096 % found["accumulate"] == 0 and 4096 // found["accumulate"] <= rows
    text = capsys.readouterr().out
    assert f"--config.stages.stage2.accumulate={found['accumulate']}" in text


def test_plan_of_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(fit, "device_limit", lambda device: 2**20)
    monkeypatch.setattr(jax, "devices", lambda *_: jax.local_devices()[:1])
    with pytest.raises(UserError, match=r"stage2 does not fit: .*--config"):
        planning.plan(make_config(only_stage="stage2"))


def test_advice_goes_from_harmless_to_hard():
    memory = {"arguments": 1, "total": 100}
    experiment = experiment_of(1, **{"stages.stage2.batch_size": 8})
    stage = stage_of(experiment, "stage2")
    changes, said = {}, []
    for field, value in [
        ("policy.remat", "full"),
        ("policy.targets_at_once", 512),
        ("stages.stage2.accumulate", 8),
        ("policy.pictures_at_once", 1),
        ("", None),
    ]:
        said.append(fit.advice(experiment, stage, memory, 10))
        if field:
            assert field.split(".", 1)[1].split(".")[-1] in said[-1]
            changes[field] = value
            experiment = experiment_of(1, **{"stages.stage2.batch_size": 8, **changes})
            stage = stage_of(experiment, "stage2")
    assert "shorter rows" in said[-1]
    large = {"arguments": 9, "total": 100}
    assert "frozen_dtype=bfloat16" in fit.advice(experiment, stage, large, 10)


def finetune_of(name, frozen_dtype="bfloat16"):
    """A fine-tune of the smoke model that nothing is given to read."""
    config = finetune.get_config(f"{name}_smoke")
    config.policy.frozen_dtype = frozen_dtype
    config.mesh.fsdp = 1
    experiment = build(config, jax.devices()[:1], weights=False)
    return experiment, experiment.stages[0]


@pytest.mark.parametrize(
    ("name", "frozen_dtype", "said"),
    [
        ("lora", "float32", "frozen_dtype=bfloat16"),
        ("lora", "bfloat16", "frozen_dtype=int8"),
        ("lora", "int8", "take more devices"),
        ("full", "bfloat16", "mu_dtype=bfloat16"),
    ],
)
def test_advice_where_parameters_are_too_large_for_what_trains(name, frozen_dtype, said):
    experiment, stage = finetune_of(name, frozen_dtype)
    line = fit.advice(experiment, stage, {"arguments": 9, "total": 100}, 10)
    assert said in line and line.count("--config") <= 1


def test_what_a_step_does_not_read_is_on_the_device_all_the_same():
    experiment, stage = finetune_of("lora", "int8")
    memory = compile_step(experiment, stage, codes=True).memory
    _, frozen, _ = abstract_arguments(experiment, stage)
    tokenizer = fit.device_bytes(frozen["vq"])
    assert tokenizer <= memory["unread"] < 1.1 * tokenizer
    held = memory["arguments"] + memory["unread"]
    assert held == fit.resident(experiment, stage, codes=True).total + 4  # the step, an int32


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-256", "--aot must be a TPU and its shape, such as v5e:16x16"),
        ("V5E:2x2", "--aot: no TPU 'V5E' .*v5e"),
        ("h100:8", "--aot: no TPU 'h100' .*--plan"),
        ("v5p:16x16", "--aot: shapes of v5p are NxNxN with sides from 1 to 28, not 16x16"),
        ("v5e:1000x2", "--aot: shapes of v5e are NxN with sides from 1 to 16, not 1000x2"),
        ("v5e:0x2", "--aot: shapes of v5e are NxN"),
    ],
)
def test_topologies_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=f"^{message}"):
        planning.aot(make_config(), name)


def test_where_the_numbers_go_is_looked_at_first(tmp_path):
    with pytest.raises(UserError, match=r"--out .*no such directory"):
        planning.plan(make_config(), out=tmp_path / "missing" / "x.json")


def test_a_mesh_of_fewer_devices_is_no_answer():
    with pytest.raises(UserError, match=r"config\.mesh takes 2 of the 8 devices"):
        planning.plan(make_config(**{"mesh.fsdp": 2, "mesh.data": 1}))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--codes"], "--codes and --out belong to --aot or --plan"),
        (["--aot="], "--aot is empty"),
        (["--config.stages.stage1.accumulat=2"], "Did you mean 'accumulate'"),
        (["--config.stages.stage1.accumulate=3", "--plan"], "accumulate must divide batch_size"),
    ],
)
def test_flags(flags, message):
    command = [sys.executable, "train.py", "--config", "janus_tiny:stage1", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_moments_can_be_set_by_a_flag():
    config = janus_pro_1b.get_config("stage2")
    config.stages.stage2.options.optimizer.mu_dtype = "bfloat16"
    assert optimizer_options(config.stages.stage2.options).mu_dtype == "bfloat16"
    assert config.stages.stage2.accumulate == 1


def test_aot_without_libtpu(monkeypatch):
    monkeypatch.setattr(topology, "has_libtpu", lambda: False)
    with pytest.raises(UserError, match=r"--aot v5e:2x2 needs libtpu, .*pip install --target DIR"):
        planning.aot(make_config(), "v5e:2x2")


def test_parts_that_a_mesh_does_not_divide():
    experiment = experiment_of(8, **{"stages.stage2.batch_size": 16, "stages.stage2.accumulate": 4})
    with pytest.raises(
        UserError, match=r"stages.stage2.accumulate: 16 rows are 2 for each of the 8"
    ):
        check_batch(experiment, stage_of(experiment, "stage2"))


def test_stage_0_is_not_planned():
    with pytest.raises(UserError, match="stage0_vq does not train on packed rows"):
        planning.plan(make_config(only_stage="stage0_vq"))


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    text = """HloModule step

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %sum = f32[8] all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %out = (s32[], f32[8]) tuple(%next, %sum)
}

%condition (p.1: (s32[], f32[8])) -> pred[] {
  %p.1 = (s32[], f32[8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %count = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %count), direction=LT
}

%scattered (q: f32[8]) -> f32[4] {
  %q = f32[8] parameter(0)
  %all = f32[8] all-reduce(%q), channel_id=2, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[4] dynamic-slice(%all, %zero), dynamic_slice_sizes={4}
}

ENTRY %main (a: f32[8]) -> f32[4] {
  %a = f32[8] parameter(0)
  %start = s32[] constant(0)
  %pair = (s32[], f32[8]) tuple(%start, %a)
  %loop = (s32[], f32[8]) while(%pair), condition=%condition, body=%body
  %y = f32[8] get-tuple-element(%loop), index=1
  %moved = (f32[8], f32[8], u32[], u32[]) collective-permute-start(%y), channel_id=3
  ROOT %result = f32[4] fusion(%y), kind=kCustom, calls=%scattered
}
"""
    assert collectives(parse(text)) == {
        "all-reduce": {"count": 5, "bytes": 5 * 32},
        "collective-permute": {"count": 1, "bytes": 32},
        "reduce-scatter": {"count": 1, "bytes": 16},
    }
