"""What a run says of its use of the machine: rates, MFU, memory, parts of the gradient; bar and report."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dummies_model import CONFIG

from janus_jax.errors import RunError
from janus_jax.models import JanusModel, init_params
from janus_jax.parallel import make_mesh
from janus_jax.parallel.chips import peak_flops
from janus_jax.run.report import write_report
from janus_jax.training import (
    TRAINABLE,
    Meter,
    MetricsLog,
    Stage,
    grad_norms,
    learning_rate,
    make_optimizer,
    run_stage,
)
from janus_jax.training.content import Content
from janus_jax.training.flops import StepFlops
from janus_jax.training.metrics import progress_bar, set_losses
from janus_jax.training.monitor import Monitor
from janus_jax.training.skips import Skips

STAGE = Stage("s", "janus", TRAINABLE["stage2"], 9, 1e-3, 4, 2, (2, 3, 5))
PARAMS = jax.eval_shape(lambda key: init_params(JanusModel(CONFIG), key), jax.random.key(0))


def device(kind="NVIDIA H200", **stats):
    return SimpleNamespace(device_kind=kind, memory_stats=lambda: stats or None)


def mesh(*local, size=None):
    """Of which this process has some devices."""
    return SimpleNamespace(local_devices=local, size=size or len(local))


def batch(used=10, codes=False):
    segments = np.zeros((2, 20), np.int32)
    segments[0, :used], segments[1, :4] = 1, 1
    weights = np.zeros((2, 5), np.float32)
    weights[0, :3] = 1
    pictures = {"gen_images": np.zeros((2, 1, 16, 16, 3), np.uint8)}
    return {
        "segment_ids": segments,
        "token_types": np.zeros((2, 20), np.int32),
        "target_weights": weights,
        "gen_weights": np.array([[1.0], [0.0]], np.float32),
        "und_images": np.zeros((2, 2, 16, 16, 3), np.uint8),
        **({"gen_codes": np.zeros((2, 1, 16), np.int32)} if codes else pictures),
    }


@pytest.mark.parametrize(
    ("kind", "tflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("cpu", None),
        ("NVIDIA L40", None),
        ("NVIDIA H20", None),
        ("TPU v4 lite", None),
        ("TPU v9", None),
    ],
)
def test_peaks_by_the_names_that_devices_have(kind, tflops):
    assert peak_flops(kind) == (tflops and tflops * 1e12)


def test_mfu_is_of_this_process_and_tokens_are_of_all():
    model = JanusModel(CONFIG, remat="full")
    meter = Meter(STAGE, model, PARAMS, mesh(device(), device(), size=8))
    counted = [meter.step(batch())[1], meter.step(batch(used=20))[1]]
    model_flops, hardware = (sum(getattr(f, n) for f in counted) for n in ("model", "hardware"))
    rates = meter.rates(tokens=4000.0, flops=counted, seconds=0.5)
    assert rates["tokens_per_s_per_device"] == 4000 / 0.5 / 8
    assert rates["tflops_per_s_per_device"] == pytest.approx(model_flops / 0.5 / 2 / 1e12)
    assert rates["mfu"] == pytest.approx(model_flops / 0.5 / 2 / 989.5e12)
    assert rates["hfu"] == pytest.approx(hardware / 0.5 / 2 / 989.5e12)
    assert rates["hfu"] > 1.1 * rates["mfu"]
    # The peak of one's own counts, whatever the device is.
    own = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(device("cpu")), peak_tflops=2.0)
    assert own.rates(1.0, counted, 1.0)["mfu"] == pytest.approx(model_flops / 2e12)
    assert "hfu" not in own.rates(1.0, counted, 1.0)  # the same, without remat


def test_a_device_that_nobody_knows_has_no_mfu_and_an_own_objective_no_flops():
    meter = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(device("cpu")))
    fields = {"tokens_per_s_per_device", "tflops_per_s_per_device"}
    assert meter.rates(5.0, [meter.step(batch())[1]], 1.0).keys() == fields
    assert meter.rates(5.0, [None], 1.0) == {"tokens_per_s_per_device": 5.0}
    assert meter.memory() == {}


def test_a_step_is_counted_from_its_batch():
    meter = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(device()))
    shares, flops = meter.step(batch(codes=True))
    assert shares == {
        "fill_tokens": 14 / 40,
        "fill_targets": 3 / 10,
        "fill_und_images": 0.0,
        "fill_gen_images": 0.5,
    }
    want = Content(tokens=14, pairs=(100 + 16) / 2, targets=3, gen_images=1)
    assert flops == StepFlops(CONFIG, STAGE, PARAMS)(want)
    encoded = dataclasses.replace(want, encoded=1)
    assert meter.step(batch())[1] == StepFlops(CONFIG, STAGE, PARAMS)(encoded)


def test_batches_that_are_accumulated_count_like_one():
    meter = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(device()))
    stacked = {name: array.reshape(2, 1, *array.shape[1:]) for name, array in batch().items()}
    assert meter.step(stacked) == meter.step(batch())


def test_memory_is_of_the_fullest_device():
    full = device(bytes_in_use=3 * 2**30, peak_bytes_in_use=4 * 2**30)
    fuller = device(bytes_in_use=2**30, peak_bytes_in_use=5 * 2**30)
    meter = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(full, fuller))
    assert meter.memory() == {"memory_gib": 3.0, "peak_memory_gib": 5.0}
    half = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(device(bytes_in_use=2**30)))
    assert half.memory() == {"memory_gib": 1.0}


def test_the_monitor_writes_it_next_to_what_the_step_says(tmp_path):
    log = MetricsLog(tmp_path)
    meter = Meter(STAGE, JanusModel(CONFIG), PARAMS, mesh(device()))
    skips = Skips(STAGE.name, 1)
    monitor = Monitor(STAGE, 0, log, quiet=True, strict=False, skips=skips, meter=meter)
    metrics = {"loss": jnp.float32(1.5), "tokens": jnp.float32(14)}
    for done in range(1, 7):
        monitor.add(done, 0.0, 0.0, metrics, batch(used=done))
    monitor.record()
    monitor.close()
    records = log.read()
    log.close()
    assert [r["fill_tokens"] for r in records] == [(done + 4) / 40 for done in range(1, 7)]
    # The rate that the optimizer used for the step.
    want = [1e-3 * min(done, 4) / 4 for done in range(1, 7)]
    assert [r["learning_rate"] for r in records] == pytest.approx(want)
    assert all(r["loss"] == 1.5 and 0 < r["mfu"] < 1 and "memory_gib" not in r for r in records)


class Batches:
    """Endless copies of one batch, with a position as a stage's data has."""

    def __iter__(self):
        return self

    def __next__(self):
        return batch()

    def get_state(self):
        return {}

    def set_state(self, state):
        pass


