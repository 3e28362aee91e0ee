"""What the paper's three stages would cost on other machines, projected from counted operations.

    python -m benchmarks.train.projected_cost                                   # Markdown
    python -m benchmarks.train.projected_cost --out /tmp/cost                   # /tmp/cost.json and .md
    python -m benchmarks.train.projected_cost --price_per_chip_hour h100=2.5    # a price of your own

Nothing here was run: operations are counted from the architecture (`janus_jax.training.flops`) and divided by
what published runs of other models reached of the same chips. Every assumption is printed with its source.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from janus_jax.config import PRESETS, JanusConfig
from janus_jax.configs import janus_pro_1b, janus_pro_7b
from janus_jax.errors import UserError
from janus_jax.files import atomic_write, write_json
from janus_jax.models import JanusModel, init_params
from janus_jax.parallel.chips import peak_flops
from janus_jax.training import Stage
from janus_jax.training.flops import Flops, StepFlops
from janus_jax.training.lengths import Lengths, row_content

# Label -> (config, the paper's nodes of 8 A100 and days).
MODELS = {
    "Janus-Pro-1B (1.5B)": (janus_pro_1b, 16, 9),
    "Janus-Pro-7B": (janus_pro_7b, 32, 14),
}
# Chip -> (`device_kind`, chips of the slice that days are given for).
CHIPS = {
    "a100": ("NVIDIA A100-SXM4-40GB", 256),
    "h100": ("NVIDIA H100 80GB HBM3", 64),
    "h200": ("NVIDIA H200", 64),
    "v5e": ("TPU v5 lite", 256),
    "v5p": ("TPU v5", 64),
    "v6e": ("TPU v6 lite", 256),
}
_FOUNDRY = "mosaicml/llm-foundry, scripts/train/benchmarking"
_LEVANTER = "Levanter 1.0, TPU v3-256 (none of this size was found for the chip)"
_ON_H100 = "as on the H100, whose peak is the same: none was found for the H200"
# Label -> chip -> published MFU of a model of about that size, and where it is from; least first.
UTILIZATION: dict[str, dict[str, tuple[tuple[float, str], ...]]] = {
    "Janus-Pro-1B (1.5B)": {
        "a100": ((0.544, f"MPT-1B, 128 A100-40GB, sequences of 2048: {_FOUNDRY}"),),
        "h100": (
            (0.32, "Llama 1B, 8 H100: nanotron, as quoted in marin-community/marin issue 1826"),
            (0.403, f"MPT-1B, 8 H100, sequences of 4096: {_FOUNDRY}"),
        ),
        "h200": ((0.32, _ON_H100), (0.403, _ON_H100)),
        "v5e": ((0.417, f"1.4B: {_LEVANTER}"),),
        "v5p": ((0.417, f"1.4B: {_LEVANTER}"),),
        "v6e": ((0.417, f"1.4B: {_LEVANTER}"),),
    },
    "Janus-Pro-7B": {
        "a100": ((0.501, f"MPT-7B, 128 A100-40GB, sequences of 2048: {_FOUNDRY}"),),
        "h100": (
            (0.38, "Llama2-7B, 128 H100: MaxText, configs/gpu/a3/llama_2_7b"),
            (0.497, "the same, 8 H100"),
        ),
        "h200": ((0.38, _ON_H100), (0.497, _ON_H100)),
        "v5e": (
            (0.473, f"6.7B: {_LEVANTER}"),
            (0.609, "16B, v5e-256: MaxText, README (120 TFLOP/s of 197)"),
        ),
        "v5p": (
            (0.473, f"6.7B: {_LEVANTER}"),
            (0.654, "Llama2-70B, 512 chips: MaxText, tiering.md (attention not halved)"),
        ),
        "v6e": ((0.455, "Llama3.1-8B, v6e-256, sequences of 8192: MaxText, tiering.md"),),
    },
}


@functools.cache
def shapes(config: JanusConfig) -> Any:
    """The parameters' shapes."""
    return jax.eval_shape(lambda key: init_params(JanusModel(config), key), jax.random.key(0))


