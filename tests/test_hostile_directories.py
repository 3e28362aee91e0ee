"""Model directories that are damaged on purpose: each is refused in one line, quickly and in little memory.

Every variant is a valid tiny directory with one change. PyTorch directories go through what
`convert_torch_weights.py` and `Janus.load` do with them, ours through `Janus.load`.
"""

import contextlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from janus_jax import Janus
from janus_jax.checkpoints import load_model
from janus_jax.checkpoints.model_dir import _read_card
from janus_jax.config import JANUS_PRO_1B, JanusConfig
from janus_jax.errors import UserError
from janus_jax.processing import ProcessorConfig, build_word_tokenizer
from janus_jax.weights import parity
from janus_jax.weights.hf_config import config_to_hf
from janus_jax.weights.parity import check_parity, read_recording
from janus_jax.weights.source import open_source
from janus_jax.weights.write import write_ours

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
SECONDS = 20
MEGABYTES = 400  # beside what was in use before
LONG = 100_000
ESCAPE = "\x1b[2J\x1b]0;owned\x07"
DEEP = "[" * LONG + "]" * LONG
DIGITS = "9" * LONG


# Changes: each takes the directory.


def edit(file, *path, value, drop=False):
    """Sets what is at `path` in a JSON file; a `Raw` value is put there as text."""

    def change(directory):
        values = json.loads((directory / file).read_text())
        place = values
        for key in path[:-1]:
            place = place[key]
        if drop:
            del place[path[-1]]
        else:
            place[path[-1]] = "RAW" if isinstance(value, Raw) else value
        text = json.dumps(values)
        if isinstance(value, Raw):
            text = text.replace('"RAW"', value)
        replace(directory / file, text.encode())

    return change


class Raw(str):
    """JSON text that json.dumps would not write."""


def replace(path, data):
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def put(file, data):
    data = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    return lambda directory: replace(directory / file, data)


def special(file, kind):
    """A named pipe, a directory, a link to a device, to itself or to nothing, or 64 GB of zeros."""

    def change(directory):
        path = directory / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            os.mknod(path, 0o600 | 0o140000)
        elif kind == "sparse":
            with path.open("wb") as file_:
                file_.truncate(64 * 10**9)
        else:
            path.symlink_to({"device": "/dev/zero", "loop": path, "dangling": "/nowhere"}[kind])

    return change


