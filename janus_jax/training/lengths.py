"""What a packed row holds on average, for steps that have no data yet."""

from __future__ import annotations

import dataclasses

from janus_jax.config import JanusConfig
from janus_jax.training.content import Content


@dataclasses.dataclass(frozen=True)
class Lengths:
    """What sequences are made of, in ids. The paper does not say; ours.

    Attributes:
      row: T of a packed row.
      fill: share of it in use.
      words: ids beside a picture, in questions with answers and in prompts.
      answer: of them, those that are predicted about a picture to understand.
      text: ids of a text without pictures.
    """

    row: int = 4096
    fill: float = 0.97
    words: int = 74
    answer: int = 50
    text: int = 650


def row_content(
    config: JanusConfig, ratio: tuple[float, float, float], lengths: Lengths
) -> Content:
    """What one packed row holds on average; `ratio` is by number of sequences."""
    und, text, gen = (weight / sum(ratio) for weight in ratio)
    sizes = (
        config.siglip.num_patches + lengths.words,
        lengths.text,
        config.vq.num_codes - 1 + lengths.words,  # the last code feeds nothing
    )
    mixed = lambda values: sum(w * v for w, v in zip((und, text, gen), values, strict=True))
    sequences = lengths.fill * lengths.row / mixed(sizes)
    return Content(
        tokens=lengths.fill * lengths.row,
        pairs=sequences * mixed([n**2 for n in sizes]) / 2,
        targets=sequences * mixed((lengths.answer, lengths.text - 1, 0)),
        und_images=sequences * und,
        gen_images=sequences * gen,
    )
