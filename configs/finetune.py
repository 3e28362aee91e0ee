"""Fine-tuning a released model on data of one's own.

The recipes themselves are in `janus_jax/configs/finetune.py`, so that an installed package has them as well.
"""

from janus_jax.configs.finetune import get_config

__all__ = ["get_config"]
