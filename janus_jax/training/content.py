"""What a batch holds, counted on the host: of it follow the operations of a step, and how full its rows are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from janus_jax.batch import TOKEN_UND


@dataclasses.dataclass(frozen=True)
class Content:
    """Amounts of one batch, or of any part of one (then also fractions).

    Attributes:
      tokens: positions in use.
      pairs: pairs of positions that attend to each other: half of the sum of squared lengths of segments.
      targets: ids that the language head predicts.
      und_images: pictures to understand.
      gen_images: pictures to generate.
      encoded: those of them that come as pixels, so that the image tokenizer encodes them in the step.
      pictures: of an unpacked batch (stage 0).
      texts: next to them (stage 0 of the understanding encoder).
      texts_length: ids of one of these texts, with padding.
    """

    tokens: float = 0
    pairs: float = 0
    targets: float = 0
    und_images: float = 0
    gen_images: float = 0
    encoded: float = 0
    pictures: float = 0
    texts: float = 0
    texts_length: float = 0


def content(batch: Mapping[str, np.ndarray], num_patches: int) -> Content:
    """Counts one batch of the host (numpy arrays; see `janus_jax.batch`, and stage 0's encoders).

    Args:
      num_patches: P, positions of a picture to understand.
    """
    if "segment_ids" not in batch:
        rows = len(batch["image"]) if "image" in batch else 0
        text = batch.get("text")
        length = 0 if text is None else text.shape[1]
        return Content(pictures=rows, texts=0 if text is None else rows, texts_length=length)
    segments = np.asarray(batch["segment_ids"])
    segments = segments.reshape(-1, segments.shape[-1])  # of accumulated batches, too
    used = segments > 0
    types = np.asarray(batch["token_types"]).reshape(segments.shape)
    und = int(np.sum((types == TOKEN_UND) & used)) // num_patches
    gen = int(np.sum(batch["gen_weights"] > 0))
    return Content(
        tokens=int(used.sum()),
        pairs=float(np.sum(np.square(segment_lengths(segments), dtype=np.float64))) / 2,
        targets=int(np.sum(batch["target_weights"] > 0)),
        und_images=und,
        gen_images=gen,
        encoded=0 if "gen_codes" in batch else gen,
    )


def segment_lengths(segment_ids: np.ndarray) -> np.ndarray:
    """int [n]: the lengths of all segments of packed rows [B, T], of whose ids 0 is padding."""
    rows, longest = segment_ids.shape[0], int(segment_ids.max(initial=0)) + 1
    of_row = np.arange(rows)[:, None] * longest
    counts = np.bincount((segment_ids + of_row).ravel(), minlength=rows * longest)
    return counts.reshape(rows, longest)[:, 1:].ravel()


def fill(batch: Mapping[str, np.ndarray], found: Content) -> dict[str, float]:
    """Which share of the room of packed rows is in use; {} for an unpacked batch.

    Returns:
      `fill_tokens` of positions, `fill_targets`, `fill_und_images` and `fill_gen_images` (those for which
      the batch has room at all).
    """
    if "segment_ids" not in batch:
        return {}
    room = {
        "tokens": batch["segment_ids"].size,
        "targets": batch["target_weights"].size,
        "und_images": int(np.prod(batch["und_images"].shape[:-3])),
        "gen_images": batch["gen_weights"].size,
    }
    return {f"fill_{name}": getattr(found, name) / size for name, size in room.items() if size}
