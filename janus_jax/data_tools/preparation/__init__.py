"""Preparing data once for many runs: pictures of the right size, or their codes, in ArrayRecord files."""

from janus_jax.data_tools.preparation.options import Options
from janus_jax.data_tools.preparation.prepare import prepare

__all__ = ["Options", "prepare"]
