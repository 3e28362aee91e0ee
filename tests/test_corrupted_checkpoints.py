"""Hundreds of broken checkpoints: each must be refused in one line, and leave nothing behind."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import jax  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.errors import UserError
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_native
from janus_jax.processing import build_word_tokenizer

pytestmark = pytest.mark.heavy

GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = build_word_tokenizer("a red cat".split())
STATE = load_file(GOLDEN / WEIGHTS)
USED = sorted(
    n for n in STATE if "attn_pool" not in n and n != "gen_vision_model.quantize.codebook_used"
)
CONFIG = json.loads((GOLDEN / "config.json").read_text())
CASES = {}


def case(name):
    """Registers a change of (directory, state): it edits the state, which is then saved, or the files."""

    def register(function):
        assert name not in CASES
        CASES[name] = function
        return function

    return register


def for_names(label, count, seed, change):
    """A case for each of `count` random tensors."""
    chosen = np.random.default_rng(seed).choice(USED, count, replace=False)
    for name in chosen:
        case(f"{label}-{name}")(lambda directory, state, name=name: change(state, name))


# Tensors


def remove(state, name):
    del state[name]


def rename(state, name):
    state[f"{name}_old"] = state.pop(name)


def shorten(state, name):
    state[name] = np.ascontiguousarray(state[name][:-1])


def add_axis(state, name):
    state[name] = state[name][None]


def flatten(state, name):
    # A vector stays as it is when it is flattened.
    state[name] = state[name].reshape(-1) if state[name].ndim > 1 else state[name][:, None]


def put(value):
    def change(state, name):
        state[name] = state[name].copy()
        state[name].flat[state[name].size // 2] = value

    return change


def retype(dtype):
    def change(state, name):
        state[name] = state[name].astype(np.float32).astype(dtype)

    return change


for_names("removed", 25, 1, remove)
for_names("renamed", 15, 2, rename)
for_names("shortened", 20, 3, shorten)
for_names("one-axis-more", 8, 4, add_axis)
for_names("flattened", 12, 5, flatten)
for_names("nan", 12, 6, put(np.nan))
for_names("inf", 8, 7, put(np.inf))
for_names("minus-inf", 4, 8, put(-np.inf))
for number, kind in enumerate(("int32", "int64", "int8", "bool", "float64", "uint8")):
    for_names(kind, 2, 20 + number, retype(kind))

_rng = np.random.default_rng(9)
for _ in range(12):
    one, two = _rng.choice(USED, 2, replace=False)
    if STATE[one].shape != STATE[two].shape:

        @case(f"swapped-{one}-{two}")
        def swap(directory, state, one=one, two=two):
            state[one], state[two] = state[two], state[one]


@case("two-tensors-are-empty")
def empty(directory, state):
    for name in USED[:2]:
        state[name] = state[name][:0]


for extra in (
    "surprise",
    "language_model.model.layers.2.mlp.up_proj.weight",
    "model.aligner.fc1.bias",
):

    @case(f"unexpected-{extra}")
    def unexpected(directory, state, extra=extra):
        state[extra] = np.zeros(3, np.float32)


# The weight file


def raw(change):
    """A case that edits the bytes of the weight file."""

    def edit(directory, state):
        path = directory / WEIGHTS
        path.write_bytes(change(path.read_bytes()))
        state.clear()

    return edit


for share in (0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.9999):
    case(f"truncated-to-{share}")(raw(lambda b, share=share: b[: int(len(b) * share)]))
for size in (1, 7, 8, 9, 100):
    case(f"truncated-to-{size}-bytes")(raw(lambda b, size=size: b[:size]))
case("longer")(raw(lambda b: b + b"\0" * 64))
case("no-header")(raw(lambda b: b[8:]))
case("huge-header")(raw(lambda b: b"\xff" * 8 + b[8:]))
case("zeros")(raw(lambda b: b"\0" * len(b)))
case("text")(raw(lambda b: b"<html>404</html>"))
case("lfs-pointer")(raw(lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"))
for place in (10, 60, 200, 1000, 3000, 9000):
    case(f"header-byte-{place}")(
        raw(lambda b, place=place: b[:place] + bytes([b[place] ^ 0x15]) + b[place + 1 :])
    )


@case("no-weights")
def no_weights(directory, state):
    (directory / WEIGHTS).unlink()
    state.clear()


@case("a-directory-of-that-name")
def a_directory(directory, state):
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).mkdir()
    state.clear()


# Shards


def sharded(change):
    """A case with three shards and an index: `change(directory, weight_map)`, returns the index's text."""

    def edit(directory, state):
        names = sorted(state)
        listed = {}
        for i in range(3):
            file = f"model-0000{i + 1}-of-00003.safetensors"
            part = names[i::3]
            save_file({n: state[n] for n in part}, directory / file)
            listed |= dict.fromkeys(part, file)
        (directory / WEIGHTS).unlink()
        state.clear()
        text = change(directory, listed)
        text = json.dumps({"weight_map": listed}) if text is None else text
        (directory / INDEX).write_text(text)

    return edit


