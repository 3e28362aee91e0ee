"""A small Janus that learns everything from nothing, on two CPU cores, in minutes.

The recipe itself is in `janus_jax/configs/janus_tiny.py`, so that an installed package has it as well.
"""

from janus_jax.configs.janus_tiny import get_config

__all__ = ["get_config"]
