"""The tiny recipe grown for one GPU: 128-pixel scenes on a 4 x 4 grid with all 814 sprites.

The recipe itself is in `janus_jax/configs/janus_small.py`, so that an installed package has it as well.
"""

from janus_jax.configs.janus_small import get_config

__all__ = ["get_config"]
