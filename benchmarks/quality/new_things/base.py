"""`janus_tiny` whose image tokenizer and encoder know the new objects and the style; its language model does not.

    python train.py --config benchmarks/quality/new_things/base.py --workdir runs/base

That is how it is with released models: SigLIP and the image tokenizer were made for all kinds of pictures, and
fine-tuning leaves them alone. The tokenizer of `janus_tiny` itself knows its 32 objects and nothing else.
"""

from ml_collections import ConfigDict

from janus_jax.configs import janus_tiny
from janus_jax.data import SOURCES

SOURCES.register("wide", "benchmarks.quality.new_things.source:WideSource")


def get_config(arg: str = "") -> ConfigDict:
    config = janus_tiny.get_config(arg)
    config.name = f"new_things_base{'_' if arg else ''}{arg}"
    for name in ("stage0_vq", "stage0_siglip"):
        (source,) = config.stages[name].sources.values()
        source.name = "wide"
    if not arg:  # more sprites to learn
        config.stages.stage0_vq.steps = 3000
        config.stages.stage0_vq.options.fixed_from = 2500
        config.stages.stage0_siglip.steps = 300
    config.eval.after_stages = False
    return config
