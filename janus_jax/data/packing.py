"""Packing sequences into rows, and rows into batches, with Grain.

Every feature of a sequence (see `processing.sequence`) is packed along its own first axis, so a row has
room for so many tokens, so many text targets and so many pictures, whichever runs out first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grain
import numpy as np

from janus_jax.data.lookahead import LookaheadPackIterDataset

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
# What has a value for each token, target or picture to generate is packed as the columns of one array: Grain
# works on each array of a sequence by itself, three times.
_COLUMNS = {
    "tokens": ("tokens", "token_types"),
    "targets": ("target_ids", "target_positions", "target_tasks", "target_sources"),
    "generated": ("gen_starts", "gen_sources"),
}
_SINGLE = ("target_weights", "gen_weights", "und_images", "gen_images", "gen_codes")


def pack(
    dataset: grain.IterDataset,
    row: PackedShape,
    batch_size: int,
    codes: bool = False,
    lookahead: int = 0,
) -> grain.IterDataset:
    """Packs sequences into rows, and batches the rows.

    Args:
      dataset: of sequences.
      row: room in a row.
      batch_size: B.
      codes: pictures to generate are codes.
      lookahead: sequences that the best ones for a row are chosen from (`data.lookahead`); 0: first-fit
        over the rows of a batch.

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
    pictures = "gen_codes" if codes else "gen_images"
    lengths = {
        "tokens": row.tokens,
        **dict.fromkeys(("targets", "target_weights"), row.targets),
        **dict.fromkeys(("generated", "gen_weights", pictures), row.gen_images),
        "und_images": row.und_images,
    }
    joined = dataset.map(_join_columns)
    if lookahead:
        counted = ("tokens", "targets", "generated", "und_images")
        packed = LookaheadPackIterDataset(joined, lengths, counted, lookahead)
    else:
        packed = grain.experimental.FirstFitPackIterDataset(
            joined, length_struct=lengths, num_packing_bins=batch_size, shuffle_bins=False
        )
    return packed.map(_finish_row).batch(batch_size, drop_remainder=True)


def _join_columns(features: Batch) -> Batch:
    joined = {
        name: np.stack([features[column] for column in columns], axis=1)
        for name, columns in _COLUMNS.items()
    }
    return joined | {name: features[name] for name in _SINGLE if name in features}


def _finish_row(row: Batch) -> Batch:
    """Columns become arrays, positions within a segment become positions within the row."""
    segments, positions = row["tokens_segment_ids"], row["tokens_positions"]
    starts = np.zeros(segments.max(initial=0) + 1, np.int32)
    first = (positions == 0) & (segments > 0)
    starts[segments[first]] = np.flatnonzero(first)
    out = {
        column: row[name][:, i]
        for name, columns in _COLUMNS.items()
        for i, column in enumerate(columns)
    }
    out["target_positions"] = out["target_positions"] + starts[row["targets_segment_ids"]]
    out["gen_starts"] = out["gen_starts"] + starts[row["generated_segment_ids"]]
    return (
        out
        | {name: row[name] for name in _SINGLE if name in row}
        | {"segment_ids": segments, "positions": positions}
    )
