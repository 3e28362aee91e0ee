"""Damaging a model directory on purpose, and what must come of it: for the tests of hostile directories."""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from janus_jax.errors import UserError
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.conversion.write import write_native
from janus_jax.processing import build_word_tokenizer

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "golden" / "official_tiny"
SECONDS = 20  # of the processor
PATIENCE = 240  # by the clock: no more than a way out, as what it interrupts may hold a lock
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
    import torch

    view = lambda v: (
        torch.from_numpy(v.view(np.int16)).view(torch.bfloat16)
        if v.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(v)
    )
    return {k: view(v) for k, v in state_of(directory).items()}


def pickled(change, **options):
    """The weights as pytorch_model.bin instead, after a change to the state dict."""

    def act(directory):
        import torch

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


def make_torch_model(directory):
    """The golden checkpoint with a tokenizer."""
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDEN / name, directory / name)
    (directory / "tokenizer.json").write_text(build_word_tokenizer(["a", "cat"]).to_json())
    return directory


def copy_of(model, directory):
    """A copy to be changed: files are replaced there, never written into."""
    return shutil.copytree(model, directory / "model", copy_function=os.link)


@contextlib.contextmanager
def limits():
    """Fails if it took long, waits for something, or memory grew."""

    def late(*_):
        raise AssertionError(f"not done after {PATIENCE} s")

    began = time.process_time()  # others may use the machine as well
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    took = time.process_time() - began
    assert took < SECONDS, f"{took:.0f} s"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MB"


def use_torch(directory):
    """What the command and `Janus.load` do with a PyTorch directory."""
    source = open_source(directory)
    write_native(source, directory.parent / "converted", *source.processor())


def refuses(use, directory, words):
    with limits(), pytest.raises(UserError) as caught:
        use(directory)
    message = str(caught.value)
    assert re.search(words, message), message
    assert message.isprintable(), message
    assert len(message) <= 500, message
    message.encode()
