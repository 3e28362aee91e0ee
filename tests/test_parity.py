"""The parity tool: agrees with the golden recording, and notices when something is wrong."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from converting import random_state, write_hf

from janus_jax.checkpoints import LazyArray
from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.errors import UserError
from janus_jax.interop import HF
from janus_jax.interop.conversion.source import Source, open_source
from janus_jax.interop.parity.compare import TOLERANCE, check_parity, read_recording
from janus_jax.interop.parity.recompute import BLOCK
from janus_jax.interop.parity.record import write_recording
from janus_jax.processing import build_word_tokenizer

pytestmark = pytest.mark.heavy

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


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_answers_of_any_length_agree(recorded, steps):
    """The last logits come from a block that goes on past the end."""
    keys = ("pixel_values", "und_input_ids", "und_image_mask", "und_attention_mask")
    asked = only(recorded, *keys) | {"und_greedy": recorded["und_greedy"][:, :steps]}
    (row,) = check_parity(open_source(GOLDEN), asked)
    assert row.ok and row.shape == (2, steps)


def test_progress_is_told_while_it_draws(recorded):
    calls = []
    keys = ("gen_prompt_ids", "gen_pad_id", "gen_cfg_weight", "gen_codes_greedy", "vq_image")
    check_parity(
        open_source(GOLDEN), only(recorded, *keys), progress=lambda *args: calls.append(args)
    )
    loaded = [call for call in calls if call[0] == "weights"]
    assert calls[: len(loaded)] == [("weights", i, len(loaded)) for i in range(len(loaded))]
    calls = calls[len(loaded) :]
    assert list(dict.fromkeys(part for part, *_ in calls)) == ["VQ encoder", "picture", "pixels"]
    done = [done for _, done, _ in calls]
    assert done[0] == 0 and done[-1] == 1 + 256 + 1 and {total for *_, total in calls} == {258}
    assert all(0 <= b - a <= BLOCK for a, b in itertools.pairwise(done))


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
    *bar, line = done.stderr.splitlines()  # each state of the bar, then one line
    assert line == "error: beyond tolerance: siglip_features"
    assert "SigLIP: 100%" in bar[-1] and "step" in bar[-1]
    written = json.loads(result.read_text())
    assert written["ok"] is False and set(written["seconds"]) == {"weights", "SigLIP"}
    assert all(seconds > 0 for seconds in written["seconds"].values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --src"),
        (["--src", "x"], "give --dst"),
        (["--src", "x", "--dst", "y", "--to", "gguf"], "invalid choice"),
        (["--src", "x", "--dst", "y", "--json", "z"], "--parity"),
        (["--src", "x", "--parity", "y", "--tolerance", "0"], "--tolerance"),
        (["--src", "x", "--record", "no/such/y.npz"], "no such directory to write"),
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


# Another geometry, and another implementation: recorded from transformers

# Nothing is a power of two or equal to its neighbour; keys and values have fewer heads than queries.
ODD = JanusConfig(
    "odd",
    SigLIPConfig(image_size=80, patch_size=16, width=48, layers=3, heads=3, mlp_ratio=2),
    VQConfig(80, 96, 6, 64, 32, (1, 1, 2, 1, 2), 2),
    DecoderConfig(
        vocab_size=150,
        width=42,
        ffw=88,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=12,
        rope_theta=500.0,
    ),
)
RECORDING = Path(__file__).parent / "data" / "golden" / "hf_odd" / "expected.npz"


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The model of the recording: its weights come from a seed, so only outputs are kept."""
    directory = tmp_path_factory.mktemp("odd") / "hf"
    tokenizer = build_word_tokenizer(["a"])
    write_hf(directory, random_state(ODD, HF, seed=5), ODD, tokenizer)
    return open_source(directory)


def test_transformers_and_ours_agree_on_another_geometry(odd):
    rows = check_parity(odd, read_recording(RECORDING))
    assert len(rows) == 12 and all(row.ok for row in rows), rows


def test_the_recording_can_be_made_again(odd, tmp_path):
    write_recording(odd, tmp_path / "expected.npz")
    kept, again = read_recording(RECORDING), read_recording(tmp_path / "expected.npz")
    assert set(kept) == set(again)
    for key, value in kept.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(again[key], value, atol=1e-4)
        else:
            assert np.mean(again[key] != value) < 1e-3


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "models/__init__.py",
            "import attrdict_that_is_not_there",
            "official janus package does not",
        ),
        ("queue.py", "", "transformers cannot build"),  # another package of that name
    ],
)
def test_the_official_package_is_recognised(tmp_path, monkeypatch, file, text, message):
    package = tmp_path / "janus"
    (package / file).parent.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / file).write_text(text)
    if file.startswith("models"):
        (package / "models" / "vq_model.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("janus", "janus.models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=message):
        write_recording(open_source(GOLDEN), tmp_path / "expected.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["janus"]
    sys.modules.pop("janus", None)
