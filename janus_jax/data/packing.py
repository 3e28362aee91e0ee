"""Packing sequences into rows, and rows into batches, with Grain.

Every feature of a sequence (see `processing.sequence`) is packed along its own first axis, so a row has
room for so many tokens, so many text targets and so many pictures, whichever runs out first.
"""

from __future__ import annotations

import dataclasses

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


def pack(dataset: grain.IterDataset, row: PackedShape, batch_size: int) -> grain.IterDataset:
    """Packs sequences first-fit and batches the rows.

    Returns:
      An IterDataset of batches; `B = batch_size`. `segment_ids` is 0 where a row is empty:
        tokens, token_types, segment_ids, positions  int32 [B, T]
        target_ids, target_positions, target_tasks  int32 [B, M]; target_weights float32 [B, M]
        und_images uint8 [B, U, h, w, 3]; gen_images uint8 [B, G, h, w, 3]
        gen_starts int32 [B, G]; gen_weights float32 [B, G]
      Positions restart at 0 in every segment; target_positions and gen_starts count from the row's start.
    """
    lengths = {
        "tokens": row.tokens,
        "token_types": row.tokens,
        "target_ids": row.targets,
        "target_positions": row.targets,
        "target_tasks": row.targets,
        "gen_starts": row.gen_images,
        "und_images": row.und_images,
        "gen_images": row.gen_images,
    }
    dataset = grain.experimental.FirstFitPackIterDataset(
        dataset, length_struct=lengths, num_packing_bins=batch_size, shuffle_bins=False
    )
    return dataset.map(_finish_row).batch(batch_size, drop_remainder=True)


def _finish_row(row: Batch) -> Batch:
    """Turns positions within a segment into positions within the row, and segments into weights."""
    segments, positions = row["tokens_segment_ids"], row["tokens_positions"]
    starts = np.zeros(segments.max(initial=0) + 1, np.int32)
    first = (positions == 0) & (segments > 0)
    starts[segments[first]] = np.flatnonzero(first)
    targets, pictures = row["target_ids_segment_ids"], row["gen_starts_segment_ids"]
    return {
        "tokens": row["tokens"],
        "token_types": row["token_types"],
        "segment_ids": segments,
        "positions": positions,
        "target_ids": row["target_ids"],
        "target_positions": row["target_positions"] + starts[targets],
        "target_tasks": row["target_tasks"],
        "target_weights": (targets > 0).astype(np.float32),
        "und_images": row["und_images"],
        "gen_images": row["gen_images"],
        "gen_starts": row["gen_starts"] + starts[pictures],
        "gen_weights": (pictures > 0).astype(np.float32),
    }
