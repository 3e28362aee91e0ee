"""Benchmarks: what one is, the registry of them, measures that several share.

from janus_jax import Janus
from janus_jax.evaluation import BENCHMARKS, ModelPredictor

benchmark = BENCHMARKS.get("emoji/geneval")(prompts=50)
predictor = ModelPredictor(Janus.load("runs/janus_tiny"), drawing={"cfg_weight": 2.0})
print(benchmark.run(predictor)["mini_geneval"]["mean"])
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from janus_jax.evaluation.benchmark import (
    ANSWER,
    DRAW,
    RECONSTRUCT,
    Benchmark,
    GalleryItem,
    Predictor,
    Scores,
    Tuning,
    choose_cfg_weight,
    run_benchmarks,
)
from janus_jax.evaluation.metrics import accuracy, majority, normalize_answer, pope
from janus_jax.evaluation.predictor import ModelPredictor
from janus_jax.evaluation.registry import BENCHMARKS, build_benchmark, build_benchmarks

__all__ = [
    "ANSWER",
    "BENCHMARKS",
    "DRAW",
    "RECONSTRUCT",
    "Benchmark",
    "GalleryItem",
    "ModelPredictor",
    "Predictor",
    "Scores",
    "Tuning",
    "accuracy",
    "build_benchmark",
    "build_benchmarks",
    "choose_cfg_weight",
    "majority",
    "normalize_answer",
    "pope",
    "run_benchmarks",
]

# Of version 0.1: name -> where it is now.
_MOVED = {
    name: f"janus_jax.emoji:{name}"
    for name in (
        "HELD_OUT_TASKS Detection Judge Prompt Reading is_right make_prompts make_questions "
        "mini_geneval prove_judge question_accuracy score_pictures"
    ).split()
} | {"plain": "janus_jax.evaluation:normalize_answer"}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _MOVED[name].partition(":")
    warnings.warn(
        f"janus_jax.evaluation.{name} is {module}.{attribute} now; the old name goes with the next "
        "version",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(module), attribute)
