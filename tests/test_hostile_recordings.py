"""Recordings for --parity that are damaged on purpose."""

import os

import numpy as np
import pytest
from hostile import GOLDEN, Runs, limits, make_torch_model

from janus_jax.errors import UserError
from janus_jax.interop.conversion.source import open_source
from janus_jax.interop.parity import compare as parity
from janus_jax.interop.parity.compare import check_parity, read_recording


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_torch_model(tmp_path_factory.mktemp("valid") / "torch")


def recording(**arrays):
    def change(path):
        with np.load(GOLDEN / "expected.npz") as plain:
            np.savez_compressed(path, **dict(plain) | arrays)

    return change


@pytest.mark.heavy
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
def test_a_hostile_recording_is_refused(model, elsewhere, tmp_path, change, words):
    change(tmp_path / "recording.npz")
    with limits(), pytest.raises(UserError, match=words) as caught:
        check_parity(open_source(model), read_recording(tmp_path / "recording.npz"))
    assert str(caught.value).isprintable() and not list(elsewhere.iterdir())


def test_a_recording_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "MAX_BYTES", 10**6)
    np.savez_compressed(tmp_path / "recording.npz", vq_image=np.zeros(10**6, np.float32))
    with pytest.raises(UserError, match="more than 1000000 bytes"):
        read_recording(tmp_path / "recording.npz")
