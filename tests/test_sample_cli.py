"""sample.py: the files it writes, and one line for everything that a person can get wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from janus_jax import models
from janus_jax.checkpoints import save_model
from janus_jax.cli.sample import main
from janus_jax.config import DecoderConfig, JanusConfig, SigLIPConfig, VQConfig
from janus_jax.errors import run_main
from janus_jax.processing import ProcessorConfig, build_word_tokenizer

pytestmark = pytest.mark.subprocess

SAMPLE = Path(__file__).parents[1] / "sample.py"
CONFIG = JanusConfig(
    "test",
    SigLIPConfig(image_size=16, patch_size=8, width=8, layers=1, heads=1),
    VQConfig(
        image_size=16,
        codebook_size=32,
        codebook_dim=4,
        z_channels=8,
        ch=8,
        ch_mult=(1,),
        num_res_blocks=1,
        norm_groups=4,
        patch_size=8,
    ),
    DecoderConfig(
        vocab_size=32, width=16, ffw=16, layers=1, heads=2, kv_heads=2, head_dim=8, max_position=40
    ),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sample") / "model"
    model = models.JanusModel(CONFIG)
    shapes = jax.eval_shape(lambda key: models.init_params(model, key), jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), shapes)
    save_model(
        directory,
        config=CONFIG,
        processor=ProcessorConfig.from_model(CONFIG, cfg_weight=2.0).to_dict(),
        tokenizer_json=build_word_tokenizer(["a red cat what is it ?"]).to_json(),
        params=params,
    )
    return str(directory)


@pytest.fixture
def sample(monkeypatch, capsys):
    """sample(*flags) -> (exit code, stdout, stderr), in this process."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, flags)])
        code = 0
        try:
            run_main(main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_pictures_and_answers_are_written(sample, checkpoint, tmp_path):
    asked = tmp_path / "asked.png"
    Image.new("RGB", (20, 30), "red").save(asked)
    out = tmp_path / "new" / "out"
    flags = ["--checkpoint", checkpoint, "--out", out, "--num_images", 2, "--seed", 3]
    flags += ["--prompt", "a red cat", "--prompt", "a blue zebra", "--cfg_weight", 1.5]
    flags += ["--image", asked, "--question", "what is it?", "--max_new_tokens", 4]
    code, stdout, stderr = sample(*flags)
    assert code == 0, stderr
    assert "does not know: blue, zebra" in stderr
    assert "wrote 4 images" in stdout and "what is it?" in stdout
    names = [f"image_{i:03d}.png" for i in range(4)]
    assert sorted(p.name for p in out.iterdir()) == ["grid.png", *names, "samples.json"]
    pixels = [np.asarray(Image.open(out / name)) for name in names]
    assert all(p.shape == (16, 16, 3) for p in pixels)
    sheet = np.asarray(Image.open(out / "grid.png"))
    assert sheet.shape == (384, 384, 3)  # a row for each prompt, enlarged to 192 pixels
    np.testing.assert_array_equal(sheet[192::12, :192:12], pixels[2])
    record = json.loads((out / "samples.json").read_text())
    assert record["seed"] == 3 and record["settings"]["cfg_weight"] == 1.5
    assert record["images"][2] == {"file": names[2], "prompt": "a blue zebra", "index": 0}
    assert [a["question"] for a in record["answers"]] == ["what is it?"]


def test_previews_warmup_and_little_memory_change_no_picture(sample, checkpoint, tmp_path):
    flags = ["--checkpoint", checkpoint, "--prompt", "a red cat", "--num_images", 2]
    plain, grown = tmp_path / "plain", tmp_path / "grown"
    assert sample(*flags, "--out", plain)[0] == 0
    extra = ["--preview", "--warmup", "--memory_gb", 0.5, "--mesh", "data=2"]
    code, stdout, stderr = sample(*flags, *extra, "--out", grown)
    assert code == 0, stderr
    assert "compiled " in stdout and "programs" in stdout
    for name in ("image_000.png", "image_001.png"):
        assert (plain / name).read_bytes() == (grown / name).read_bytes()
    assert not [p for p in grown.iterdir() if p.name.startswith(".")]


def test_a_backend_that_is_not_there_is_one_line(checkpoint):
    result = subprocess.run(
        [sys.executable, SAMPLE, "--checkpoint", checkpoint, "--prompt", "a cat"],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "nonsense"},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: no device to compute on")
    assert result.stderr.count("\n") == 1


def test_help_shows_an_example_that_runs():
    result = subprocess.run([sys.executable, SAMPLE, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert 'python sample.py --checkpoint runs/janus_tiny --prompt "' in result.stdout


def bad_inputs(directory: Path, checkpoint: str) -> dict[str, list]:
    """Part of the message -> flags."""
    (directory / "empty").mkdir()
    (directory / "broken.png").write_bytes(b"\x89PNG\r\n")
    (directory / "zero.png").write_bytes(b"")
    (directory / "taken" / "image_000.png").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(directory / "fine.png")
    prompt = ["--prompt", "a cat"]
    here = ["--checkpoint", checkpoint]
    return {
        "nothing to do": here,
        "no such directory": ["--checkpoint", directory / "missing", *prompt],
        "is empty: not a model": ["--checkpoint", directory / "empty", *prompt],
        "cannot be a directory": [*here, *prompt, "--out", directory / "fine.png"],
        "fine.png/x cannot be a directory": [*here, *prompt, "--out", directory / "fine.png/x"],
        "File name too long": [*here, *prompt, "--out", directory / ("x" * 300)],
        "image_000.png is a directory there": [*here, *prompt, "--out", directory / "taken"],
        "/x\\x1b[31m": ["--checkpoint", "./x\x1b[31m", *prompt],
        "--mesh must look like": [*here, *prompt, "--mesh", "2x4"],
        "needs 64 devices": [*here, *prompt, "--mesh", "data=64"],
        "--memory_gb must be above 0": [*here, *prompt, "--memory_gb", 0],
        **{
            f"--memory_gb must be above 0 and finite, got {gb}": [
                *here,
                *prompt,
                f"--memory_gb={gb}",
            ]
            for gb in ("inf", "nan", "-1.0", "-inf", "1e+308")
        },
        "raise memory_limit (of sample.py: --memory_gb)": [*here, *prompt, "--memory_gb", 0.00001],
        "int8 can be": [*here, *prompt, "--int8", "keys"],
        "--prompt is empty": [*here, "--prompt", " "],
        "the limit of this model is": [*here, "--prompt", "a cat " * 40],
        "--num_images": [*here, *prompt, "--num_images", 0],
        "top_k": [*here, *prompt, "--top_k", 33],
        "cfg_weight": [*here, *prompt, "--cfg_weight", "inf"],
        "temperature": [*here, *prompt, "--temperature", "nan"],
        "invalid int value": [*here, *prompt, "--seed", "x"],
        "unrecognized arguments: --promt": [*here, "--promt", "a cat"],
        "--image and --question go together: ": [*here, "--question", "what?"],
        "give both": [*here, "--image", directory / "fine.png"],
        "cannot read image": [*here, "--image", directory / "broken.png", "--question", "what?"],
        "zero.png": [*here, "--image", directory / "zero.png", "--question", "what?"],
        "missing.png": [*here, "--image", directory / "missing.png", "--question", "what?"],
        "max_new_tokens must be": [
            *here,
            *("--image", directory / "fine.png", "--question", "what?", "--max_new_tokens", 0),
        ],
    }


def test_bad_input_is_one_line_and_exit_code_2(sample, checkpoint, tmp_path):
    for message, flags in bad_inputs(tmp_path, checkpoint).items():
        flags = flags if "--out" in flags else [*flags, "--out", tmp_path / "out"]
        code, _, stderr = sample(*flags)
        errors = [line for line in stderr.splitlines() if not line.startswith("warning:")]
        assert code == 2 and len(errors) == 1, (message, stderr)
        assert errors[0].startswith("error: ") and message in errors[0]
    assert not list((tmp_path / "out").glob("*"))


def test_results_are_kept_where_the_console_cannot_show_them(checkpoint, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    question = "what 是 😀 \x1b[31m?"
    flags = ["--image", tmp_path / "a.png", "--question", question, "--out", tmp_path]
    done = subprocess.run(
        [sys.executable, SAMPLE, "--checkpoint", checkpoint, *flags, "--max_new_tokens", "2"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(rb"what \u662f \U0001f600 \x1b[31m?")
    (entry,) = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))["answers"]
    assert entry["question"] == question


def test_pictures_are_recorded_even_if_a_question_fails(sample, checkpoint, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    flags = ["--checkpoint", checkpoint, "--prompt", "a cat", "--out", tmp_path / "out"]
    long = ["--image", tmp_path / "a.png", "--question", "a cat " * 40]
    assert sample(*flags, *long)[0] == 2
    assert len(json.loads((tmp_path / "out" / "samples.json").read_text())["images"]) == 1


def test_the_record_of_earlier_pictures_stays_while_they_do(sample, checkpoint, tmp_path):
    out = tmp_path / "out"
    flags = ["--checkpoint", checkpoint, "--out", out]
    ask = [*flags, "--image", out / "image_000.png", "--question", "what is it?", "--seed", 9]
    read = lambda: json.loads((out / "samples.json").read_text())
    files = lambda call: [image["file"] for image in call.get("images", [])]
    assert sample(*flags, "--prompt", "a red cat", "--num_images", 3, "--seed", 5)[0] == 0
    drawn = read()
    for _ in range(2):
        assert sample(*ask)[0] == 0
        record = read()
        assert record["seed"] == 9 and len(record["answers"]) == 1 and "images" not in record
        assert record["earlier"] == [drawn]
    assert sample(*flags, "--prompt", "a cat", "--seed", 6)[0] == 0  # replaces image_000.png
    (out / "image_001.png").unlink()
    assert sample(*ask)[0] == 0
    newer, older = read()["earlier"]
    assert (newer["seed"], files(newer)) == (6, ["image_000.png"])
    assert (older["seed"], files(older)) == (5, ["image_002.png"])
    assert sample(*flags, "--prompt", "a cat", "--num_images", 3)[0] == 0
    assert "earlier" not in read()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", '{"images": 3}', '{"images": [{"file": 3}]}', '{"earlier": [[]]}', "\x00"],
)
def test_a_record_of_another_kind_is_replaced(sample, checkpoint, tmp_path, text):
    (tmp_path / "samples.json").write_text(text)
    assert sample("--checkpoint", checkpoint, "--prompt", "a cat", "--out", tmp_path)[0] == 0
    assert len(json.loads((tmp_path / "samples.json").read_text())["images"]) == 1


def chat(monkeypatch, lines):
    lines = iter(lines)

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)


def test_a_chat_draws_with_the_same_flags(sample, checkpoint, tmp_path, monkeypatch):
    drawing = ["--cfg_weight", 1.5, "--temperature", 0.7, "--top_k", 5, "--top_p", 0.9]
    flags = ["--checkpoint", checkpoint, *drawing, "--num_images", 2, "--seed", 4]
    chat(monkeypatch, ["/draw a red cat", "/draw a red cat"])
    code, _, stderr = sample(*flags, "--interactive", "--out", tmp_path / "chat")
    assert code == 0, stderr
    flags[-1] = 5  # of the second drawing
    assert sample(*flags, "--prompt", "a red cat", "--out", tmp_path)[0] == 0
    for i in range(2):
        typed = Image.open(tmp_path / "chat" / f"chat_{2 + i:03d}.png")
        wanted = Image.open(tmp_path / f"image_{i:03d}.png")
        np.testing.assert_array_equal(np.asarray(typed), np.asarray(wanted))


def test_a_second_chat_keeps_the_pictures_of_the_first(sample, checkpoint, tmp_path, monkeypatch):
    flags = ["--checkpoint", checkpoint, "--interactive", "--out", tmp_path]
    chat(monkeypatch, ["/draw a red cat"])
    assert sample(*flags)[0] == 0
    first = (tmp_path / "chat_000.png").read_bytes()
    (tmp_path / "chat_002.png").mkdir()
    chat(monkeypatch, ["/draw a cat", "/draw a cat", "/quit now", "/draw a cat"])
    code, stdout, stderr = sample(*flags, "--seed", 1)
    assert code == 0, stderr
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"chat_{i:03d}.png" for i in range(4)]
    assert (tmp_path / "chat_000.png").read_bytes() == first
    assert "chat_001.png" in stdout and "chat_003.png" in stdout and "no command" not in stdout


def test_names_of_files_and_texts_that_the_input_encoding_lacks(checkpoint, tmp_path):
    """A file is found by the bytes of its name; half characters in a text are one line, and end nothing."""
    names = [b"lat\xe4.png", "l\u00e4t \u4f60.png".encode()]
    for name in names:
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        os.rename(os.fsencode(tmp_path / "a.png"), os.path.join(os.fsencode(tmp_path), name))
    texts = [b"/draw lat\xe4", b"what is lat\xe4", b"/lat\xe4", b"/image lat\xe5.png"]
    lines = [b"/image " + name for name in names] + [b"what is it?", *texts, b"/help", b"/quit"]
    flags = ["--checkpoint", checkpoint, "--interactive", "--max_new_tokens", "2"]
    for encoding in ("ascii", "utf-8"):
        done = subprocess.run(
            [sys.executable, SAMPLE, *flags],
            input=b"\n".join(lines),
            capture_output=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(SAMPLE.parent)},
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        said = done.stdout.decode(encoding)
        assert said.count("now ask about it") == 2 and said.count("Type a message") == 2
        assert said.count("half a character") == 2
        assert r"no command /lat\udce4" in said and r"cannot read image lat\udce5.png" in said


@pytest.mark.parametrize(
    ("flags", "said"), [(["--top_k", 33], "top_k"), (["--cfg_weight", "inf"], "cfg_weight")]
)
def test_a_chat_with_impossible_settings_does_not_start(sample, checkpoint, flags, said):
    code, stdout, stderr = sample("--checkpoint", checkpoint, "--interactive", *flags)
    assert code == 2 and said in stderr and "Type a message" not in stdout
