"""How full packed rows are, by how they are packed: no model, no pictures, only lengths.

    python -m benchmarks.train.packing_fill
    python -m benchmarks.train.packing_fill --ratio 1 0 3 --rows 512 --json fill.json

Sequences as long as Janus's, mixed like its stage 2 by default: a picture to understand is 576 positions and
there are 60 to 200 of text around it, in one of five conversations without a picture; plain text is 100 to 2000;
a picture to draw is 10 to 120 tokens of prompt, 2 marks and 576 codes. Real packing code, so
the time is what the host pays for a row, but for copying pixels.

Columns: fill, the share of positions that hold a sequence; targets, the share of a row's room for text
targets that is used; spread, the standard deviation of a task's share of the tokens from step to step (the largest
of the three), for steps of `--batch` rows of 4096 or as many positions; waits, the most rows that were made while
a sequence that had been read was in none; ms, host time a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from janus_jax.data import PackedShape, pack
from janus_jax.processing import sequence as seq

IMAGE, SIDE = 9, 1  # an id; pixels, of which nothing here depends
CODES = 576
NUMBERED = 20  # ids below are not those of sequences


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to pack."""

    tokens: int
    targets: int
    bins: int = 0  # rows that first-fit fills at once
    lookahead: int = 0

    def __str__(self) -> str:
        how = f"{self.lookahead} ahead" if self.lookahead else f"first-fit, {self.bins} rows"
        return f"{self.tokens} tokens, {self.targets} targets, {how}"


SETTINGS = [
    *(Setting(4096, 2048, bins=n) for n in (2, 4, 8, 32, 128)),
    *(Setting(4096, 2048, lookahead=n) for n in (8, 16, 24, 32, 48, 64)),
    *(Setting(4096, 3072, bins=n) for n in (8, 32, 128)),
    *(Setting(4096, 3072, lookahead=n) for n in (8, 16, 32)),
    *(Setting(8192, 4096, bins=n) for n in (4, 16, 64)),
    *(Setting(8192, 4096, lookahead=n) for n in (16, 32)),
]


class Sequences:
    """Sequence i of an endless mixture; its first token says which it is."""

    def __init__(self, ratio: tuple[int, int, int], seed: int):
        self._seed = seed
        tasks = np.repeat(np.arange(3), ratio)
        # As Grain interleaves: every prefix has the ratio.
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in ratio if n])
        self._order = tasks[np.argsort(places, kind="stable")]

    def task(self, index: int) -> int:
        return int(self._order[index % len(self._order)])

    def __call__(self, index: int) -> seq.Features:
        rng = np.random.default_rng((self._seed, index))
        task, first = self.task(index), NUMBERED + index
        if task == 0:
            words = int(rng.integers(60, 201))
            pictures = int(rng.random() < 0.8)
            answer = int(words * rng.uniform(0.3, 0.7))
            prompt = [first, *[IMAGE] * (CODES * pictures), *[1] * (words - answer - 1)]
            shown = np.zeros((pictures, SIDE, SIDE, 3), np.uint8)
            return seq.conversation([(prompt, [1] * answer)], IMAGE, shown, SIDE, seq.TASK_UND)
        if task == 1:
            return seq.text_sequence([first] + [1] * (int(rng.integers(100, 2001)) - 1), SIDE, SIDE)
        prompt = [first] + [1] * (int(rng.integers(10, 121)) + 2 - 1)
        drawn = np.zeros((SIDE, SIDE, 3), np.uint8)
        return seq.generation_sequence(prompt, IMAGE, CODES + 1, drawn, SIDE)


def measure(setting: Setting, ratio: tuple[int, int, int], rows: int, batch: int) -> dict[str, Any]:
    """Packs `rows` rows of 4096 positions, or as many positions, and counts."""
    longer = setting.tokens / 4096
    shape = PackedShape(setting.tokens, setting.targets, round(6 * longer), round(7 * longer))
    make, count, step = Sequences(ratio, seed=0), int(rows / longer), int(batch / longer)
    dataset = grain.MapDataset.range(2**40).map(make).to_iter_dataset(grain.ReadOptions(0, 0))
    # Of `step` rows where the packer itself has no say in it.
    packed = iter(pack(dataset, shape, setting.bins or 1, lookahead=setting.lookahead))
    began = time.perf_counter()
    fills, targets, shares, waits, made = [], [], [], 0, 0
    missing: dict[
        int, int
    ] = {}  # a sequence that others overtook -> rows when it was first seen missing
    highest = -1
    for row in _rows(packed, count):
        made += 1
        segments = row["segment_ids"]
        fills.append(float((segments > 0).mean()))
        targets.append(float((row["target_weights"] > 0).mean()))
        starts = np.flatnonzero((row["positions"] == 0) & (segments > 0))
        tokens = np.zeros(3)
        for start, size in zip(starts, np.bincount(segments)[1:], strict=True):
            index = int(row["tokens"][start]) - NUMBERED
            tokens[make.task(index)] += size
            waits = max(waits, made - missing.pop(index, made))
            missing |= {i: made for i in range(highest + 1, index)}
            highest = max(highest, index)
        shares.append(tokens)
    waits = max([waits, *(made - seen for seen in missing.values())])
    seconds = time.perf_counter() - began
    steps = np.stack(shares)[: len(shares) // step * step].reshape(-1, step, 3).sum(1)
    spread = (steps / steps.sum(1, keepdims=True)).std(0).max()
    return dataclasses.asdict(setting) | {
        "fill": float(np.mean(fills)),
        "targets_used": float(np.mean(targets)),
        "spread": float(spread),
        "longest_wait_rows": waits,
        "ms_a_row": 1000 * seconds / made,
        "rows": made,
    }


def _rows(batches: Iterator[dict[str, np.ndarray]], count: int) -> Iterator[dict[str, np.ndarray]]:
    made = 0
    for batch in batches:
        for i in range(len(batch["tokens"])):
            if made == count:
                return
            made += 1
            yield {name: values[i] for name, values in batch.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ratio", type=int, nargs=3, default=(2, 3, 5), help="und, text, gen")
    parser.add_argument("--rows", type=int, default=2048, help="rows of 4096 positions")
    parser.add_argument("--batch", type=int, default=64, help="rows of a step, for the spread")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    args = parser.parse_args()
    found = []
    print(f"ratio {args.ratio}, {args.rows} rows of 4096 positions\n")
    print("| packing | fill | targets | spread | waits | ms |\n|---|---|---|---|---|---|")
    for setting in SETTINGS:
        result = measure(setting, tuple(args.ratio), args.rows, args.batch)
        found.append(result)
        print(
            f"| {setting} | {result['fill']:.1%} | {result['targets_used']:.0%} | "
            f"{result['spread']:.1%} | {result['longest_wait_rows']} | {result['ms_a_row']:.1f} |",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps({"ratio": list(args.ratio), "settings": found}, indent=1))


if __name__ == "__main__":
    main()
