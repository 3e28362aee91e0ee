"""Fine-tuning a released model on data of one's own: one stage, from `init_from`, with cautious defaults.

    python train.py --config finetune:lora --config.init_from=MODEL --config.data.manifest=m.yaml
    python train.py --config finetune:full ...             # adaptors, image head and language model
    python train.py --config finetune:generation ...       # what draws, and the language model
    python train.py --config finetune:understanding ...    # what answers about pictures, and the language model

MODEL is a converted checkpoint of Janus-Pro-1B; for the larger one also --config.model.preset=janus-pro-7b. Each
variant is there with `_tiny` and `_smoke`, too, for models that `janus_tiny` and `janus_tiny:smoke` have made.
"""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from janus_jax.configs import common, janus_tiny
from janus_jax.errors import UserError, nearest
from janus_jax.processing.chat import UNDERSTANDING_SYSTEM_PROMPT

STAGE = "finetune"
# The linear layers of the language model (`janus_jax.adapters`).
LORA_TARGETS = ("decoder/*/attn/*_proj", "decoder/*/mlp/*_proj")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the variants do not share.

    Attributes:
      ratio: understanding : text : generation; all tasks stay in it, or the model would lose them.
      rate: of a released model.
      weight_decay: an adapter is small enough without.
    """

    ratio: tuple[float, float, float]
    rate: float
    weight_decay: float


RECIPES = {
    "lora": Recipe((2.0, 1.0, 2.0), 1e-4, 0.0),
    "full": Recipe((2.0, 1.0, 2.0), 1e-5, 0.05),
    "generation": Recipe((1.0, 1.0, 3.0), 1e-5, 0.05),
    "understanding": Recipe((3.0, 1.0, 1.0), 1e-5, 0.05),
}
TINY_RATE = 1e-3  # layers so narrow take larger steps, and need them
# By size: steps, and rows of a batch.
STEPS = {"": 500, "tiny": 800, "smoke": 60}
ROWS = {"": 16, "tiny": 8, "smoke": 4}
EVERY = {"": 100, "tiny": 100, "smoke": 20}  # steps from one look at the model to the next
SIZES = ("", "_tiny", "_smoke")
VARIANTS = tuple(f"{name}{size}" for size in SIZES for name in RECIPES)


def get_config(arg: str = "lora") -> ConfigDict:
    arg = arg or "lora"
    if arg not in VARIANTS:
        raise UserError(f"no variant {arg!r} ({', '.join(VARIANTS)}).{nearest(arg, VARIANTS)}")
    name, _, size = arg.partition("_")
    recipe = RECIPES[name]
    config = _tiny(size) if size else _released()
    config.name = f"finetune_{arg}"
    config.init_required = True
    config.eval.update(benchmarks=(), after_stages=False, held_out_every=EVERY[size])
    config.log.update(save_every=EVERY[size], sample_every=EVERY[size])
    config.data.update(too_long="reject", held_out=0.02)
    options = dict(
        optimizer=dict(
            schedule="cosine",
            final_share=0.1,
            warmup_share=0.03,
            weight_decay=recipe.weight_decay,
            clip_norm=1.0,
            mu_dtype="",
            nu_dtype="",
        )
    )
    if name == "lora":
        options["lora"] = dict(rank=16, alpha=32.0, targets=LORA_TARGETS)
    config.stages = {
        STAGE: common.stage(
            "janus",
            name,
            sources={},
            steps=STEPS[size],
            epochs=0.0,  # of the data; 0: as many steps as `steps` says
            learning_rate=TINY_RATE if size else recipe.rate,
            batch_size=ROWS[size],
            accumulate=1 if size else 4,
            ratio=recipe.ratio,
            condition_dropout=0.1,
            options=options,
        )
    }
    config.stage_order = (STAGE,)
    return config


def _released() -> ConfigDict:
    """A model at full size, on one device or several."""
    config = common.base("", preset="janus-pro-1b")
    config.processor.update(template="deepseek", system_prompt=UNDERSTANDING_SYSTEM_PROMPT)
    # Released weights are bfloat16, so frozen ones lose nothing.
    config.policy.update(frozen_dtype="bfloat16", targets_at_once=512, pictures_at_once=1)
    config.data.update(
        row=dict(tokens=2048, targets=1024, und_images=3, gen_images=3), streams=4, lookahead=32
    )
    config.log.update(keep=2, keep_best=1)
    return config


def _tiny(size: str) -> ConfigDict:
    """The network, tokenizer and rows of `janus_tiny`."""
    config = janus_tiny.get_config("smoke" if size == "smoke" else "")
    config.log.update(keep=2, keep_best=1, log_every=10)
    config.eval.note = ""
    return config