def stages(label: str, lengths: Lengths) -> list[dict[str, Any]]:
    """Steps, tokens and operations of each stage of Table 2."""
    fields = MODELS[label][0].get_config()
    config, found = PRESETS[fields.model.preset], []
    for name in fields.stage_order:
        of = fields.stages[name]
        ratio = tuple(of.ratio)
        stage = Stage(name, "janus", tuple(of.trainable), of.steps, 1.0, 0, of.batch_size, ratio)
        count, row = StepFlops(config, stage, shapes(config)), row_content(config, ratio, lengths)
        rows = of.steps * of.batch_size
        encoded = dataclasses.replace(row, encoded=row.gen_images)
        sequences = (row.und_images + row.gen_images) * sum(ratio) / (ratio[0] + ratio[2])
        found.append(
            {
                "stage": name,
                "steps": of.steps,
                "batch": of.batch_size,
                "ratio": ratio,
                "sequences": sequences,  # of a row
                "tokens": rows * row.tokens,
                "flops": rows * _model(count(row)),
                "flops_with_encoding": rows * _model(count(encoded)),
            }
        )
    return found


def _model(flops: Flops | None) -> float:
    assert flops is not None
    return flops.model


def project(lengths: Lengths, prices: Mapping[str, float]) -> dict[str, Any]:
    """Everything, JSON-ready."""
    models = {}
    for label, (_, nodes, days) in MODELS.items():
        of = stages(label, lengths)
        flops, paper = sum(s["flops"] for s in of), nodes * 8 * days * 24
        models[label] = {
            "stages": of,
            "flops": flops,
            "encoding_adds": sum(s["flops_with_encoding"] for s in of) / flops - 1,
            "paper": {
                "a100": nodes * 8,
                "days": days,
                "a100_hours": paper,
                "mfu": flops / (paper * 3600 * _peak("a100")),
                "mfu_if_a_row_were_one_sequence": sum(s["flops"] / s["sequences"] for s in of)
                / (paper * 3600 * _peak("a100")),
            },
            "chips": {chip: _chip(label, chip, flops, paper, prices) for chip in CHIPS},
        }
    return {"lengths": dataclasses.asdict(lengths), "models": models}


def _chip(
    label: str, chip: str, flops: float, paper: float, prices: Mapping[str, float]
) -> dict[str, Any]:
    size, anchors = CHIPS[chip][1], UTILIZATION[label][chip]
    hours = [flops / (mfu * _peak(chip)) / 3600 for mfu, _ in reversed(anchors)]
    found = {
        "peak_tflops": _peak(chip) / 1e12,
        "mfu": [mfu for mfu, _ in anchors],
        "sources": [source for _, source in anchors],
        "chip_hours": hours,
        "slice": size,
        "days": [h / size / 24 for h in hours],
    }
    if chip == "a100":
        found["of_the_paper"] = [h / paper for h in hours]
    if chip in prices:
        found["cost"] = [h * prices[chip] for h in hours]
    return found


def _peak(chip: str) -> float:
    peak = peak_flops(CHIPS[chip][0])
    assert peak is not None, chip
    return peak


def render(found: Mapping[str, Any]) -> str:
    """Tables and assumptions as Markdown."""
    lengths, models = Lengths(**found["lengths"]), found["models"]
    rows = [
        [
            label,
            s["stage"],
            f"{s['steps']:,} x {s['batch']}",
            " : ".join(f"{w:g}" for w in s["ratio"]),
            f"{s['tokens'] / 1e9:.0f} B",
            f"{s['flops']:.2e}",
        ]
        for label, of in models.items()
        for s in of["stages"]
    ]
    header = ["model", "stage", "steps x rows", "und : text : gen", "tokens", "FLOPs"]
    parts = [_table(header, rows)]
    rows = []
    for label, of in models.items():
        paper = of["paper"]
        own = [
            label,
            "A100, the paper",
            f"{paper['mfu']:.0%} (follows)",
            f"{paper['a100_hours']:,}",
        ]
        rows.append([*own, f"{paper['days']} on {paper['a100']}"])
        for chip, c in of["chips"].items():
            days = f"{_span(c['days'], '{:.1f}')} on {c['slice']}"
            rows.append([label, chip.upper() if chip[0] in "ah" else f"TPU {chip}"])
            rows[-1] += [_span(c["mfu"], "{:.0%}"), _span(c["chip_hours"], "{:,.0f}"), days]
            if "cost" in c:
                rows[-1].append(_span(c["cost"], "{:,.0f}"))
    header = ["model", "chip", "MFU", "chip-hours", "days"]
    if any(len(row) > len(header) for row in rows):
        header.append("cost")
    rows = [[*row, *["-"] * (len(header) - len(row))] for row in rows]
    parts += [_table(header, rows), _assumptions(lengths, models)]
    return "\n\n".join(parts)