FIRST = "model-00001-of-00003.safetensors"
for i in (1, 2, 3):
    case(f"shard-{i}-missing")(
        sharded(lambda d, m, i=i: (d / f"model-0000{i}-of-00003.safetensors").unlink())
    )
case("shard-truncated")(
    sharded(lambda d, m: (d / FIRST).write_bytes((d / FIRST).read_bytes()[:5000]) and None)
)
case("shard-is-another")(
    sharded(
        lambda d, m: shutil.copyfile(d / "model-00002-of-00003.safetensors", d / FIRST) and None
    )
)
case("index-lists-too-much")(sharded(lambda d, m: m.update(surprise=FIRST)))
case("index-lists-too-little")(sharded(lambda d, m: m.pop(USED[5]) and None))
case("index-leaves-the-directory")(sharded(lambda d, m: m.update({USED[5]: "../x.safetensors"})))
case("index-names-a-script")(sharded(lambda d, m: m.update({USED[5]: "setup.py"})))
case("index-is-no-json")(sharded(lambda d, m: "{"))
case("index-is-a-list")(sharded(lambda d, m: "[]"))
case("index-has-no-map")(sharded(lambda d, m: "{}"))
case("index-has-an-empty-map")(sharded(lambda d, m: '{"weight_map": {}}'))
case("index-has-another-map")(sharded(lambda d, m: '{"weight_map": []}'))


# Configs


def configured(name, *path, value=None, drop=False):
    """A case that sets or drops one key of config.json."""

    @case(f"config-{name}")
    def change(directory, state):
        config = json.loads(json.dumps(CONFIG))
        place = config
        for key in path[:-1]:
            place = place[key]
        if drop:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        (directory / "config.json").write_text(json.dumps(config))


VISION, VQ = ("vision_config", "params"), ("gen_vision_config", "params")
LLAMA, HEAD = ("language_config",), ("gen_head_config", "params")
for section in (
    *("vision_config", "aligner_config", "gen_vision_config", "gen_aligner_config"),
    *("gen_head_config", "language_config", "model_type"),
):
    configured(f"without-{section}", section, drop=True)
    configured(f"{section}-is-a-number", section, value=7)
for key in ("width", "layers", "heads", "patch_size", "image_size"):
    configured(f"vision-without-{key}", *VISION, key, drop=True) if key != "image_size" else None
    for value in (0, -1, "64", 3.5):
        configured(f"vision-{key}-{value!r}", *VISION, key, value=value)
configured("vision-wider", *VISION, "width", value=128)
configured("vision-deeper", *VISION, "layers", value=3)
configured("vision-heads-do-not-divide", *VISION, "heads", value=5)
configured("vision-clip-layer", *VISION, "select_layer", value=-2)
configured("vision-feature", *VISION, "select_feature", value="patch")
for key in ("ch", "z_channels", "num_res_blocks"):
    configured(f"vq-without-{key}", *VQ, key, drop=True)
    configured(f"vq-{key}-0", *VQ, key, value=0)
    configured(f"vq-{key}-more", *VQ, key, value=96)
configured("vq-ch-mult-number", *VQ, "ch_mult", value=2)
configured("vq-ch-mult-short", *VQ, "ch_mult", value=[1, 2])
configured("vq-ch-mult-empty", *VQ, "ch_mult", value=[])
configured("vq-codebook", *VQ, "image_token_size", value=512)
configured("vq-codebook-dim", *VQ, "n_embed", value=16)
for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"):
    for value in (0, -3, "many", 96):
        configured(f"llama-{key}-{value!r}", *LLAMA, key, value=value)
