"""Codes of pictures by the image tokenizer of a checkpoint, as the training step computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from janus_jax.checkpoints import LoadedModel, load_leaves
from janus_jax.checkpoints.marks import ENCODER
from janus_jax.config import VQConfig
from janus_jax.errors import UserError
from janus_jax.models.vqgan import VQModel
from janus_jax.parallel import make_mesh
from janus_jax.parallel.mesh import batch_sharding, replicated
from janus_jax.pixels import to_float

_LARGEST = 2**16  # codes are kept as uint16


def encoder_params(loaded: LoadedModel) -> dict[str, Any]:
    """The parameters that encode pictures, float32 as in training; nothing else is read.

    Args:
      loaded: with lazy parameters.

    Raises:
      UserError: the checkpoint is damaged, or its codebook is too large.
    """
    if loaded.config.vq.codebook_size > _LARGEST:
        raise UserError(
            f"its codebook has {loaded.config.vq.codebook_size} codes, and {_LARGEST} are the most that "
            "can be kept: give --no-codes"
        )
    params = load_leaves({part: loaded.params["vq"][part] for part in ENCODER})
    loaded.check()
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


class PictureCodes:
    """Pictures -> codes, in one compiled function: every batch has the same size.

    Args:
      config: of the tokenizer.
      params: from `encoder_params`.
      each: pictures that a device encodes at a time. The program of a device, and with it what rounding makes
        of a near tie, depends on this number, and not on how many devices there are.
      devices: all of this machine by default.

    Attributes:
      batch: pictures in one call, over all devices.
      device: the kind of device, for people and for comparing.
    """

    def __init__(
        self,
        config: VQConfig,
        params: dict[str, Any],
        each: int,
        devices: Sequence[jax.Device] | None = None,
    ):
        mesh = make_mesh(data=-1, devices=devices)
        self.batch = each * mesh.size
        first = mesh.devices.flat[0]
        self.device = f"{first.platform}, {first.device_kind}"
        self._shape = (self.batch, config.image_size, config.image_size, 3)
        self._rows = batch_sharding(mesh)
        self._params = jax.device_put(params, replicated(mesh))
        model = VQModel(config)
        self._encode = jax.jit(
            lambda params, pixels: model.apply(
                {"params": params}, to_float(pixels), method="encode"
            ),
            out_shardings=self._rows,
        )

    def __call__(self, pixels: Sequence[np.ndarray]) -> jax.Array:
        """Codes of up to `batch` pictures, uint8 [h, w, 3] each: int32 [batch, N], the last ones of blank
        pictures. It does not wait until they are computed."""
        images = np.zeros(self._shape, np.uint8)
        images[: len(pixels)] = pixels
        return self._encode(self._params, jax.device_put(images, self._rows))
