"""Janus-Pro-7B: the three stages of Table 2 at full size.

The recipe itself is in `janus_jax/configs/janus_pro_7b.py`, so that an installed package has it as well.
"""

from janus_jax.configs.janus_pro_7b import get_config

__all__ = ["get_config"]