class Recorder:
    """What a loop asks of a profiler."""

    def __init__(self):
        self.calls = []

    def before(self, step):
        self.calls.append(step)

    def after(self, outputs):
        self.calls.append(float(outputs["tokens"]))

    def close(self):
        self.calls.append("closed")


@pytest.mark.parametrize("fails", [False, True])
def test_the_loop_measures_and_traces_its_steps(tmp_path, fails):
    def step(state, frozen, batch, done):
        if fails and done == 2:
            raise RunError("no more")
        metrics = {"loss": jnp.float32(1), "tokens": jnp.float32(100 + done)}
        return state.replace(step=state.step + 1), metrics

    params = {"decoder": {"final_norm": {"scale": np.ones(4, np.float32)}}}
    stage = dataclasses.replace(STAGE, trainable=("decoder",), steps=3)
    meter = Meter(stage, JanusModel(CONFIG), params, make_mesh(devices=jax.devices()[:1]), 1.0)
    log, profiler = MetricsLog(tmp_path), Recorder()
    with pytest.raises(RunError) if fails else contextlib.nullcontext():
        run_stage(
            stage,
            step,
            params,
            Batches(),
            tmp_path / "checkpoints",
            log,
            make_mesh(devices=jax.devices()[:1]),
            save_every=9,
            log_every=1,
            quiet=True,
            meter=meter,
            profiler=profiler,
        )
    records = log.read()
    log.close()
    done = 2 if fails else 3
    assert profiler.calls[: 2 * done] == [1, 100.0, 2, 101.0, 3, 102.0][: 2 * done]
    assert profiler.calls[-1] == "closed" and len(records) == done
    assert all(r["fill_targets"] == 0.3 and r["mfu"] > 0 for r in records)


