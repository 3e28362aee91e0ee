"""Janus-1.3B, trained with Janus-Pro's recipe: the three stages of Table 2 at full size.

    python train.py --config configs/janus_1b.py --config.init_from=DIR --config.tokenizer=DIR/tokenizer.json
    python train.py --config configs/janus_1b.py:stage2 ...

Stage 2 is planned for 360K steps and stopped at 270K, as in the paper; the rate is constant, so only the
last step matters. `standin.py` says what takes the place of the paper's data.
"""

from ml_collections import ConfigDict

from janus_jax.configs import common
from janus_jax.processing.chat import UNDERSTANDING_SYSTEM_PROMPT


def get_config(arg: str = "") -> ConfigDict:
    config = common.base("janus_1b", preset="janus-1.3b")
    config.processor.template = "deepseek_old"
    config.processor.system_prompt = UNDERSTANDING_SYSTEM_PROMPT
    return common.pick(common.paper_stages(config, stage2_steps=270_000, stage3_steps=80_000), arg)
