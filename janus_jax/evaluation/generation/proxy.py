"""The detector that comes with the package, for `detectors.load_function`: a proxy of GenEval's own."""

from __future__ import annotations

from janus_jax.evaluation.generation.prompts import geneval_classes
from janus_jax.evaluation.generation.rules import COLORS
from janus_jax.interop import mask2former


class Proxy(mask2former.Mask2Former):
    """`interop.mask2former.Mask2Former` with GenEval's names of classes and colours.

    Args:
      detector, color_model, device: as there; the defaults are on the Hub.
    """

    def __init__(
        self,
        detector: str = mask2former.DETECTOR,
        color_model: str | None = mask2former.COLORS,
        device: str | None = None,
    ):
        super().__init__(geneval_classes(), COLORS, detector, color_model, device)
