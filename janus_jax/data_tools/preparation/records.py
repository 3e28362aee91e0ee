"""From a record of a source to the record that is kept: what training would reject is rejected here.

The encoder of training makes the pixels, so they are those that a run from the original files would see.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image, features

from janus_jax.data import Generation, Rejected, SequenceEncoder, Source, read_example
from janus_jax.data.layouts import record_of
from janus_jax.errors import UserError
from janus_jax.processing import Processor

# What is kept of the pictures of a source: nothing, if it has none.
WORDS, PIXELS, CODES, GIVEN_CODES = "none", "pixels", "codes", "codes, given"


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels:
    """A picture to draw whose codes are still to be computed: uint8 [h, w, 3], and its example."""

    example: Generation
    pixels: np.ndarray

    def record(self, codes: np.ndarray) -> bytes:
        """What is kept, with the codes int [N] of the picture."""
        return record_of(dataclasses.replace(self.example, picture=None, codes=codes))


Made = bytes | Pixels | Rejected


class RecordMaker:
    """Index of a record -> what is kept of it. It may be called by several threads.

    Args:
      source: of examples.
      processor: of the model.
      pictures: WORDS, PIXELS, CODES or GIVEN_CODES.
      codebook_size: of the model's image tokenizer.
    """

    def __init__(self, source: Source, processor: Processor, pictures: str, codebook_size: int):
        self._source, self._pictures = source, pictures
        self._encode = SequenceEncoder(
            processor,
            condition_dropout=0.0,
            codes=pictures == GIVEN_CODES,
            codebook_size=codebook_size,
        )

    def __call__(self, index: int) -> Made:
        """Raises UserError for what is wrong with all records, such as pictures among codes."""
        example = read_example(self._source, index)
        if isinstance(example, Rejected):
            return example
        arrays = self._encode(example)
        if isinstance(arrays, Rejected):
            return arrays
        if not isinstance(example, Generation):
            return record_of(example, [encoded(pixels) for pixels in arrays["und_images"]])
        if self._pictures == GIVEN_CODES:
            return record_of(example)
        pixels = arrays["gen_images"][0]
        if self._pictures == CODES:
            return Pixels(example, pixels)
        return record_of(example, [encoded(pixels)])


def encoded(pixels: np.ndarray) -> bytes:
    """uint8 [h, w, 3] as a WebP file without loss.

    Of what Pillow writes and every Pillow reads, it is the quickest to read, and smaller than PNG:
    `benchmarks.data.prepare`.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", lossless=True, quality=0, method=0)
    return file.getvalue()


def check_encoder() -> None:
    """Raises UserError if this Pillow cannot write what `encoded` makes."""
    if not features.check("webp"):
        raise UserError("this Pillow was built without WebP: pip install --force-reinstall pillow")
