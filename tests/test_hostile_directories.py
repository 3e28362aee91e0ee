"""Model and run directories of ours that are damaged on purpose: each is refused in one line, quickly and in
little memory. Then both kinds of directory: odd values of every field, and the commands.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from hostile import (
    BIG,
    DEEP,
    DIGITS,
    ESCAPE,
    LONG,
    PLACES,
    ROOT,
    Raw,
    both,
    copy_of,
    edit,
    make_torch_model,
    put,
    refuses,
    replace,
    special,
    tokens,
    vocab,
)

from janus_jax import Janus
from janus_jax.checkpoints import load_model
from janus_jax.checkpoints.model_dir import _read_metadata
from janus_jax.config import JANUS_PRO_1B, JanusConfig
from janus_jax.errors import UserError
from janus_jax.interop.configs.hf import config_to_hf
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_native
from janus_jax.processing import ProcessorConfig

pytestmark = pytest.mark.heavy

CONFIG = ("janus.json", "config")
PROCESSOR = ("janus.json", "processor")
OURS = {
    "deep": (put("janus.json", DEEP), "janus.json"),
    "digits": (edit(*CONFIG, "decoder", "layers", value=Raw(DIGITS)), "janus.json"),
    "empty": (put("janus.json", ""), "janus.json"),
    "list": (put("janus.json", "[]"), "janus.json"),
    "null": (put("janus.json", "null"), "janus.json"),
    "empty object": (put("janus.json", "{}"), "janus.json"),
    **{f"janus.json: {kind}": (special("janus.json", kind), "janus.json") for kind in PLACES},
    "janus.json: sparse": (special("janus.json", "sparse"), "janus.json"),
    "format": (edit("janus.json", "format", value=[ESCAPE]), "janus.json"),
    "version of text": (edit("janus.json", "version", value="x" * LONG), "version"),
    "version of a list": (edit("janus.json", "version", value=[1]), "version"),
    "true version": (edit("janus.json", "version", value=True), "version"),
    "version 0": (edit("janus.json", "version", value=0), "version"),
    "version of tomorrow": (edit("janus.json", "version", value=10**50), "version"),
    "no config": (edit("janus.json", "config", value=None), "config"),
    "text for the config": (edit("janus.json", "config", value="x"), "config"),
    "list for a part": (edit(*CONFIG, "siglip", value=[]), "siglip"),
    "text for a number": (edit(*CONFIG, "decoder", "width", value="x" * LONG), "width"),
    "float for a number": (edit(*CONFIG, "decoder", "width", value=64.0), "width"),
    "layers": (edit(*CONFIG, "decoder", "layers", value=BIG), "layers"),
    "900 layers": (edit(*CONFIG, "decoder", "layers", value=900), "tensors|layers"),
    "vision layers": (edit(*CONFIG, "siglip", "layers", value=BIG), "layers"),
    "res blocks": (edit(*CONFIG, "vq", "num_res_blocks", value=BIG), "num_res_blocks"),
    "60 res blocks": (edit(*CONFIG, "vq", "num_res_blocks", value=60), "tensors|res"),
    "levels": (edit(*CONFIG, "vq", "ch_mult", value=[1] * LONG), "ch_mult"),
    "picture size": (edit(*CONFIG, "vq", "image_size", value=2**40), "image_size"),
    "base": (edit(*CONFIG, "decoder", "rope_theta", value=Raw("1e999")), "rope_theta"),
    "convolutions": (edit(*CONFIG, "vq", "conv_impl", value=ESCAPE), "conv_impl"),
    "long convolutions": (edit(*CONFIG, "vq", "conv_impl", value="x" * LONG), "conv_impl"),
    "name of a number": (edit(*CONFIG, "name", value=5), "name"),
    "name of escapes": (edit(*CONFIG, "name", value=ESCAPE), "name"),
    "long name": (edit(*CONFIG, "name", value="x" * LONG), "name"),
    "unknown field": (edit(*CONFIG, "x" * LONG, value=1), "field"),
    "escapes in a field": (edit(*CONFIG, "decoder", ESCAPE, value=1), "field"),
    "missing field": (edit(*CONFIG, "decoder", "width", value=0, drop=True), "width"),
    "text for the processor": (edit("janus.json", "processor", value="x"), "processor"),
    "template of a list": (edit(*PROCESSOR, "template", value=["deepseek"]), "template"),
    "template of escapes": (edit(*PROCESSOR, "template", value=ESCAPE), "template"),
    "long template": (edit(*PROCESSOR, "template", value="x" * LONG), "template"),
    "system prompt of a number": (edit(*PROCESSOR, "system_prompt", value=5), "system_prompt"),
    "system prompt of a list": (edit(*PROCESSOR, "system_prompt", value=["x"]), "system_prompt"),
    "size of text": (edit(*PROCESSOR, "und_image_size", value=ESCAPE), "und_image_size"),
    "size of a list": (edit(*PROCESSOR, "gen_image_size", value=[]), "gen_image_size"),
    "codes of null": (edit(*PROCESSOR, "num_codes", value=None), "num_codes"),
    "guidance of text": (edit(*PROCESSOR, "cfg_weight", value="5"), "cfg_weight"),
    "guidance of null": (edit(*PROCESSOR, "cfg_weight", value=None), "cfg_weight"),
    "guidance that is not finite": (edit(*PROCESSOR, "cfg_weight", value=Raw("NaN")), "cfg_weight"),
    "temperature of a list": (edit(*PROCESSOR, "temperature", value=[1]), "temperature"),
    "infinite temperature": (
        edit(*PROCESSOR, "temperature", value=Raw("Infinity")),
        "temperature",
    ),
    "negative temperature": (edit(*PROCESSOR, "temperature", value=-1.0), "temperature"),
    "true guidance": (edit(*PROCESSOR, "cfg_weight", value=True), "cfg_weight"),
    "unknown processor field": (edit(*PROCESSOR, "x" * LONG, value=1), "field"),
    "origin of a list": (edit("janus.json", "origin", value=[1]), "origin"),
    "origin of text": (edit("janus.json", "origin", value="x"), "origin"),
    "origin of a number": (edit("janus.json", "origin", value=5), "origin"),
    **{f"tokenizer: {kind}": (special("tokenizer.json", kind), "tokenizer") for kind in PLACES},
    "tokenizer: sparse": (special("tokenizer.json", "sparse"), "tokenizer"),
    "tokenizer: id 2^31": (vocab(big=2**31), "id"),
    "tokenizer: deep": (put("tokenizer.json", DEEP), "tokenizer"),
    "tokenizer: no words": (
        tokens(lambda t: t["model"].update(vocab={}) or t | {"added_tokens": []}),
        "vocabulary",
    ),
    "tokenizer: beyond the table": (vocab(big=600), "token"),
    **{
        f"params/{file}: {kind}": (special(f"params/{file}", kind), "params")
        for file in ("_METADATA", "manifest.ocdbt")
        for kind in ("pipe", "device", "loop", "socket", "directory")
    },
    "params: pipe beside": (special("params/extra", "pipe"), "params"),
    "params: pipe below": (special("params/d/extra", "pipe"), "params"),
    "params: file": (
        lambda d: shutil.rmtree(d / "params") or (d / "params").write_text("x"),
        "params|checkpoint",
    ),
    "metadata: deep": (put("params/_METADATA", DEEP), "params"),
    "metadata: digits": (put("params/_METADATA", '{"a":' + DIGITS + "}"), "params"),
    "metadata: list": (put("params/_METADATA", "[]"), "params"),
    "metadata: empty": (put("params/_METADATA", ""), "params"),
    "metadata: text": (put("params/_METADATA", '{"tree_metadata": "x"}'), "params"),
    "metadata: sparse": (special("params/_METADATA", "sparse"), "params"),
    "manifest: sparse": (special("params/manifest.ocdbt", "sparse"), "params"),
    "manifest: text": (put("params/manifest.ocdbt", "x" * LONG), "params"),
}


def stages(value):
    """A run directory made of the model directory; its only stage is "main"."""

    def change(directory):
        step = directory / "checkpoints" / "main" / "7"
        step.mkdir(parents=True)
        (directory / "params").rename(step / "params")
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / "stages.json").write_text(text)
        for place in (directory.parent / "outside", directory / "beside"):  # finished steps, too
            place.mkdir()
            (place / "7").symlink_to(step)

    return change


OURS |= {
    "stages: absolute": (lambda d: stages([str(d.parent / "outside")])(d), "stages.json"),
    "stages: above": (stages(["../../../outside"]), "stages.json"),
    "stages: beside": (stages(["../beside"]), "stages.json"),
    "stages: dots": (stages([".."]), "stages.json"),
    "stages: dot": (stages(["."]), "stages.json"),
    "stages: no name": (stages([""]), "stages.json"),
    "stages: below": (stages(["main/7"]), "stages.json"),
    "stages: zero byte": (stages(["main\0"]), "stages.json"),
    "stages: escapes": (stages([ESCAPE]), "stages.json"),
    "stages: long": (stages(["x" * LONG]), "stages.json"),
    "stages: number": (stages([1]), "stages.json"),
    "stages: object": (stages({"main": 1}), "stages.json"),
    "stages: text": (stages('"main"'), "stages.json"),
    "stages: deep": (stages(DEEP), "stages.json"),
    "stages: digits": (stages(f"[{DIGITS}]"), "stages.json"),
    "stages: empty": (stages(""), "stages.json"),
    "stages: none": (stages([]), "checkpoint"),
    "stages: many": (stages(["no"] * LONG), "checkpoint"),
    **{
        f"stages.json: {kind}": (both(stages(["main"]), special("stages.json", kind)), "stages")
        for kind in (*PLACES, "sparse")
    },
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A directory of PyTorch's, and the same one of ours."""
    base = tmp_path_factory.mktemp("valid")
    source = open_source(make_torch_model(base / "torch"))
    write_native(source, base / "ours", *source.processor())
    return base


