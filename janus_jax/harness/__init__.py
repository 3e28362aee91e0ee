"""Harnesses of others that run a model of ours: what they look for when both are installed.

lmms-eval --model janus_jax --model_args pretrained=MODEL --tasks pope --batch_size 64
"""

from __future__ import annotations

from typing import Any


def lmms_eval_model() -> Any:
    """The `ModelManifest` of `lmms_eval.JanusJax`; lmms-eval calls it, by the entry points of this package."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("janus_jax", simple_class_path="janus_jax.harness.lmms_eval.JanusJax")