def test_the_learning_rate_is_that_of_the_updates():
    """AdamW's first updates are the rate itself, but for epsilon."""
    optimizer, params = make_optimizer(STAGE), {"x": jnp.zeros(())}
    state = optimizer.init(params)
    for done in range(6):
        update, state = optimizer.update({"x": jnp.float32(0.5)}, state, params)
        assert float(-update["x"]) == pytest.approx(float(learning_rate(STAGE)(done)), rel=1e-4)


def test_the_norms_of_the_parts_make_up_the_whole():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    grads = {"decoder": {"a": draw(3, 4), "b": {"c": draw(5)}}, "image_head": {"k": draw(2)}}
    norms = grad_norms(grads)
    assert norms.keys() == {"grad_norm_decoder", "grad_norm_image_head"}
    assert norms["grad_norm_image_head"] == pytest.approx(np.linalg.norm(grads["image_head"]["k"]))
    whole = float(optax.global_norm(grads))
    assert sum(float(n) ** 2 for n in norms.values()) == pytest.approx(whole**2, rel=1e-5)


def test_the_bar_shows_mfu_where_it_is_known():
    bar = progress_bar("s", 0, 5, quiet=False)
    record = {"loss": 1.0, "loss_gen": 2.0, "tokens_per_s": 10.0, "data_wait": 0.25}
    set_losses(bar, record)
    assert "mfu" not in bar.postfix and "data=25%" in bar.postfix and "gen=2.000" in bar.postfix
    set_losses(bar, record | {"mfu": 0.413})
    assert "mfu=41%" in bar.postfix and "rejected" not in bar.postfix
    set_losses(bar, record | {"rejected": 0.0042})
    assert "rejected=0.42%" in bar.postfix
    bar.close()


def test_the_bar_says_that_the_first_step_compiles(capsys):
    log = SimpleNamespace(read=list)
    monitor = Monitor(STAGE, 0, log, quiet=False, strict=False, skips=Skips("s", 1))
    assert "compiling the step" in capsys.readouterr().err
    monitor.add(1, 0.0, 0.0, {}, batch())
    monitor.close()
    assert "compiling" not in capsys.readouterr().err.rsplit("\r", 1)[-1]


# The report


def write_metrics(run, extra):
    run.mkdir()
    records = [
        {"stage": "s", "step": i + 1, "loss": 1.0, "tokens_per_s": 9.0, "data_wait": 0.1, **extra}
        for i in range(3)
    ]
    records[0] |= {name: value / 100 for name, value in extra.items()}  # the first one compiles
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return write_report(run).read_text()


def test_the_report_has_a_table_of_it(tmp_path):
    extra = {
        "mfu": 0.4125,
        "fill_tokens": 0.975,
        "learning_rate": 1e-3,
        "grad_norm": 3.0,
        "grad_norm_decoder": 2.0,
        "memory_gib": 1.0,
        "peak_memory_gib": 5.5,
    }
    text = write_metrics(tmp_path / "new", extra)
    assert "| stage | MFU | waits for data | positions in use | peak memory" in text
    assert "| s | 41.2% | 10.0% | 97.5% | 5.50 |" in text
    # None of it is a result of the stage.
    assert "| s | 3 | - | 9 | 1.000 -> 1.000 | - |" in text


def test_the_report_of_an_earlier_version_has_none(tmp_path):
    assert "Use of the machine" not in write_metrics(tmp_path / "old", {"grad_norm": 3.0})
