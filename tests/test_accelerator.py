"""`benchmarks/accelerator.py`: what it measures reaches the disk, whatever happens to a section."""

import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from dummies_data import TOKENIZER, DummySource

from benchmarks.on_device import drawing, setting, tables, training
from benchmarks.on_device import run as accelerator
from janus_jax.config import PRESETS, Policy
from janus_jax.data import TASKS, PackedShape, SequenceEncoder, WeightedSource, mixed_batches
from janus_jax.errors import RunError, UserError
from janus_jax.inference import fuse_params
from janus_jax.models import JanusModel, init_params
from janus_jax.processing import Processor, ProcessorConfig
from janus_jax.training.content import content

pytestmark = pytest.mark.heavy

TINY = PRESETS["janus-tiny"]


def run(monkeypatch, out, *flags):
    monkeypatch.setattr(
        sys, "argv", ["accelerator.py", "--model", "tiny", "--out", str(out), *flags]
    )
    accelerator.main()
    return json.loads(out.with_name(out.name + ".json").read_text())["sections"]


def test_sections_measure_and_are_written(monkeypatch, tmp_path):
    found = run(monkeypatch, tmp_path / "out", "--sections", "facts", "--device", "cpu")
    assert found["facts"]["copy_bytes_per_s"] > 0 and found["facts"]["matmul_flops"] > 0
    assert "matmul_flops" in (tmp_path / "out.md").read_text()


def broken(monkeypatch, code):
    """Sections run `code` instead, after they have been told where their results go."""
    real = subprocess.Popen

    def start(command, **options):
        out = command[command.index("--out") + 1]
        return real([sys.executable, "-c", f"out = {out!r}\n{code}"], **options)

    monkeypatch.setattr(accelerator.subprocess, "Popen", start)


HALF = "open(out, 'w').write('{\"first\": 1.5}')\n"


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (HALF + "raise SystemExit('no kernel')", "ended with 1"),
        (HALF + "import os; os.abort()", "ended with -6"),
        (HALF + "import time; time.sleep(600)", "ended after its limit"),
    ],
    ids=["fails", "crashes", "hangs"],
)
def test_what_was_measured_before_the_end_is_kept(monkeypatch, tmp_path, code, why):
    broken(monkeypatch, code)
    short = {k: v.__class__(**{**vars(v), "limit_s": 5}) for k, v in accelerator.SECTIONS.items()}
    monkeypatch.setattr(accelerator, "SECTIONS", short)
    began = time.monotonic()
    with pytest.raises(RunError, match="facts, parity"):
        run(monkeypatch, tmp_path / "out", "--sections", "facts,parity")
    assert time.monotonic() - began < 60
    found = json.loads((tmp_path / "out.json").read_text())["sections"]
    for section in ("facts", "parity"):
        assert found[section]["first"] == 1.5
        assert why in found[section]["problem"]
    assert why in (tmp_path / "out.md").read_text()


def test_without_time_sections_are_left_out(monkeypatch, tmp_path):
    broken(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(RunError):
        run(monkeypatch, tmp_path / "out", "--sections", "facts", "--seconds", "10")
    found = json.loads((tmp_path / "out.json").read_text())["sections"]
    assert found == {"facts": {"problem": "left out: no time was left"}}


@pytest.mark.parametrize(
    "flags",
    [
        ["--sections", "facts,speed"],
        ["--images", "0"],
        ["--rows", "two"],
        ["--steps", "flash+full"],
        ["--steps", "xla"],
        ["--seconds", "0"],
        ["--out", "/nowhere/at/all"],
    ],
)
def test_bad_flags(monkeypatch, tmp_path, flags):
    with pytest.raises(UserError, match=flags[0]):
        run(monkeypatch, tmp_path / "out", *flags)
    assert not list(tmp_path.iterdir())


def test_results_that_are_not_numbers_are_valid_json(tmp_path):
    accelerator._save(tmp_path / "x.json", {"loss": float("nan"), "a": [float("inf"), 1]})
    values = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert values == {"loss": "nan", "a": ["inf", 1]}
    assert "nan" in tables.render(
        {"command": "c", "date": "d", "model": "m", "large": "l", "sections": {"facts": values}},
        {"facts": "Machine"},
    )


def test_random_weights_are_those_that_packing_makes():
    for int8 in (False, True):
        config, policy = TINY, Policy("bfloat16", "bfloat16")
        want = fuse_params(
            init_params(JanusModel(config, policy), jax.random.key(0)), config, policy, int8=int8
        )
        got = setting.packed_weights(config, policy, int8)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
        assert kinds(got) == kinds(want)


def test_rows_are_those_of_the_data_pipeline():
    processor = Processor(
        ProcessorConfig.from_model(TINY, template="deepseek", system_prompt=""),
        TOKENIZER,
    )
    sources = [WeightedSource(task, DummySource(task)) for task in TASKS]
    shape = training.row_shape(TINY)
    row = PackedShape(**shape)
    batches = iter(mixed_batches(sources, (1, 1, 1), SequenceEncoder(processor), row, 2))
    want = next(batches)
    batches.close()
    got = training.packed_rows(TINY, 2)
    assert {k: (v.shape, v.dtype) for k, v in got.items()} == {
        k: (v.shape, v.dtype) for k, v in want.items()
    }
    found = content(got, TINY.siglip.num_patches)
    assert found.tokens > 0.5 * got["segment_ids"].size
    assert found.gen_images == 2 and found.und_images == 2 and found.targets > 0
    for row in range(2):  # every code that is predicted stands behind its picture's start
        starts = got["gen_starts"][row][got["gen_weights"][row] > 0]
        slots = np.flatnonzero(got["token_types"][row] == 2)
        assert len(slots) == len(starts) * (TINY.vq.num_codes - 1)
        assert set(starts + 1) <= set(slots)


def test_drawing_needs_no_data_pipeline():
    """It runs where neither Grain nor ML Collections is installed."""
    code = (
        "import sys\n"
        "for name in ('grain', 'ml_collections', 'tensorflow_datasets'): sys.modules[name] = None\n"
        "import janus_jax.inference, janus_jax.training, janus_jax.checkpoints, janus_jax.interop\n"
        "import benchmarks.accelerator"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.getcwd(), timeout=120)


def test_a_block_is_timed_under_options_of_xla(tmp_path):
    settings = setting.Setting("cpu", "tiny", "tiny", (1,), 1, (1,), (), tmp_path)
    native = drawing.loaded(settings, TINY)
    ms, _ = drawing.block(native, 1, 1, {"xla_cpu_enable_fast_min_max": True})
    assert ms > 0
