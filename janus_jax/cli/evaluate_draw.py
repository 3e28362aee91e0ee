"""Draws prompts with a checkpoint into a folder that a scorer reads.

  python -m janus_jax.evaluation draw --checkpoint models/janus-pro-1b --prompts geneval --out drawn/geneval
  python -m janus_jax.evaluation draw --checkpoint models/janus-pro-1b --prompts mine.txt --out drawn/mine

--prompts is geneval or dpg, whose prompts come with the package, or a file of one's own (.txt, .jsonl, .json, or a
folder of .txt). A run that was killed goes on where it was. The pictures are laid out as GenEval's and DPG-Bench's
own scripts read them; then `... score` reads what those wrote.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from janus_jax.cli import evaluate_model
from janus_jax.cli.bars import LateBar
from janus_jax.cli.parser import Parser
from janus_jax.console import printable
from janus_jax.errors import UserError


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(__doc__, "draw")
    evaluate_model.add_model_flags(parser)
    add = parser.add_argument
    add("--prompts", metavar="geneval|dpg|FILE", help="what to draw")
    add("--out", metavar="DIR", help="the folder")
    add("--samples", type=int, default=4, metavar="N", help="of each prompt; default: %(default)s")
    add("--limit", type=int, metavar="N", help="prompts, spread evenly over the set")
    add("--cfg_weight", type=float, default=5.0, help="guidance; default: %(default)s")
    add("--temperature", type=float, default=1.0, help="default: %(default)s")
    add("--seed", type=int, default=0, help="other seeds, other pictures")
    add("--batch_size", type=int, default=16, metavar="N", help="prompts; default: %(default)s")
    add("--layout", metavar="NAME", help="of the folder; default: that of the set of prompts")
    add("--quiet", action="store_true", help="no progress bar")
    flags = parser.parse_args(argv)
    evaluate_model.check_model_flags(flags)
    if not flags.prompts:
        raise UserError("nothing to draw: give --prompts geneval, dpg or a file")
    if not flags.out:
        raise UserError("nowhere to draw: give --out, a directory")
    for name in ("samples", "batch_size"):
        if getattr(flags, name) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(flags, name)}")
    return flags


def main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    from janus_jax.evaluation.generation import draw, prompt_set

    prompts = prompt_set(flags.prompts).spread(flags.limit)
    from janus_jax.evaluation import ModelPredictor

    janus, model = evaluate_model.load(flags)
    with LateBar("pictures", quiet=flags.quiet) as bar:
        drawn = draw(
            ModelPredictor(janus),
            prompts,
            flags.out,
            flags.samples,
            flags.cfg_weight,
            flags.temperature,
            flags.seed,
            layout=flags.layout,
            model=" ".join(str(value) for value in model.values() if value not in ("", None)),
            batch=flags.batch_size,
            progress=bar.to,
        )
    print(
        f"{drawn.pictures:,} pictures in {printable(drawn.directory)} (layout {drawn.layout}), "
        f"{drawn.drawn:,} of them drawn now"
    )
    if prompts.partial:
        print(f"{len(prompts)} of {prompts.total} prompts: their scores are not the benchmark's")
