"""Packing sequences into rows, and rows into batches, with Grain.

Every feature of a sequence (see `processing.sequence`) is packed along its own first axis, so a row has
room for so many tokens, so many text targets and so many pictures, whichever runs out first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class PackedShape:
    """Room in one packed row.

    Attributes:
      tokens: T, positions.
      targets: M, ids predicted by the language head.
      und_images: U, pictures to understand.
      gen_images: G, pictures to generate.
    """

    tokens: int
    targets: int
    und_images: int
    gen_images: int

    def excess(self, features: Mapping[str, np.ndarray]) -> str:
        """What of a sequence no row has room for, such as "tokens: 200, room for 160"; "" if it fits."""
        for field, feature in COUNTED_BY.items():
            size, room = len(features[feature]), getattr(self, field)
            if size > room:
                return f"{field}: {size}, room for {room}"
        return ""


# Field of `PackedShape` -> the feature whose length it limits.
COUNTED_BY = {
    "tokens": "tokens",
    "targets": "target_ids",
    "und_images": "und_images",
    "gen_images": "gen_starts",
}
_OF_TARGETS = ("target_ids", "target_positions", "target_tasks", "target_weights", "target_sources")
_OF_GENERATED = ("gen_starts", "gen_weights", "gen_sources")


def pack(
    dataset: grain.IterDataset, row: PackedShape, batch_size: int, codes: bool = False
) -> grain.IterDataset:
    """Packs sequences first-fit and batches the rows.

    Args:
      dataset: of sequences.
      row: room in a row.
      batch_size: B.
      codes: pictures to generate are codes.

    Returns:
      An IterDataset of batches. `segment_ids` is 0 where a row is empty, and so are the weights:
        tokens, token_types, segment_ids, positions  int32 [B, T]
        target_ids, target_positions, target_tasks, target_sources  int32 [B, M]
        target_weights float32 [B, M]
        und_images uint8 [B, U, h, w, 3]
        gen_images uint8 [B, G, h, w, 3], or with `codes` gen_codes int32 [B, G, N]
        gen_starts, gen_sources int32 [B, G]; gen_weights float32 [B, G]
      Positions restart at 0 in every segment; target_positions and gen_starts count from the row's start.
    """
    generated = "gen_codes" if codes else "gen_images"
    lengths = {
        "tokens": row.tokens,
        "token_types": row.tokens,
        **dict.fromkeys(_OF_TARGETS, row.targets),
        **dict.fromkeys((*_OF_GENERATED, generated), row.gen_images),
        "und_images": row.und_images,
    }
    dataset = grain.experimental.FirstFitPackIterDataset(
        dataset, length_struct=lengths, num_packing_bins=batch_size, shuffle_bins=False
    )
    return dataset.map(_finish_row).batch(batch_size, drop_remainder=True)


def _finish_row(row: Batch) -> Batch:
    """Positions within a segment become positions within the row."""
    segments, positions = row["tokens_segment_ids"], row["tokens_positions"]
    starts = np.zeros(segments.max(initial=0) + 1, np.int32)
    first = (positions == 0) & (segments > 0)
    starts[segments[first]] = np.flatnonzero(first)
    generated = "gen_codes" if "gen_codes" in row else "gen_images"
    unchanged = ("tokens", "token_types", *_OF_TARGETS, *_OF_GENERATED, "und_images", generated)
    return {name: row[name] for name in unchanged} | {
        "segment_ids": segments,
        "positions": positions,
        "target_positions": row["target_positions"] + starts[row["target_ids_segment_ids"]],
        "gen_starts": row["gen_starts"] + starts[row["gen_starts_segment_ids"]],
    }
