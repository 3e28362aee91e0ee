"""Pictures of codes for a page, where a model is given that can decode them."""

from __future__ import annotations

import jax
import numpy as np

from janus_jax.checkpoints.lazy import load_leaves
from janus_jax.data_tools.inspection.reading import Reading
from janus_jax.errors import UserError
from janus_jax.interop.conversion import open_checkpoint
from janus_jax.models import JanusModel
from janus_jax.pixels import to_uint8


class CodePainter:
    """Codes -> pictures, by the image tokenizer of a model directory; no other weights are read.

    Raises:
      UserError: no model, or one whose codes are others.
    """

    def __init__(self, reading: Reading):
        opened, vq = open_checkpoint(reading.checkpoint), reading.experiment.janus_config.vq
        its = opened.config.vq
        if (its.num_codes, its.codebook_size) != (vq.num_codes, vq.codebook_size):
            raise UserError(
                f"--checkpoint {reading.checkpoint}: its pictures are {its.num_codes} codes of "
                f"{its.codebook_size}, those of the config {vq.num_codes} of {vq.codebook_size}"
            )
        weights = {"vq": load_leaves(opened.params["vq"])}
        opened.check()
        model, self._params = JanusModel(opened.config), {"params": weights}
        # Compiled once: op by op each of hundreds would be compiled by itself.
        self._decode = jax.jit(
            lambda params, codes: to_uint8(model.apply(params, codes, method="decode_codes"))
        )

    def __call__(self, codes: np.ndarray) -> np.ndarray:
        """int [N] -> uint8 [h, w, 3]."""
        return np.asarray(self._decode(self._params, codes[None])[0])