def header_of(directory):
    data = (directory / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def header(change=None, text=None, size=None, keep=None):
    """Changes the header of model.safetensors: the parsed object, its text or its stated size."""

    def act(directory):
        values, rest = header_of(directory)
        if change:
            values = change(values) or values
        raw = (text(json.dumps(values)) if text else json.dumps(values)).encode()
        raw += b" " * (-len(raw) % 8)
        length = struct.pack("<Q", len(raw) if size is None else size)
        replace(directory / "model.safetensors", (length + raw + rest)[:keep])

    return act


def info(**changes):
    """Changes what the header says of one tensor."""
    return header(lambda h: h["language_model.lm_head.weight"].update(changes))


def state_of(directory):
    return load_file(directory / "model.safetensors")


def state(change):
    """Changes the tensors of model.safetensors: the dict, or returns a new one."""

    def act(directory):
        values = state_of(directory)
        values = change(values) or values
        path = directory / "model.safetensors"
        path.unlink()
        save_file({k: np.ascontiguousarray(v) for k, v in values.items()}, path)

    return act


def rename(function):
    return state(lambda s: {function(k): v for k, v in s.items()})


def torch_state(directory):
    view = lambda v: (
        torch.from_numpy(v.view(np.int16)).view(torch.bfloat16)
        if v.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(v)
    )
    return {k: view(v) for k, v in state_of(directory).items()}


def pickled(change, **options):
    """The weights as pytorch_model.bin instead, after a change to the state dict."""

    def act(directory):
        values = torch_state(directory)
        values = change(values) or values
        (directory / "model.safetensors").unlink()
        torch.save(values, directory / "pytorch_model.bin", **options)

    return act


class Runs:
    """Its pickle calls something."""

    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


def archive(build):
    """pytorch_model.bin is rebuilt by `build(names and bytes, new zip)`."""

    def act(directory):
        pickled(lambda s: None)(directory)
        path = directory / "pytorch_model.bin"
        with zipfile.ZipFile(path) as old:
            parts = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            build(parts, new)

    return act


def bomb(parts, new):
    for name, data in parts.items():
        if name.endswith("data.pkl"):
            data = data[:-1] + b"N0" * (20 * 10**6) + b"."
        new.writestr(name, data, zipfile.ZIP_DEFLATED, 1)


def deflated(parts, new):
    for name, data in parts.items():
        new.writestr(name, data, zipfile.ZIP_DEFLATED)


def both(*changes):
    def act(directory):
        for change in changes:
            change(directory)

    return act


def index(**weight_map):
    """An index beside the weights."""
    return put("model.safetensors.index.json", json.dumps({"weight_map": weight_map}))


def tokens(change):
    def act(directory):
        values = json.loads((directory / "tokenizer.json").read_text())
        values = change(values) or values
        replace(directory / "tokenizer.json", json.dumps(values).encode())

    return act


def vocab(**words):
    return tokens(lambda t: t["model"]["vocab"].update(words))


LLAMA = ("config.json", "language_config")
VISION = ("config.json", "vision_config", "params")
CODES = ("config.json", "gen_vision_config", "params")
HEAD = "language_model.lm_head.weight"
PLACES = ("pipe", "directory", "device", "loop", "dangling", "socket")
BIG = 10**6

# What is wrong -> (change, words of the message).
TORCH = {
    # config.json: text
    "deep": (put("config.json", DEEP), "config.json"),
    "deep in an object": (put("config.json", '{"a":' * LONG), "config.json"),
    "deep value": (edit(*LLAMA, "hidden_act", value=Raw("[" * 900 + "]" * 900)), "hidden_act"),
    "digits": (edit(*LLAMA, "vocab_size", value=Raw(DIGITS)), "config.json"),
    "negative digits": (edit(*LLAMA, "vocab_size", value=Raw("-" + DIGITS)), "config.json"),
    "many digits": (edit(*LLAMA, "vocab_size", value=10**4000), "config.json"),
    "float of digits": (edit(*LLAMA, "rope_theta", value=10**400), "config.json"),
    "exponent": (edit(*LLAMA, "rope_theta", value=Raw("1e999")), "rope_theta"),
    "nan": (edit(*LLAMA, "rms_norm_eps", value=Raw("NaN")), "norm_eps"),
    "infinite size": (edit(*LLAMA, "hidden_size", value=Raw("Infinity")), "hidden_size"),
    "empty": (put("config.json", ""), "config.json"),
    "cut": (put("config.json", '{"model_type": "multi_mod'), "config.json"),
    "list": (put("config.json", "[]"), "config.json"),
    "string": (put("config.json", '"multi_modality"'), "config.json"),
    "null": (put("config.json", "null"), "config.json"),
    "zeros": (put("config.json", b"\0" * 1000), "config.json"),
    "utf-16": (put("config.json", "{}".encode("utf-16")), "config.json"),
    "surrogate": (edit("config.json", "model_type", value="\ud800"), "model_type"),
    "escapes in model_type": (edit("config.json", "model_type", value=ESCAPE), "model_type"),
    "long model_type": (edit("config.json", "model_type", value="x" * LONG), "model_type"),
    "long key": (edit(*VISION, "image_size", value={"x" * LONG: 1}), "image_size"),
    # config.json: numbers
    "layers": (edit(*LLAMA, "num_hidden_layers", value=BIG), "layers"),
    "more layers than tensors": (edit(*LLAMA, "num_hidden_layers", value=900), "tensors"),
    "vision layers": (edit(*VISION, "layers", value=BIG), "layers"),
    "more vision layers than tensors": (edit(*VISION, "layers", value=900), "tensors"),
    "res blocks": (edit(*CODES, "num_res_blocks", value=BIG), "num_res_blocks"),
    "more res blocks than tensors": (edit(*CODES, "num_res_blocks", value=40), "tensors"),
    "levels": (edit(*CODES, "ch_mult", value=[1] * LONG), "ch_mult"),
    "multiplier": (edit(*CODES, "ch_mult", value=[1, 1, 10**15]), "ch_mult"),
    "vocabulary": (edit(*LLAMA, "vocab_size", value=2**60), "vocab_size"),
    "width": (edit(*LLAMA, "hidden_size", value=2**60), "width"),
    "feed-forward": (edit(*LLAMA, "intermediate_size", value=2**60), "ffw"),
    "heads": (edit(*LLAMA, "num_attention_heads", value=2**60), "head"),
    "head size": (edit(*LLAMA, "head_dim", value=2**60), "head_dim"),
    "positions": (edit(*LLAMA, "max_position_embeddings", value=2**60), "max_position"),
    "image size": (edit(*VISION, "image_size", value=2**60), "image_size"),
    "picture size": (edit(*CODES, "image_size", value=2**20), "image_size"),
    "codebook": (edit(*CODES, "image_token_size", value=2**60), "codebook_size"),
    "code width": (edit(*CODES, "n_embed", value=2**60), "codebook_dim"),
    "channels": (edit(*CODES, "ch", value=2**60), "ch"),
    "no heads": (edit(*LLAMA, "num_attention_heads", value=0), "heads"),
    "negative layers": (edit(*LLAMA, "num_hidden_layers", value=-1), "layers"),
    "negative vision layers": (edit(*VISION, "select_layer", value=-(10**9)), "layers"),
    "no patch": (edit(*VISION, "patch_size", value=0), "patch_size"),
    "true layers": (edit(*LLAMA, "num_hidden_layers", value=True), "layers"),
    "text for a number": (edit(*LLAMA, "hidden_size", value="64"), "hidden_size"),
    "number for a section": (edit(*VISION, value=5), "params"),
    "list for a section": (edit("config.json", "language_config", value=[]), "language_config"),
    "text for a list": (edit(*CODES, "ch_mult", value="11"), "ch_mult"),
    "number for a list": (edit(*CODES, "ch_mult", value=3), "ch_mult"),
    "empty list": (edit(*CODES, "ch_mult", value=[]), "ch_mult"),
    "lists in a list": (edit(*CODES, "ch_mult", value=[[1]]), "ch_mult"),
    "escapes in the head": (
        edit("config.json", "gen_head_config", "params", "n_embed", value=ESCAPE),
        "n_embed",
    ),
    "kv heads": (edit(*LLAMA, "num_key_value_heads", value="x" * LONG), "kv_heads"),
    "rope": (edit(*LLAMA, "rope_parameters", value=[ESCAPE] * LONG), "rope_parameters"),
    # files of the wrong kind
    **{f"config.json: {kind}": (special("config.json", kind), "config.json") for kind in PLACES},
    "config.json: sparse": (special("config.json", "sparse"), "config.json"),
    **{f"tokenizer: {kind}": (special("tokenizer.json", kind), "tokenizer") for kind in PLACES},
    "tokenizer: sparse": (special("tokenizer.json", "sparse"), "tokenizer"),
    **{
        f"weights: {kind}": (special("model.safetensors", kind), "model.safetensors")
        for kind in (*PLACES, "sparse")
    },
    **{
        f"bin: {kind}": (
            both(lambda d: (d / "model.safetensors").unlink(), special("pytorch_model.bin", kind)),
            "pytorch_model.bin",
        )
        for kind in ("pipe", "device", "directory", "sparse")
    },
    **{
        f"index: {kind}": (special("model.safetensors.index.json", kind), "index.json")
        for kind in ("pipe", "device", "directory", "sparse")
    },
    # tokenizer.json
    "tokenizer: empty": (put("tokenizer.json", ""), "tokenizer"),
    "tokenizer: {}": (put("tokenizer.json", "{}"), "tokenizer"),
    "tokenizer: list": (put("tokenizer.json", "[]"), "tokenizer"),
    "tokenizer: deep": (put("tokenizer.json", DEEP), "tokenizer"),
    "tokenizer: digits": (put("tokenizer.json", '{"version":' + DIGITS + "}"), "tokenizer"),
    "tokenizer: latin-1": (put("tokenizer.json", b'{"a": "\xe9"}'), "tokenizer"),
    "tokenizer: id 2^31": (vocab(big=2**31), "id"),
    "tokenizer: id 2^32-1": (vocab(big=2**32 - 1), "id"),
    "tokenizer: id 2^64": (vocab(big=2**64), "tokenizer"),
    "tokenizer: id beyond the table": (vocab(big=600), "rows|gaps"),
    "tokenizer: gaps": (vocab(big=10**6), "id"),
    "tokenizer: negative id": (vocab(big=-1), "tokenizer"),
    "tokenizer: half an id": (vocab(big=1.5), "tokenizer"),
    "tokenizer: text for an id": (vocab(big="1"), "tokenizer"),
    "tokenizer: no words": (
        tokens(lambda t: t["model"].update(vocab={}) or t | {"added_tokens": []}),
        "vocabulary",
    ),
    "tokenizer: empty BPE": (
        tokens(
            lambda t: t | {"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
        ),
        "vocabulary",
    ),
    "tokenizer: no unknown": (tokens(lambda t: t["model"].update(unk_token="nope")), "nope|UNK"),
    "tokenizer: merges": (
        tokens(lambda t: t["model"].update(type="BPE", merges=["a b"], unk_token=None)),
        "tokenizer",
    ),
    "tokenizer: unigram": (
        tokens(lambda t: t | {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}}),
        "tokenizer",
    ),
    "tokenizer: precompiled": (
        tokens(
            lambda t: t | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
        ),
        "tokenizer",
    ),
    "tokenizer: bad regex": (
        tokens(
            lambda t: (
                t
                | {
                    "pre_tokenizer": {
                        "type": "Split",
                        "pattern": {"Regex": "(" * 50},
                        "behavior": "Isolated",
                        "invert": False,
                    }
                }
            )
        ),
        "tokenizer",
    ),
    "tokenizer: escapes in a type": (tokens(lambda t: t["model"].update(type=ESCAPE)), "tokenizer"),
    "tokenizer: long type": (
        tokens(lambda t: t | {"normalizer": {"type": "x" * LONG}}),
        "tokenizer",
    ),
    "tokenizer: no first token": (
        lambda d: replace(
            d / "tokenizer.json",
            (d / "tokenizer.json").read_bytes().replace("<｜begin▁of".encode(), b"<other"),
        ),
        "token",
    ),
    # processor files
    "template of escapes": (
        put("processor_config.json", json.dumps({"sft_format": ESCAPE})),
        "sft_format",
    ),
    "template of letters": (
        put("processor_config.json", json.dumps({"sft_format": "x" * LONG})),
        "sft_format",
    ),
    "template of lists": (put("processor_config.json", '{"sft_format": [1]}'), "processor|sft"),
    "tokens of escapes": (
        put("processor_config.json", json.dumps({"num_image_tokens": ESCAPE})),
        "num_image_tokens",
    ),
    "deep processor": (put("processor_config.json", DEEP), "processor_config"),
    "list of a processor": (put("processor_config.json", "[]"), "processor_config"),
    "picture size of escapes": (
        put("preprocessor_config.json", json.dumps({"image_size": ESCAPE})),
        "image_size",
    ),
    "mean of digits": (
        put("preprocessor_config.json", '{"image_mean": [' + DIGITS + "]}"),
        "preprocessor",
    ),
    "mean of objects": (put("preprocessor_config.json", '{"image_mean": {"a": 1}}'), "image_mean"),
    # model.safetensors
    "header of 2^63": (header(size=2**63), "model.safetensors"),
    "header of 2^31": (header(size=2**31), "model.safetensors"),
    "header of 20 MB": (
        header(text=lambda t: t + " " * (20 * 10**6)),
        "model.safetensors",
    ),
    "no header": (header(size=0), "model.safetensors"),
    "seven bytes": (header(keep=7), "model.safetensors"),
    "no bytes": (header(keep=0), "model.safetensors"),
    "half of the data": (header(keep=10**6), "model.safetensors"),
    "deep header": (header(text=lambda t: DEEP), "model.safetensors"),
    "digits in the header": (
        header(text=lambda t: t.replace("[512,64]", f"[{DIGITS}]").replace("512", DIGITS)),
        "model.safetensors",
    ),
    "list of a header": (header(text=lambda t: f"[{t}]"), "model.safetensors"),
    "overlap": (
        header(
            lambda h: h[HEAD].update(
                data_offsets=h["language_model.model.embed_tokens.weight"]["data_offsets"]
            )
        ),
        "model.safetensors",
    ),
    "backwards": (
        header(lambda h: h[HEAD].update(data_offsets=h[HEAD]["data_offsets"][::-1])),
        "model.safetensors",
    ),
    "beyond the file": (info(data_offsets=[0, 2**40]), "model.safetensors"),
    "negative offset": (info(data_offsets=[-8, 0]), "model.safetensors"),
    "offsets of text": (info(data_offsets=["0", "8"]), "model.safetensors"),
    "no offsets": (header(lambda h: h[HEAD].pop("data_offsets") and None), "model.safetensors"),
    "dtype F33": (info(dtype="F33"), "model.safetensors"),
    "long dtype": (info(dtype="F" * LONG), "model.safetensors"),
    "escapes in a dtype": (info(dtype=ESCAPE), "model.safetensors"),
    "dtype of a number": (info(dtype=32), "model.safetensors"),
    "dtype of another size": (info(dtype="F64"), "model.safetensors"),
    "shape that overflows": (info(shape=[2**40, 2**40]), "model.safetensors"),
    "negative shape": (info(shape=[-512, -64]), "model.safetensors"),
    "shape of text": (info(shape="512"), "model.safetensors"),
    "many axes": (info(shape=[1] * 50_000 + [512, 64]), "lm_head"),
    "metadata of lists": (header(lambda h: h.update(__metadata__=[1])), "model.safetensors"),
    "long name": (header(lambda h: h | {"x" * LONG: h.pop(HEAD)}), "letters"),
    "escapes in a name": (header(lambda h: h | {ESCAPE: h.pop(HEAD)}), "name"),
    "line end in a name": (header(lambda h: h | {HEAD + "\n": h.pop(HEAD)}), "name"),
    "traversal in a name": (header(lambda h: h | {"../../x": h.pop(HEAD)}), "unexpected"),
    "empty name": (header(lambda h: h | {"": h.pop(HEAD)}), "name|unexpected"),
    "digits in a name": (
        header(lambda h: h | {f"language_model.model.layers.{DIGITS}.x": h.pop(HEAD)}),
        "letters",
    ),
    "200,000 tensors": (
        header(
            lambda h: (
                h
                | {
                    f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                    for i in range(200_000)
                }
            )
        ),
        "tensors|header",
    ),
    "same name twice": (
        header(
            text=lambda t: t.replace(
                "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
            )
        ),
        "model.safetensors|missing",
    ),
    # shards
    "absolute shard": (index(**{HEAD: "/etc/passwd.safetensors"}), "index.json"),
    "shard above": (index(**{HEAD: "../model.safetensors"}), "index.json"),
    "shard below": (index(**{HEAD: "a/model.safetensors"}), "index.json"),
    "shard of dots": (index(**{HEAD: ".."}), "index.json"),
    "shard of no name": (index(**{HEAD: ""}), "index.json"),
    "shard of another kind": (index(**{HEAD: "config.json"}), "index.json"),
    "shard with a zero byte": (index(**{HEAD: "\0.safetensors"}), "index.json"),
    "shard of escapes": (index(**{HEAD: ESCAPE + ".safetensors"}), "index.json"),
    "long shard": (index(**{HEAD: "x" * LONG + ".safetensors"}), "index.json"),
    "shard of a list": (index(**{HEAD: ["model.safetensors"]}), "index.json"),
    "10,000 shards": (
        index(**{f"x{i}": f"{i}.safetensors" for i in range(10_000)}),
        "index.json",
    ),
    "long names in the index": (
        index(**{"x" * LONG + str(i): "model.safetensors" for i in range(9)}),
        "index",
    ),
    "escapes in the index": (index(**{ESCAPE: "model.safetensors"}), "index"),
    "no weight_map": (put("model.safetensors.index.json", "{}"), "weight_map"),
    "weight_map of a list": (
        put("model.safetensors.index.json", '{"weight_map": []}'),
        "weight_map",
    ),
    "deep index": (put("model.safetensors.index.json", DEEP), "index.json"),
    "empty index": (index(), "index.json"),
    "pipe as a shard": (
        both(index(**{HEAD: "model-1.safetensors"}), special("model-1.safetensors", "pipe")),
        "model-1.safetensors",
    ),
    # pytorch_model.bin
    "code": (pickled(lambda s: s | {"a": Runs(os.mkdir, "code_has_run")}), "code"),
    "code of torch": (pickled(lambda s: s | {"a": Runs(torch.save, 1, "code_has_run")}), "code"),
    "code, old format": (
        pickled(
            lambda s: {"a": Runs(os.mkdir, "code_has_run")}, _use_new_zipfile_serialization=False
        ),
        "pytorch_model.bin",
    ),
    "plain pickle of code": (
        both(
            lambda d: (d / "model.safetensors").unlink(),
            put("pytorch_model.bin", pickle.dumps(Runs(os.mkdir, "code_has_run"))),
        ),
        "pytorch_model.bin",
    ),
    "memory": (pickled(lambda s: s | {"a": Runs(bytearray, 10**11)}), "pytorch_model.bin"),
    "memory of torch": (
        pickled(lambda s: s | {"a": Runs(torch.Tensor, 10**6, 10**6)}),
        "pytorch_model.bin",
    ),
    "zip bomb": (archive(bomb), "pytorch_model.bin"),
    "compressed weights": (archive(deflated), "pytorch_model.bin"),
    "no pickle in the zip": (archive(lambda p, z: z.writestr("a/b", b"x")), "pytorch_model.bin"),
    "empty zip": (archive(lambda p, z: None), "pytorch_model.bin"),
    "text": (both(pickled(lambda s: None), put("pytorch_model.bin", "hello")), "pytorch_model.bin"),
    "no bytes in .bin": (
        both(pickled(lambda s: None), put("pytorch_model.bin", "")),
        "pytorch_model.bin",
    ),
    "list of tensors": (pickled(lambda s: list(s.values())), "state dict"),
    "numbers for names": (pickled(lambda s: dict(enumerate(s.values()))), "state dict"),
    "training checkpoint": (
        pickled(lambda s: {"epoch": 3, "state_dict": dict(s), "optimizer": {}}),
        "state_dict",
    ),
    "lightning": (pickled(lambda s: {"model": dict(s)}), "'model'"),
    "sparse tensor": (
        pickled(lambda s: s | {HEAD: s[HEAD].float().to_sparse()}),
        "plain tensors",
    ),
    "meta tensor": (pickled(lambda s: s | {HEAD: s[HEAD].to("meta")}), "plain tensors"),
    "complex tensor": (pickled(lambda s: s | {HEAD: s[HEAD].to(torch.complex64)}), "complex64"),
    "quantized tensor": (
        pickled(
            lambda s: s | {HEAD: torch.quantize_per_tensor(s[HEAD].float(), 0.1, 0, torch.qint8)}
        ),
        "qint8|lm_head|code",
    ),
    "tensor beyond its storage": (
        pickled(
            lambda s: (
                s
                | {
                    HEAD: Runs(
                        torch._utils._rebuild_tensor_v2,
                        s[HEAD].storage(),
                        *(0, (10**6, 10**5), (10**5, 1), False, {}),
                    )
                }
            )
        ),
        "pytorch_model.bin",
    ),
    "axes of no length": (
        pickled(lambda s: s | {HEAD: s[HEAD][:1, :1].expand(10**6, 10**6)}),
        "lm_head",
    ),
    "long name in .bin": (pickled(lambda s: s | {"x" * LONG: s[HEAD]}), "letters"),
    "escapes in a name of .bin": (pickled(lambda s: s | {ESCAPE: s[HEAD].clone()}), "name"),
    # what other tools write
    **{
        f"prefix {prefix}": (rename(lambda n, p=prefix: p + n), re.escape(repr(prefix)))
        for prefix in ("base_model.model.", "model.", "model.model.", "student.", "a.b.c.d.")
    },
    "prefix of most": (
        rename(lambda n: n if n.startswith("gen_") else f"janus.{n}"),
        "'janus.'",
    ),
    "adapter": (
        state(
            lambda s: {
                f"base_model.model.{k.removesuffix('.weight')}.lora_{ab}.weight": v
                for k, v in s.items()
                if "q_proj" in k
                for ab in "AB"
            }
        ),
        "adapter",
    ),
    "adapter_model.safetensors": (
        both(
            lambda d: (d / "model.safetensors").rename(d / "adapter_model.safetensors"),
            put("adapter_config.json", "{}"),
        ),
        "adapter",
    ),
    "adapter alone": (
        both(
            lambda d: (d / "model.safetensors").rename(d / "adapter_model.safetensors"),
            put("adapter_config.json", "{}"),
            lambda d: (d / "config.json").unlink(),
        ),
        "adapter",
    ),
    "adapter not merged": (
        rename(
            lambda n: "base_model.model." + n.replace("q_proj.weight", "q_proj.base_layer.weight")
        ),
        "adapter",
    ),
    "no lm_head": (state(lambda s: s.pop(HEAD) is None), "tied"),
    "integers": (state(lambda s: s | {"step": np.array([3])}), "step has dtype I64"),
    "bitsandbytes": (
        edit("config.json", "quantization_config", value={"quant_method": "bitsandbytes"}),
        "quantized.*bitsandbytes",
    ),
    "gptq": (
        edit("config.json", "quantization_config", value={"quant_method": "gptq", "bits": 4}),
        "quantized.*gptq",
    ),
    "awq in the section": (
        edit(*LLAMA, "quantization_config", value={"quant_method": "awq"}),
        "quantized.*awq",
    ),
    "quantization of escapes": (
        edit("config.json", "quantization_config", value={"quant_method": ESCAPE * 999}),
        "quantized",
    ),
    "quantization of text": (edit("config.json", "quantization_config", value="x"), "quantized"),
    "int8 by its names": (
        state(
            lambda s: (
                s | {HEAD: np.ones((512, 64), np.int8), HEAD[:-6] + "SCB": np.ones(512, np.float32)}
            )
        ),
        "quantized",
    ),
    "4 bits by their names": (
        state(
            lambda s: (
                s | {HEAD: np.ones((16384, 1), np.uint8), HEAD + ".absmax": np.ones(9, np.float32)}
            )
        ),
        "quantized",
    ),
    "GPTQ by its names": (
        state(lambda s: s | {HEAD[:-6] + "qweight": np.ones((8, 64), np.int32)}),
        "quantized",
    ),
    "fp8": (info(dtype="F8_E4M3", shape=[512, 128]), "quantized|F8_E4M3"),
    "GGUF": (
        lambda d: (d / "model.safetensors").rename(d / "janus-pro-Q4_K_M.gguf"),
        "GGUF",
    ),
}

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
    """The golden checkpoint with a tokenizer, and the same as a directory of ours."""
    base = tmp_path_factory.mktemp("valid")
    directory = base / "torch"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, directory / name)
    (directory / "tokenizer.json").write_text(build_word_tokenizer(["a", "cat"]).to_json())
    source = open_source(directory)
    write_ours(source, base / "ours", *source.processor())
    return base


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Code in a model would run here."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("JANUS_JAX_CACHE", str(tmp_path / "cache"))
    return place


