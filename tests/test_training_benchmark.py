"""`benchmarks/training.py`: the rows it trains on, who is timed, and what the report says."""

import argparse
import json
import math
import sys

import numpy as np
import pytest

from benchmarks.inference.models import TINY
from benchmarks.train import report as reports
from benchmarks.train import rows as packing
from benchmarks.train import run
from janus_jax.batch import TOKEN_GEN, TOKEN_UND
from janus_jax.errors import UserError


@pytest.mark.parametrize("kind", run.CONTENT)
def test_rows_hold_what_their_content_says(kind):
    batch, content = packing.make_rows(TINY, 3, 512, kind != "text", kind == "codes")
    assert ("gen_codes" in batch) == (kind == "codes")
    ids, types = batch["segment_ids"], batch["token_types"]
    for row, lengths in enumerate(content["segments"]):
        assert np.bincount(ids[row])[1:].tolist() == lengths
        starts = np.cumsum([0, *lengths[:-1]])
        assert batch["positions"][row][starts].tolist() == [0] * len(lengths)
        wanted = batch["target_weights"][row] > 0
        places = batch["target_positions"][row][wanted]
        assert (batch["target_ids"][row][wanted] == batch["tokens"][row][places + 1]).all()
        assert (ids[row][places] == ids[row][places + 1]).all() and (ids[row][places] > 0).all()
        for picture in np.flatnonzero(batch["gen_weights"][row]):
            start = batch["gen_starts"][row][picture]
            fed = types[row][start : start + TINY.vq.num_codes + 1]
            assert (fed[1 : TINY.vq.num_codes] == TOKEN_GEN).all()
            assert fed[0] != TOKEN_GEN and (fed[TINY.vq.num_codes :] != TOKEN_GEN).all()
    pictures = content["gen"] * (TINY.vq.num_codes - 1), content["und"] * TINY.siglip.num_patches
    assert ((types == TOKEN_GEN).sum(), (types == TOKEN_UND).sum()) == pictures
    assert content["tokens"] == sum(map(sum, content["segments"])) >= 0.9 * 3 * 512
    assert content["targets"] == batch["target_weights"].sum() > 0
    assert (min(pictures) > 0) == (kind != "text")


class Stub:
    """A contender that answers what it was given."""

    def __init__(self, name, **answers):
        self.name, self.answers, self.problem = name, answers, ""

    def ask(self, do, **request):
        return None if self.problem else self.answers[do]


def steps(loss, norm=2.0):
    return {"loss": [loss, 3.0], "grad_norm": [norm, norm], "seconds": [9.0, 1.0]}


@pytest.mark.parametrize("wrong", [steps(4.001), steps(4.0, 2.01), steps(math.nan)])
def test_who_computes_something_else_is_not_timed(wrong):
    args = argparse.Namespace(dtype="float32", gate_steps=2, content="codes")
    field = [Stub("janus_jax", gate=wrong), Stub("sdpa", gate=steps(4.0))]
    field.append(Stub("varlen", gate=steps(4.00001)))
    results = run.gate(args, field)
    assert "failed the parity gate" in field[0].problem
    assert not field[1].problem and not field[2].problem
    assert results["sdpa"]["compile_s"] == 8 and results["janus_jax"]["reference"] == "sdpa"


def test_ratios_are_of_the_same_round():
    rounds = lambda *seconds: [
        {"seconds": [s], "cpu": 2 * s, "peak": 2**30, "others": 0.0} for s in seconds
    ]
    report = {
        "content": {"tokens": 100},
        "steps": 1,
        "device": "cpu",
        "flops": 4e9,
        "product_rates": {"jax float32": 1e9, "torch float32": 2e9},
        "problems": {"flex": "not available: no"},
        "gate": {name: {"compile_s": 1.0} for name in ("janus_jax", "sdpa")},
        "runs": {"janus_jax": rounds(2, 4, 10), "sdpa": rounds(6, 4, 20), "flex": [None] * 3},
    }
    reports.summarise(report)
    own, peer = report["table"]
    assert own["tokens_per_s"] == 25 and own["of_product"] == 0.5
    assert peer["ratio"] == {"min": 1, "median": 2, "max": 3} == peer["cpu_ratio"]
    assert own["ratio"]["max"] == 1 and own["cpu_s"] == 8


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ("--contenders janus_jax,eager", "'eager' is none of"),
        ("--contenders ,", "names nobody"),
        ("--rows 0", "--rows must be 1 or more"),
        ("--gate_steps 1", "--gate_steps must be 2 or more"),
        ("--width 100", "--width must be a multiple of 32"),
        ("--row_tokens 20000", "has 16384 positions"),
        ("--row_tokens 64 --content codes", "no room for a picture"),
        ("--cores x", "--cores must be numbers"),
        ("--cores 4096", "--cores: 4096 is none of"),
        ("--learning_rate nan", "--learning_rate must be between"),
        ("--out /nowhere/at/all.json", "no such directory"),
        ("--device cpu --model janus-pro-7b --layers 1000", "GiB that are free"),
    ],
)
def test_what_cannot_be_measured_is_one_line(flags, what, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["training.py", *flags.split()])
    with pytest.raises(UserError, match=what):
        run.main()


@pytest.mark.heavy
@pytest.mark.torch
@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("kind", "dtype", "contenders"),
    [
        ("pixels", "float32", "janus_jax,sdpa,varlen"),
        # PyTorch multiplies bfloat16 a hundred times slower on a processor without instructions for it.
        pytest.param("codes", "bfloat16", "janus_jax,sdpa", marks=pytest.mark.slow),
    ],
)
def test_both_sides_compute_the_same_step(kind, dtype, contenders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.json"
    flags = (
        f"--device cpu --layers 1 --rows 2 --row_tokens 256 --pairs 1 --stage stage3 --out {out}"
    )
    flags += f" --content {kind} --dtype {dtype} --contenders {contenders}"
    monkeypatch.setattr(sys, "argv", ["training.py", *flags.split()])
    run.main()
    report = json.loads(out.read_text())
    assert report["problems"] == {}
    assert [row["contender"] for row in report["table"]] == contenders.split(",")
    assert all(row["ratio"]["median"] > 0 and row["peak_gib"] > 0 for row in report["table"])
    losses = report["gate"]["janus_jax"]["loss"]
    assert losses[-1] < losses[0]  # it learns
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "janus_jax" in shown
