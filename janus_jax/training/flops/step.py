"""Operations of one step of a stage, as a sum over what its batch holds."""

from __future__ import annotations

from typing import Any

import jax

from janus_jax.checkpoints.model_dir import EXTRAS
from janus_jax.config import JanusConfig
from janus_jax.param_groups import split_params
from janus_jax.training.content import Content
from janus_jax.training.flops import tokenizer, transformers
from janus_jax.training.flops.products import Flops, Products
from janus_jax.training.stages import Stage

# Amounts that operations are proportional to.
_AMOUNTS = ("tokens", "pairs", "targets", "und_images", "gen_images", "encoded", "pictures")


class StepFlops:
    """Counts operations without a device, once for each kind of thing in a batch; then a sum a step.

    Only what is in use counts: no padding, no blank pictures. The averaging of weights, the optimizer and
    losses are left out.

    Args:
      config: architecture; `scan_layers` as in `params`.
      stage: its objective and what it trains.
      params: full tree, with the objective's own; arrays or shapes.
      remat: of the model.
    """

    def __init__(self, config: JanusConfig, stage: Stage, params: Any, remat: str = "none"):
        self._config, self._stage, self._remat = config, stage, remat
        # Shapes: arrays that this held would stay in the device's memory.
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self._trainable, _ = split_params(self._params, stage.trainable)
        self.known = stage.objective in _COUNTS and (
            stage.objective != "siglip" or "pooling" in self._params.get(EXTRAS, {})
        )
        self._each = {}
        if self.known:
            self._each = {name: self._count(Content(**{name: 1})) for name in _AMOUNTS}

    def __call__(self, batch: Content) -> Flops | None:
        """Of one step, forward and backward; None for an objective of one's own."""
        if not self.known:
            return None
        total = Flops()
        for name, flops in self._each.items():
            if amount := getattr(batch, name):
                total = total.plus(flops, amount)
        return total.plus(self._texts(batch)) if batch.texts else total

    def _count(self, batch: Content) -> Flops:
        products = Products(self._trainable, self._remat)
        _COUNTS[self._stage.objective](self, products, batch)
        return products.flops

    def _janus(self, products: Products, batch: Content) -> None:
        und, _, gen = self._stage.ratio
        transformers.janus(products, self._config, batch, und > 0, gen > 0)
        # Frozen, whatever the stage says: its codes come without a gradient.
        frozen = Products({})
        tokenizer.encode(frozen, self._config.vq, batch.encoded)
        products.forward += frozen.forward

    def _vq(self, products: Products, batch: Content) -> None:
        tokenizer.auto_encode(products, self._config.vq, batch.pictures)

    def _siglip(self, products: Products, batch: Content) -> None:
        needs = transformers.siglip(products, self._config, batch.pictures)
        transformers.pooling(
            products, self._config.siglip, self._embed_dim(), batch.pictures, needs
        )

    def _texts(self, batch: Content) -> Flops:
        """What is not proportional to the pictures of stage 0's encoder: the texts, and all pairs of both."""
        products, embed_dim = Products(self._trainable), self._embed_dim()
        width = self._config.siglip.width
        transformers.text_tower(products, width, embed_dim, batch.texts, batch.texts_length)
        needs = products.trains("siglip") or products.trains(EXTRAS)
        one = 2.0 * embed_dim * batch.pictures * batch.texts
        products.forward += one
        products.backward += one * (needs + products.trains(f"{EXTRAS}/text_tower"))
        return products.flops

    def _embed_dim(self) -> int:
        return self._params[EXTRAS]["pooling"]["head"]["kernel"].shape[-1]


_COUNTS = {"janus": StepFlops._janus, "vq": StepFlops._vq, "siglip": StepFlops._siglip}