@contextlib.contextmanager
def limits():
    """Fails after some seconds, also inside a read that waits, and if memory grew."""

    def late(*_):
        raise AssertionError(f"not done after {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB"


def use_torch(directory):
    """What the command and `Janus.load` do with a PyTorch directory."""
    source = open_source(directory)
    write_ours(source, directory.parent / "converted", *source.processor())


def refuses(use, directory, words):
    with limits(), pytest.raises(UserError) as caught:
        use(directory)
    message = str(caught.value)
    assert re.search(words, message), message
    assert message.isprintable(), message
    assert len(message) <= 500, message
    message.encode()


@pytest.mark.parametrize("name", TORCH)
def test_a_hostile_pytorch_directory_is_refused(valid, work, tmp_path, name):
    change, words = TORCH[name]
    directory = shutil.copytree(valid / "torch", tmp_path / "model", copy_function=os.link)
    change(directory)
    refuses(use_torch, directory, words)
    assert not list(work.iterdir()) and not (tmp_path / "converted").exists()


@pytest.mark.parametrize("name", OURS)
def test_a_hostile_directory_of_ours_is_refused(valid, work, tmp_path, name):
    change, words = OURS[name]
    directory = shutil.copytree(valid / "ours", tmp_path / "model", copy_function=os.link)
    change(directory)
    refuses(Janus.load, directory, words)
    assert not list(work.iterdir())


def test_the_valid_directories_are_read(valid, work, tmp_path):
    for kind in ("ours", "torch"):
        assert Janus.load(valid / kind).config.decoder.width == 64
    directory = shutil.copytree(valid / "ours", tmp_path / "model", copy_function=os.link)
    stages(["main"])(directory)
    assert load_model(directory).origin["step"] == 7


HARMLESS = {
    **{
        f"prefix {prefix}": rename(lambda n, p=prefix: p + n)
        for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.")
    },
    "compiled part": rename(
        lambda n: n.replace("language_model.model.", "language_model._orig_mod.model.")
    ),
    "checkpointed layers": rename(
        lambda n: n.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn.")
    ),
    "prefix of some": rename(lambda n: f"module.{n}" if "gen_" in n else n),
    "buffers": state(
        lambda s: (
            s
            | {
                "vision_model.vision_tower.embeddings.position_ids": np.arange(16)[None],
                "gen_vision_model.encoder.norm_out.num_batches_tracked": np.array(3),
                "language_model.model.rotary_emb.inv_freq": np.ones(8, np.float32),
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(
                    8, np.float32
                ),
                "module.vision_model.position_ids": np.arange(16, dtype=np.int32),
            }
        )
    ),
    "pickled": pickled(lambda s: None),
    "pickled parameters": pickled(lambda s: {k: torch.nn.Parameter(v) for k, v in s.items()}),
    "pickled module": pickled(lambda s: {f"module.{k}": v for k, v in s.items()}),
    "settings are pipes": both(
        special("processor_config.json", "pipe"), special("preprocessor_config.json", "pipe")
    ),
    "duplicate keys of a section": lambda d: replace(
        d / "config.json",
        (d / "config.json").read_bytes().replace(b'"ch": 32', b'"ch": 99, "ch": 32'),
    ),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_common_tools_leave_is_read(valid, tmp_path, name):
    directory = shutil.copytree(valid / "torch", tmp_path / "model", copy_function=os.link)
    HARMLESS[name](directory)
    with limits():
        found, plain = open_source(directory), open_source(valid / "torch")
        found.processor()
    assert set(found.arrays) == set(plain.arrays)
    for path, array in plain.arrays.items():
        assert np.array_equal(found.arrays[path].load(), array.load()), path


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
    from janus_jax.weights.source import _read_config

    torch_dir = shutil.copytree(valid / "torch", tmp_path / "torch", copy_function=os.link)
    ours = shutil.copytree(valid / "ours", tmp_path / "ours", copy_function=os.link)
    hf = tmp_path / "hf"
    hf.mkdir()
    plain = config_to_hf(JANUS_PRO_1B, 5, "float32") | {"model_type": "janus"}
    (hf / "config.json").write_text(json.dumps(plain))
    card = lambda d: (
        lambda c: (JanusConfig.from_dict(c["config"]), ProcessorConfig.from_dict(c["processor"]))
    )(_read_card(d))
    tried = refused = 0
    for directory, file, use in (
        (torch_dir, "config.json", lambda d: _read_config(d, "x")),
        (hf, "config.json", lambda d: _read_config(d, "x")),
        (ours, "janus.json", card),
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
    valid, work, tmp_path, command, kind, changes, words
):
    directory = shutil.copytree(valid / kind, tmp_path / "model", copy_function=os.link)
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
    assert not (tmp_path / "converted").exists() and not list(work.iterdir())


def recording(**arrays):
    def change(path):
        with np.load(GOLDEN / "expected.npz") as plain:
            np.savez_compressed(path, **dict(plain) | arrays)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (os.mkfifo, "named pipe"),
        (os.mkdir, "directory"),
        (lambda p: p.symlink_to("/dev/zero"), "device"),
        (lambda p: p.write_bytes(b""), "no recording"),
        (recording(vq_image=np.array(["x"])), "dtype"),
        (recording(vq_image=np.array([Runs(os.mkdir, "code_has_run")], object)), "pickle"),
        (recording(und_attention_mask=np.ones((9, 9), np.int64)), "does not fit|no sense"),
        (recording(und_greedy=np.ones(4, np.int64)), "does not fit"),
        (recording(pixel_values=np.zeros((1, 1), np.float32)), "does not fit"),
    ],
)
def test_a_hostile_recording_is_refused(valid, work, tmp_path, change, words):
    change(tmp_path / "recording.npz")
    with limits(), pytest.raises(UserError, match=words) as caught:
        check_parity(open_source(valid / "torch"), read_recording(tmp_path / "recording.npz"))
    assert str(caught.value).isprintable() and not list(work.iterdir())


def test_a_recording_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "MAX_BYTES", 10**6)
    np.savez_compressed(tmp_path / "recording.npz", vq_image=np.zeros(10**6, np.float32))
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read_recording(tmp_path / "recording.npz")
