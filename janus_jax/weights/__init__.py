"""Reading and writing the official PyTorch formats."""

from janus_jax.weights.convert import params_from_official, params_to_official
from janus_jax.weights.official_config import config_from_official

__all__ = ["config_from_official", "params_from_official", "params_to_official"]