configured("llama-kv-heads", *LLAMA, "num_key_value_heads", value=3)
configured("llama-heads", *LLAMA, "num_attention_heads", value=0)
configured("llama-head-dim", *LLAMA, "head_dim", value=32)
configured("llama-rope-scaling", *LLAMA, "rope_scaling", value={"type": "linear", "factor": 2})
configured("llama-bias", *LLAMA, "attention_bias", value=True)
configured("llama-act", *LLAMA, "hidden_act", value="gelu")
configured("llama-tied", *LLAMA, "tie_word_embeddings", value=True)
configured("llama-eps", *LLAMA, "rms_norm_eps", value="small")
configured("head-width", *HEAD, "n_embed", value=32)
configured("head-codes", *HEAD, "image_token_size", value=100)
configured("adaptor-depth", "aligner_config", "params", "depth", value=3)
configured("adaptor-type", "aligner_config", "params", "projector_type", value="linear")
configured("another-model", "model_type", value="llava")


for name, text in {
    "broken": '{"model_type": ',
    "empty": "",
    "list": "[1, 2]",
    "null": "null",
    "binary": "\x00\x01\x02",
}.items():

    @case(f"config-{name}")
    def config_text(directory, state, text=text):
        (directory / "config.json").write_text(text)


@case("no-config")
def no_config(directory, state):
    (directory / "config.json").unlink()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("corrupted")


def prepare(place, name):
    directory = place / "src"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for file in ("config.json", WEIGHTS):
        shutil.copyfile(GOLDEN / file, directory / file)
    (directory / "tokenizer.json").write_text(TOKENIZER.to_json())
    state = dict(STATE)
    if name in CASES:
        CASES[name](directory, state)
    if state and (len(state) != len(STATE) or any(state[k] is not STATE.get(k) for k in state)):
        save_file(state, directory / WEIGHTS)
    return directory


def convert(directory, out):
    source = open_source(directory)
    write_native(source, out, *source.processor())


def refused(directory, place):
    with pytest.raises(UserError) as error:
        convert(directory, place / "out")
    assert "\n" not in str(error.value) and len(str(error.value)) > 20
    assert [p.name for p in place.iterdir()] == ["src"]


def test_there_are_enough_cases():
    assert len(CASES) >= 200


def test_the_checkpoint_itself_converts(place):
    convert(prepare(place, None), place / "out")
    shutil.rmtree(place / "out")


@pytest.mark.parametrize("name", CASES)
def test_refused(place, name):
    refused(prepare(place, name), place)


# Pickles


class Hostile:
    """Runs a command when it is unpickled by anything careless."""

    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return (Path.touch, (self._marker,))


def pickled(value):
    """A torch-like archive whose data.pkl is a plain pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["zip", "bare", "hidden"])
def test_a_pickle_that_would_run_code_is_refused_and_does_not(place, kind):
    directory, marker = prepare(place, None), place / "src" / "ran"
    (directory / WEIGHTS).unlink()
    value = {"aligner.layers.0.weight": Hostile(marker)} if kind == "hidden" else Hostile(marker)
    blob = pickle.dumps(value) if kind == "bare" else pickled(value)
    (directory / "pytorch_model.bin").write_bytes(blob)
    refused(directory, place)
    assert not marker.exists()


@pytest.mark.torch
@pytest.mark.parametrize("value", [{}, [1, 2], {"a": 1}, {3: "b"}, None], ids=repr)
def test_a_pickle_without_tensors_is_refused(place, value):
    directory = prepare(place, None)
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").write_bytes(pickled(value))
    refused(directory, place)


@pytest.mark.torch
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_state_dict_is_refused(place, share):
    import torch

    directory = prepare(place, None)
    (directory / WEIGHTS).unlink()
    as_torch = lambda v: torch.from_numpy(v.view(np.int16)).view(torch.bfloat16)
    torch.save({k: as_torch(v) for k, v in STATE.items() if v.dtype.itemsize == 2}, place / "x.bin")
    blob = (place / "x.bin").read_bytes()
    (place / "x.bin").unlink()
    (directory / "pytorch_model.bin").write_bytes(blob[: int(len(blob) * share)])
    refused(directory, place)
