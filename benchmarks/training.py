"""The command `python benchmarks/training.py`; all of it is in `benchmarks/train/run.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.train.run import main
from janus_jax.errors import run_main

if __name__ == "__main__":
    run_main(main)
