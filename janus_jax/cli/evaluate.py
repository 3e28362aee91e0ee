"""Scores a checkpoint by benchmarks, and puts the numbers beside the paper's.

  python -m janus_jax.evaluation run --checkpoint models/janus-pro-1b --data pope=POPE.tsv --data mme=MME.tsv
  python -m janus_jax.evaluation run --checkpoint runs/janus_tiny --benchmark emoji/geneval,emoji/questions
  python -m janus_jax.evaluation draw --checkpoint models/janus-pro-1b --prompts geneval --out drawn
  python -m janus_jax.evaluation score geneval results.jsonl --out results/geneval
  python -m janus_jax.evaluation table results/mine results/theirs

run asks the questions of POPE, MME, MMBench, SEED-Bench, GQA, MMMU and MM-Vet, and runs benchmarks of the
registry. draw draws GenEval's or DPG-Bench's prompts, or one's own. detect and judge look at the pictures with a
detector or a judge of one's own. score reads what the official scorers wrote. table shows runs beside the paper.
`... run --help` and so on say more.
"""

from __future__ import annotations

from janus_jax.cli.parser import run_command
from janus_jax.errors import run_main

_COMMANDS = {
    "run": "janus_jax.cli.evaluate_run:main",
    "draw": "janus_jax.cli.evaluate_draw:main",
    "detect": "janus_jax.cli.evaluate_look:detect",
    "judge": "janus_jax.cli.evaluate_look:judge",
    "score": "janus_jax.cli.evaluate_score:main",
    "table": "janus_jax.cli.evaluate_table:main",
}


def main() -> None:
    """Runs what the first word names; the rest are its flags."""
    run_command(__doc__, _COMMANDS)


def command() -> None:
    """Entry point of `janus-evaluate` and of `python -m janus_jax.evaluation`."""
    run_main(main)