@pytest.mark.parametrize("name", OURS)
def test_a_hostile_directory_of_ours_is_refused(valid, elsewhere, tmp_path, name):
    change, words = OURS[name]
    directory = copy_of(valid / "ours", tmp_path)
    change(directory)
    refuses(Janus.load, directory, words)
    assert not list(elsewhere.iterdir())


def test_the_valid_directories_are_read(valid, elsewhere, tmp_path):
    for kind in ("ours", "torch"):
        assert Janus.load(valid / kind).config.decoder.width == 64
    directory = copy_of(valid / "ours", tmp_path)
    stages(["main"])(directory)
    assert load_model(directory).origin["step"] == 7


def leaves_of(value, path=()):
    """The paths of everything in a parsed JSON file."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else ():
        yield from leaves_of(value[key], (*path, key))


ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    10**60,
    "",
    ESCAPE,
    "x" * LONG,
    [],
    [[1]],
    {},
    {ESCAPE: [None]},
    [None] * 9,
)


def test_no_value_of_a_file_is_a_traceback(valid, tmp_path):
    """Every value of every JSON file, and every section, is replaced by what does not belong there."""
    from janus_jax.interop.conversion.source import _read_config

    torch_dir = shutil.copytree(valid / "torch", tmp_path / "torch", copy_function=os.link)
    native = shutil.copytree(valid / "ours", tmp_path / "ours", copy_function=os.link)
    hf = tmp_path / "hf"
    hf.mkdir()
    plain = config_to_hf(JANUS_PRO_1B, 5, "float32") | {"model_type": "janus"}
    (hf / "config.json").write_text(json.dumps(plain))
    metadata = lambda d: (
        lambda c: (JanusConfig.from_dict(c["config"]), ProcessorConfig.from_dict(c["processor"]))
    )(_read_metadata(d))
    tried = refused = 0
    for directory, file, use in (
        (torch_dir, "config.json", lambda d: _read_config(d, "x")),
        (hf, "config.json", lambda d: _read_config(d, "x")),
        (native, "janus.json", metadata),
    ):
        text = (directory / file).read_bytes()
        for path in leaves_of(json.loads(text)):
            for odd in ODD:
                replace(directory / file, text)
                edit(file, *path, value=odd)(directory)
                tried += 1
                try:
                    use(directory)
                except UserError as error:
                    message = str(error)
                    refused += 1
                    assert message.isprintable() and len(message) <= 500, (path, odd, message)
    assert tried > 1500 and refused > 0.5 * tried


@pytest.mark.parametrize(
    ("command", "kind", "changes", "words"),
    [
        ("convert_torch_weights.py", "torch", (vocab(big=2**31),), "id"),
        ("sample.py", "ours", (stages([ESCAPE]),), "stages.json"),
    ],
)
def test_a_command_ends_in_one_line_in_little_memory(
    valid, elsewhere, tmp_path, command, kind, changes, words
):
    directory = copy_of(valid / kind, tmp_path)
    both(*changes)(directory)
    flags = {
        "convert_torch_weights.py": ["--src", directory, "--dst", tmp_path / "converted"],
        "sample.py": ["--checkpoint", directory, "--prompt", "a cat", "--out", tmp_path / "out"],
    }
    limited = ["bash", "-c", 'ulimit -v 7340032; exec "$@"', "bash", sys.executable]
    ran = subprocess.run(
        [*limited, ROOT / command, *map(str, flags[command])],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )
    assert ran.returncode == 2, ran.stderr[-2000:]
    assert ran.stdout == "" and re.search(words, ran.stderr)
    assert ran.stderr.startswith("error: ") and ran.stderr[:-1].isprintable()
    assert not (tmp_path / "converted").exists() and not list(elsewhere.iterdir())