def _assumptions(lengths: Lengths, models: Mapping[str, Any]) -> str:
    paper = "; ".join(
        f"{label}: {nodes} nodes of 8 A100-40GB for {days} days"
        for label, (_, nodes, days) in MODELS.items()
    )
    whole = ", ".join(
        f"{of['paper']['mfu_if_a_row_were_one_sequence']:.1%}" for of in models.values()
    )
    adds = ", ".join(f"{of['encoding_adds']:.1%}" for of in models.values())
    lines = [
        "Steps, batches, ratios and freeze sets: Janus-Pro (arXiv 2501.17811), Table 2 and section 2.2, as in "
        "`janus_jax/configs/common.py`; stage 2 is stopped at 270K of 360K steps.",
        f"The paper's machines: section 3.1 ({paper}).",
        f"A batch counts packed rows of {lengths.row} positions, {lengths.fill:.0%} of them in use. The paper "
        f"names packing and the length, not what a batch counts; if a row were one sequence, its MFU would "
        f"have been {whole}.",
        f"Lengths (ours; the paper gives none): a picture is 576 positions with {lengths.words} ids of words, "
        f"of which {lengths.answer} are predicted in an answer; a text has {lengths.text} ids. The ratio is by "
        "number of sequences.",
        "Operations: `janus_jax/training/flops`, which agrees with XLA's count (`tests/test_flops.py`): "
        "products forward and backward, causal attention within a sequence halved, no recomputation, no "
        "padding, no optimizer.",
        f"Pictures come as codes. Encoding them in the step instead adds {adds} operations, in float32.",
        "Peaks: dense bfloat16, from the makers' data sheets (`janus_jax/parallel/chips.py`).",
        "Not in it: restarts, evaluation, waiting for data or for the network beyond what the published "
        "figures have in them, and stage 0 (image tokenizer, SigLIP and language model are taken ready-made).",
        "The published MFUs are of language models, and count attention in different ways (a few per cent).",
    ]
    for label, chips in UTILIZATION.items():
        for chip, anchors in chips.items():
            lines += [f"{label}, {chip}: {mfu:.1%}, {source}." for mfu, source in anchors]
    return "\n".join(f"- {line}" for line in lines)


def _span(values: list[float], form: str) -> str:
    """One value, or least and most."""
    return " - ".join(dict.fromkeys(form.format(v) for v in values))


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]
    )


def parse_prices(text: str) -> dict[str, float]:
    """ "h100=2.5,v5e=1" -> prices by chip.

    Raises:
      UserError: a chip is not of `CHIPS`, or what follows is no price.
    """
    prices = {}
    for part in filter(None, text.split(",")):
        chip, _, price = part.partition("=")
        try:
            prices[chip] = float(price)
        except ValueError:
            prices[chip] = -1.0
        if chip not in CHIPS or not 0 <= prices[chip] < float("inf"):
            raise UserError(
                f"--price_per_chip_hour: {part!r} is not CHIP=PRICE with one of {', '.join(CHIPS)}"
            )
    return prices


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="writes OUT.json and OUT.md")
    parser.add_argument("--price_per_chip_hour", default="", metavar="CHIP=PRICE,...")
    for field in dataclasses.fields(Lengths):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    args = vars(parser.parse_args(arguments))
    out, prices = args.pop("out"), parse_prices(args.pop("price_per_chip_hour"))
    found = project(Lengths(**args), prices)
    text = render(found)
    if out is None:
        print(text)
        return
    write_json(out.with_name(f"{out.name}.json"), found)
    atomic_write(out.with_name(f"{out.name}.md"), text + "\n")


if __name__ == "__main__":
    main()
