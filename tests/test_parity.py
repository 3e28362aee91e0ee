"""The parity tool: agrees with the golden recording, and notices when something is wrong."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from janus_jax.checkpoints import save_model
from janus_jax.checkpoints.streaming import LazyArray
from janus_jax.errors import UserError
from janus_jax.weights.parity import TOLERANCE, check_parity, read_recording
from janus_jax.weights.source import Source, open_source

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"


@pytest.fixture(scope="module")
def recorded():
    return read_recording(GOLDEN / "expected.npz")


def only(recorded, *keys):
    return {k: v for k, v in recorded.items() if k in keys}


def changed(source, path, change):
    """The same model with one array changed."""
    array = source.arrays[path]
    other = LazyArray(array.shape, array.dtype, lambda: change(array.load()), array.turn)
    return Source(
        source.directory, source.format, source.config, {**source.arrays, path: other}, []
    )


def test_the_golden_recording_agrees(recorded):
    rows = {r.key: r for r in check_parity(open_source(GOLDEN), recorded)}
    outputs = {
        *("siglip_features", "und_embeds", "und_logits", "und_greedy", "vq_codes", "vq_quant"),
        *("vq_decoded", "gen_codes_greedy", "gen_cfg_logits_first", "gen_cfg_logits_last"),
        *("gen_pixels_uint8", "short_codes_greedy"),
    }
    assert set(rows) == outputs
    for row in rows.values():
        assert row.ok is True, row
        if row.match is None:
            assert row.max_abs <= TOLERANCE  # absolutely, too, at this size
    assert rows["gen_codes_greedy"].match == rows["und_greedy"].match == 1.0
    assert rows["und_logits"].kl < 1e-9 and rows["und_logits"].top1 == 1.0


@pytest.mark.slow
def test_bfloat16_is_compared_as_a_distribution(recorded):
    rows = {r.key: r for r in check_parity(open_source(GOLDEN), recorded, "bfloat16")}
    assert rows["und_logits"].ok is True and 1e-6 < rows["und_logits"].kl < 0.01
    assert rows["gen_codes_greedy"].ok is None
    # Fed the recorded codes, so the last logits are those of the same picture.
    assert rows["gen_cfg_logits_last"].ok is True


@pytest.mark.parametrize(
    ("path", "change", "keys", "wrong"),
    [
        (
            "siglip/blocks_1/fc1/kernel",
            lambda x: x * 1.01,
            ("pixel_values", "siglip_features"),
            "siglip_features",
        ),
        (
            "vq/quantize/embedding",
            lambda x: x[::-1],
            ("vq_image", "vq_codes", "vq_quant", "vq_decoded"),
            "vq_codes",
        ),
        ("und_adaptor/fc2/bias", lambda x: x + 1, ("pixel_values", "und_embeds"), "und_embeds"),
    ],
)
def test_a_changed_weight_is_noticed(recorded, path, change, keys, wrong):
    rows = check_parity(changed(open_source(GOLDEN), path, change), only(recorded, *keys))
    assert {r.key: r.ok for r in rows}[wrong] is False


def test_choices_that_differ_are_located(recorded):
    inputs = ("gen_prompt_ids", "gen_pad_id", "gen_cfg_weight", "gen_codes_greedy")
    other = only(recorded, *inputs)
    codes = other["gen_codes_greedy"].copy()
    codes[1, 17:] = (codes[1, 17:] + 1) % 256
    (row,) = check_parity(open_source(GOLDEN), other | {"gen_codes_greedy": codes})
    assert row.ok is False and row.note.startswith("row 1 from step 17 (margin ")
    assert row.match == pytest.approx(1 - (256 - 17) / 512)


@pytest.mark.parametrize(
    "keys", [{"pixel_values"}, {"vq_image"}, {"gen_prompt_ids"}, {"und_logits"}]
)
def test_a_recording_of_another_model_is_refused(recorded, keys):
    cut = {k: v[..., :-1] if k in keys else v for k, v in recorded.items()}
    if keys == {"gen_prompt_ids"}:  # shorter prompts are allowed, ids beyond the table are not
        cut["gen_codes_greedy"] = recorded["gen_codes_greedy"][:1]
    with pytest.raises(UserError, match="does not fit"):
        check_parity(open_source(GOLDEN), cut)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no recording"),
        (b"PK\x03\x04nonsense", "no recording"),
        (None, "no recording"),
        ({"a": np.zeros(3)}, "no input that is known"),
        ({"pixel_values": np.array([{}], object)}, "no recording"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path, content, message):
    path = tmp_path / "x.npz"
    if isinstance(content, dict):
        np.savez(path, **content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_recording(path)


# The command


def command(*flags):
    return subprocess.run(
        [sys.executable, "convert_torch_weights.py", *map(str, flags)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_compares_converts_and_fails(tmp_path, recorded):
    wrong = {k: v for k, v in recorded.items() if k in ("pixel_values", "siglip_features")}
    wrong["siglip_features"] = wrong["siglip_features"] + 0.01
    np.savez(tmp_path / "wrong.npz", **wrong)
    result = tmp_path / "result.json"
    done = command("--src", GOLDEN, "--parity", tmp_path / "wrong.npz", "--json", result)
    assert done.returncode == 1 and "siglip_features" in done.stdout
    assert done.stderr.strip() == "error: beyond tolerance: siglip_features"
    assert '"ok": false' in result.read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --src"),
        (["--src", "x"], "give --dst"),
        (["--src", "x", "--dst", "y", "--to", "gguf"], "invalid choice"),
        (["--src", "x", "--dst", "y", "--json", "z"], "--parity"),
        (["--src", "x", "--parity", "y", "--tolerance", "0"], "--tolerance"),
        (["--src", "nowhere/at/all", "--dst", "y"], "no such directory"),
        (["--src", str(GOLDEN), "--dst", "y"], "--tokenizer"),
        (["--src", str(GOLDEN), "--parity", "nowhere.npz"], "no recording"),
    ],
)
def test_bad_flags_are_one_line(flags, message):
    done = command(*flags)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert not (ROOT / "y").exists()


def test_help_shows_an_example():
    done = command("--help")
    assert done.returncode == 0 and "--src deepseek-ai/Janus-Pro-1B" in done.stdout


# Recording, where PyTorch and transformers are installed


def test_what_transformers_computes_is_what_we_compute(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from test_weights import SMALL

    from janus_jax.models import Janus, init_params
    from janus_jax.processing import build_word_tokenizer
    from janus_jax.weights.record import record

    params = jax.jit(lambda key: init_params(Janus(SMALL), key))(jax.random.key(0))
    noisy = jax.tree.map(lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), params)
    tokenizer = build_word_tokenizer(["a"])
    save_model(tmp_path / "ours", SMALL, {}, tokenizer.to_json(), jax.device_get(noisy))
    source = open_source(tmp_path / "ours")
    record(source, tmp_path / "expected.npz")
    rows = check_parity(source, read_recording(tmp_path / "expected.npz"))
    assert len(rows) == 12 and all(row.ok for row in rows), rows
    shutil.rmtree(tmp_path / "ours")
