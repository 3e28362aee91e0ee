"""Adapters from strangers: whatever is in the files, an answer comes in one line, soon, and in little memory."""

import json
import re
import shutil

import pytest
from adapter_files import CONFIG, WEIGHTS, adapted, edit_settings
from hostile import (
    DEEP,
    DIGITS,
    ESCAPE,
    PLACES,
    Raw,
    Runs,
    edit,
    limits,
    put,
    refuses,
    special,
)

from janus_jax.errors import UserError
from janus_jax.interop.adapters import check_adapter, read_adapter, write_adapter

CONFIG_FILE = "adapter_config.json"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters") / "adapter"
    write_adapter(adapted(), CONFIG, path)
    return path


@pytest.fixture
def adapter(written, tmp_path):
    return shutil.copytree(written, tmp_path / "adapter")


def use(directory):
    read_adapter(directory, CONFIG)


def header_of(directory, change):
    """Changes the header of the weights, as text, without their values."""
    data = (directory / WEIGHTS).read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + size].decode()).encode()
    text += b" " * (-len(text) % 8)
    put(WEIGHTS, len(text).to_bytes(8, "little") + text + data[8 + size :])(directory)


def header(change):
    return lambda directory: header_of(directory, change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(CONFIG_FILE, ""), "is empty"),
        (put(CONFIG_FILE, DEEP), "nested too deeply"),
        (put(CONFIG_FILE, "[]"), "must hold one JSON object"),
        (put(CONFIG_FILE, b"\xff\xfe\x00"), "cannot read"),
        (edit(CONFIG_FILE, "r", value=Raw(DIGITS)), "a number of 100000 digits"),
        (edit(CONFIG_FILE, "r", value=Raw("9" * 70)), "r must be a whole number"),
        (edit(CONFIG_FILE, "lora_alpha", value=Raw("1e999")), "lora_alpha must be a number"),
        (edit(CONFIG_FILE, "lora_alpha", value=Raw("9" * 79)), "lora_alpha must be a number"),
        (edit(CONFIG_FILE, "peft_type", value=ESCAPE * 999), "only 'LORA' is read"),
        (edit(CONFIG_FILE, "peft_type", value={"a": [1] * 999}), "only 'LORA' is read"),
        (edit(CONFIG_FILE, ESCAPE, value=1), None),
        (edit(CONFIG_FILE, f"use_{ESCAPE}", value=1), "is not known here"),
        (edit(CONFIG_FILE, "alpha_pattern", value={"(a+)+": 1}), "take long to match"),
        (edit(CONFIG_FILE, "alpha_pattern", value={".*" * 30 + "x": 1}), "take long to match"),
        (edit(CONFIG_FILE, "alpha_pattern", value={"(.|.)" * 30: 1}), "take long to match"),
        (edit(CONFIG_FILE, "alpha_pattern", value={"a{9999}": 1}), "take long to match"),
        (edit(CONFIG_FILE, "alpha_pattern", value={".*.*.*x": 1}), None),
        (
            edit(CONFIG_FILE, "alpha_pattern", value={f"layers.{i}": 1 for i in range(10**5)}),
            "has 100000 patterns",
        ),
        (edit(CONFIG_FILE, "alpha_pattern", value={ESCAPE + "[": 1}), "is no pattern"),
        (put(WEIGHTS, b""), "cannot be read"),
        (put(WEIGHTS, b"\xff" * 8 + b"{}"), "header of 18446744073709551615 bytes"),
        (header(lambda text: DEEP), "cannot be read"),
        (header(lambda text: text.replace("[4,128]", "[4,-1]")), "cannot be read"),
        (header(lambda text: text.replace("[4,128]", f"[4,{2**62}]")), "cannot be read"),
        (header(lambda text: text.replace("q_proj", "\\u001b[2J", 1)), "no tensor of a model has"),
        (header(lambda text: text.replace("layers.0.", "layers.99999999.")), "of another base"),
        (header(lambda text: text.replace("q_proj", "q" * 300, 1)), "letters"),
        *((special(CONFIG_FILE, kind), "must be a file|is a link|cannot read") for kind in PLACES),
        *((special(WEIGHTS, kind), "must be a file|is a link|cannot read") for kind in PLACES),
        (special(CONFIG_FILE, "sparse"), "it has more than 32 MiB"),
        (special(WEIGHTS, "sparse"), "cannot be read"),
    ],
)
def test_files_of_strangers(adapter, change, words):
    change(adapter)
    if words is None:
        with limits():
            use(adapter)
    else:
        refuses(use, adapter, words)


def test_a_pattern_that_is_read_is_read_soon(adapter):
    edit_settings(adapter, alpha_pattern={f"layers.{i}.mlp.up_proj": i + 1 for i in range(4096)})
    with limits():
        use(adapter)


@pytest.mark.torch
def test_a_pickle_that_would_run_code_is_refused(adapter, elsewhere):
    import torch

    (adapter / WEIGHTS).unlink()
    torch.save({"a": Runs(open, "ran", "w")}, adapter / "adapter_model.bin")
    refuses(use, adapter, "loading it could run code")
    assert not list(elsewhere.iterdir())


def test_names_from_the_files_are_shown_without_what_steers_a_terminal(adapter):
    values = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps(values | {"bias": ESCAPE}))
    with pytest.raises(UserError) as error:
        check_adapter(adapter, "model")
    assert re.search(r"bias is '\\\\?x1b", str(error.value)) and "\x1b" not in str(error.value)
