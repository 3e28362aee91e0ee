"""What the paper's stages would cost elsewhere: counted from their configs, and what the docs show of it."""

import json
from pathlib import Path

import pytest

from benchmarks.train import projected_cost
from benchmarks.train.projected_cost import Lengths, parse_prices, project, render, row_content
from janus_jax.config import PRESETS
from janus_jax.errors import UserError

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parent.parent
ONE_B, SEVEN_B = projected_cost.MODELS


@pytest.fixture(scope="module")
def found():
    return project(Lengths(), {"h100": 2.0})


def test_the_docs_show_what_the_command_prints():
    """After a change: python -m benchmarks.train.projected_cost, into docs/scale.md."""
    assert render(project(Lengths(), {})) in (ROOT / "docs" / "scale.md").read_text()


def test_a_row_is_as_full_as_it_is_said_to_be():
    config = PRESETS["janus-pro-1b"]
    row = row_content(config, (2.0, 3.0, 5.0), Lengths(row=6500, fill=1.0, words=74, text=650))
    # Ten sequences of 650, but for the last code of five pictures.
    sequences = 6500 / 649.5
    assert row.tokens == 6500
    assert row.und_images == pytest.approx(0.2 * sequences)
    assert row.gen_images == pytest.approx(0.5 * sequences)
    assert row.targets == pytest.approx(sequences * (0.2 * 50 + 0.3 * 649))
    assert row.pairs == pytest.approx(sequences * (0.5 * 650**2 + 0.5 * 649**2) / 2)


def test_operations_are_about_six_for_each_weight_and_token(found):
    """Layers of 1.233 B and 6.071 B weights; heads, SigLIP and attention are the rest."""
    for label, weights in ((ONE_B, 1.233e9), (SEVEN_B, 6.071e9)):
        first, second, third = found["models"][label]["stages"]
        for stage, times in ((first, 4), (second, 6), (third, 6)):
            assert 1.0 < stage["flops"] / (times * weights * stage["tokens"]) < 1.25
        assert first["tokens"] == pytest.approx(20_000 * 256 * 4096 * 0.97)
        assert second["tokens"] == pytest.approx(270_000 * 512 * 4096 * 0.97)


def test_hours_days_and_costs_follow(found):
    model = found["models"][SEVEN_B]
    assert model["paper"]["a100_hours"] == 32 * 8 * 14 * 24 == 86_016
    hours = model["chips"]["h100"]["chip_hours"]
    least, most = model["chips"]["h100"]["mfu"]
    want = [model["flops"] / (mfu * 989.5e12) / 3600 for mfu in (most, least)]
    assert hours == pytest.approx(want) and hours[0] < hours[1]
    assert model["chips"]["h100"]["days"] == pytest.approx([h / 64 / 24 for h in hours])
    assert model["chips"]["h100"]["cost"] == pytest.approx([2 * h for h in hours])
    assert "cost" not in model["chips"]["v5e"]
    assert "| cost |" in render(found)


def test_every_chip_has_a_source_and_a_peak(found):
    for label, model in found["models"].items():
        assert model["chips"].keys() == projected_cost.UTILIZATION[label].keys()
        for chip in model["chips"].values():
            assert chip["peak_tflops"] > 100 and all(chip["sources"])
            assert chip["mfu"] == sorted(chip["mfu"])


def test_files(tmp_path, capsys):
    projected_cost.main(["--out", str(tmp_path / "cost"), "--words", "100"])
    assert json.loads((tmp_path / "cost.json").read_text())["lengths"]["words"] == 100
    assert "| cost |" not in (tmp_path / "cost.md").read_text() and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "text", ["h100", "h100=", "h100=-1", "h100=inf", "v9=2", "2.5", "a100=nan"]
)
def test_prices_that_are_none(text):
    with pytest.raises(UserError, match="is not CHIP=PRICE"):
        parse_prices(text)
    assert parse_prices("") == {} and parse_prices("v5e=1,h100=2.5") == {"v5e": 1.0, "h100": 2.5}
