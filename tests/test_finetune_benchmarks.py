"""What fine-tuning needs: the table of compiled steps, and the cost of an adapter's step beside a full one."""

import json
import subprocess
import sys

import pytest

from benchmarks.compiled import finetune, steps
from benchmarks.paths import ROOT
from benchmarks.train import lora_cost

REFUSED = (
    "error: does not fit: RESOURCE_EXHAUSTED: TPU backend error (ResourceExhausted). Ran out of memory in memory "
    "space hbm. Used 131.36G of 94.75G hbm. Exceeded hbm capacity by 36.61G."
)


def compiled(total, fits=True):
    return {
        "memory_gib": {"total": total},
        "parameters_gib": 4.06,
        "optimizer_gib": 0.11,
        "fits": fits,
    }


def test_every_row_is_a_recipe_on_a_slice():
    assert set(finetune.EXACT) < set(finetune.ROWS)
    for recipe, place in finetune.ROWS.values():
        assert recipe in finetune.RECIPES and place in finetune.SLICES


def test_a_row_that_the_compiler_refuses_is_kept_with_what_it_would_use(tmp_path, monkeypatch):
    calls = []

    def refuse(command, **options):
        calls.append((command, options["env"]))
        return subprocess.CompletedProcess(command, 1, "", REFUSED + "\n")

    monkeypatch.setattr(steps.subprocess, "run", refuse)
    first = finetune.compile_one("full_7b_small_v5p_1", tmp_path)
    again = finetune.compile_one("full_7b_small_v5p_1", tmp_path)
    assert first == again and len(calls) == 1
    assert first["used_gib"] == 131.36 and first["quick"]
    command, environment = calls[0]
    assert "--config.model.preset=janus-pro-7b" in command and "--aot=v5p:1x1x1" in command
    assert environment["JAX_EXEC_TIME_OPTIMIZATION_EFFORT"] == "-1.0"
    assert "| 131.4, refused on v5p |  |  |  |  | 140 |" in finetune.table(
        {"full_7b_small_v5p_1": first}
    )


def test_of_temporaries_alone_the_compiler_says_another_thing(tmp_path):
    problem = (
        "error: does not fit: RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (19.00G) exceeds available HBM (15.75G)."
    )
    (tmp_path / "full_7b_v5e_8.json").write_text(json.dumps({"finetune": {"problem": problem}}))
    found = finetune.compile_one("full_7b_v5e_8", tmp_path)
    assert "| refused, temporaries 19.0 |" in finetune.table({"full_7b_v5e_8": found})


def test_another_problem_is_no_result(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 2, "", "error: --aot v5e:1x1 needs libtpu\n")
    monkeypatch.setattr(steps.subprocess, "run", lambda *_, **__: done)
    found = finetune.compile_one("lora_1b_v5e_1", tmp_path)
    assert "needs libtpu" in found["problem"] and not list(tmp_path.iterdir())
    assert "needs libtpu" in finetune.table({"lora_1b_v5e_1": found})


def test_the_table_has_a_line_for_each_recipe_that_was_compiled(tmp_path):
    for name, record in {
        "lora_1b_v5e_1": compiled(7.6),
        "lora_1b_v5e_4": compiled(5.04),
        "full_1b_v5e_4": compiled(15.9, fits=False),
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"finetune": record}))
    names = ("lora_1b_v5e_1", "lora_1b_v5e_4", "full_1b_v5e_4")
    text = finetune.table({name: finetune.compile_one(name, tmp_path) for name in names})
    assert "| 1B lora | **7.6** (4.2) on v5e | **5.0** (4.2) |  |  |  | 16 |" in text
    assert "| 1B full |  | **15.9** (4.2), does not fit |  |  |  |  |" in text
    assert len(text.splitlines()) == 4


def test_of_single_chips_the_smallest_that_a_step_fits_is_in_the_table():
    found = {
        "full_1b_v5p_1": compiled(40.8) | {"used_gib": 40.8},
        "full_1b_v5e_1": compiled(30.2) | {"used_gib": 30.2},
    }
    assert "| **30.2** (4.2) on v5e |  |  |  |  | 40 |" in finetune.table(found)
    found["full_1b_v5e_1"] |= {"used_gib": 31.5, "fits": False}
    assert "| **40.8** (4.2) on v5p |  |  |  |  | 80 |" in finetune.table(found)


@pytest.mark.parametrize(
    ("gib", "device"), [(7.6, "16"), (15.5, "16"), (15.6, "24"), (77.5, "80"), (140, "over 140")]
)
def test_the_smallest_device_keeps_a_little_free(gib, device):
    assert finetune.smallest_device(gib) == device


def test_ratios_are_of_the_same_round():
    found = lora_cost.ratios({"full": [2.0, 4.0, 8.0], "lora": [1.0, 3.0, 4.0]})
    assert found["lora"] == {"median": 0.5, "min": 0.5, "max": 0.75}
    assert found["full"] == {"median": 1, "min": 1, "max": 1}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rounds", "0"], "--rounds must be 1 or more, got 0"),
        (["--row_tokens", "512"], "no room for a picture"),
    ],
)
def test_flags_of_the_cost(flags, message):
    command = [sys.executable, "-m", "benchmarks.train.lora_cost", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_cost_of_a_small_model(tmp_path):
    out = tmp_path / "cost.json"
    command = [sys.executable, "-m", "benchmarks.train.lora_cost", "--layers=1", "--vocab=2048"]
    command += ["--row_tokens=64", "--content=text", "--rounds=1", "--json", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text())
    memory = found["memory"]
    assert set(found["seconds"]) == set(memory) == set(lora_cost.RECIPES)
    assert memory["lora"]["trained_gib"] < 0.1 * memory["full"]["trained_gib"]
    assert memory["lora_int8"]["frozen_gib"] < memory["lora"]["frozen_gib"]
