"""What stands in for the paper's data, which nobody can download, until a config names its own.

Janus-Pro (arXiv 2501.17811), section 2.2, names what the stages are trained on; here emoji scenes at the
model's size take the place of all of it. A config of one's own changes `config.stages.STAGE.sources`.
"""

from __future__ import annotations

from typing import Any

from janus_jax.configs import emoji

WORLD = dict(image_size=384, grid=4, objects="all")


def sources(stage: str) -> dict[str, dict[str, Any]]:
    """The sources of "stage1", "stage2" or "stage3" of Table 2."""
    if stage == "stage1":  # ImageNet: pictures with the name of what they show
        kinds = {"single_object": 1.0}
        return emoji.sources(kinds=kinds, world=WORLD, describe=1.0)
    if stage == "stage2":  # text, captions, aesthetic pictures
        return emoji.sources(world=WORLD)
    # Supervised fine-tuning: conversations.
    return emoji.sources(world=WORLD, chat=True, describe=0.1)


def tokenizer() -> dict[str, Any]:
    """Words of the stand-in, for a model that learns from nothing."""
    return emoji.tokenizer(WORLD)


def benchmarks() -> tuple[dict[str, Any], ...]:
    """Nothing is scored (no prompts), but the sample grids have something to draw."""
    return (dict(name="emoji/geneval", prompts=0, world=dict(WORLD)),)
