"""Looking at the data of a run: what is in it, how it is mixed and packed, what the model is shown."""

from janus_jax.data_tools.inspection.inspector import NUMBERS, PAGE, REJECTED, Findings, inspect
from janus_jax.data_tools.inspection.terminal import summary

__all__ = ["NUMBERS", "PAGE", "REJECTED", "Findings", "inspect", "summary"]
