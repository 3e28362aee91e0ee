"""Laying out one training sequence: ids, image positions, targets.

A sequence is a dict of arrays that can be packed with others along their first axes:

  tokens            int32 [T]   ids; image positions hold the id of `<image_placeholder>`
  token_types       int32 [T]   what feeds position t: TOKEN_TEXT, TOKEN_UND or TOKEN_GEN
  target_ids        int32 [M]   ids that the language head must predict ...
  target_positions  int32 [M]   ... from the hidden state at this position
  target_tasks      int32 [M]   ... on behalf of this task (TASK_UND or TASK_TEXT), for reporting
  gen_starts        int32 [G]   position of `<begin_of_image>` of each picture to generate
  und_images        uint8 [U, h, w, 3]  pictures to understand, in the order of their positions
  gen_images        uint8 [G, h, w, 3]  pictures to generate

A generated picture of N codes takes N - 1 slots after `<begin_of_image>`: the hidden state at
`<begin_of_image>` predicts code 0, the slot of code i predicts code i + 1, and code N - 1 feeds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_jax.batch import TASK_TEXT, TASK_UND, TOKEN_GEN, TOKEN_TEXT, TOKEN_UND
from janus_jax.errors import UserError

Features = dict[str, np.ndarray]
Turn = tuple[Sequence[int], Sequence[int]]  # ids of a prompt, and of its answer


def text_sequence(
    ids: Sequence[int], und_size: int, gen_size: int, first_target: int = 1, task: int = TASK_TEXT
) -> Features:
    """A sequence without pictures.

    Args:
      ids: [T], from BOS to EOS.
      und_size, gen_size: sides of the (absent) pictures, pixels; they fix the shapes of empty arrays.
      first_target: index of the first id that is predicted (1: all after BOS; larger masks a prompt).
      task: TASK_TEXT or TASK_UND.
    """
    tokens = np.asarray(ids, np.int32)
    positions = np.arange(first_target - 1, len(tokens) - 1, dtype=np.int32)
    return {
        "tokens": tokens,
        "token_types": np.full(len(tokens), TOKEN_TEXT, np.int32),
        "target_ids": tokens[first_target:],
        "target_positions": positions,
        "target_tasks": np.full(len(positions), task, np.int32),
        "gen_starts": np.zeros(0, np.int32),
        "und_images": np.zeros((0, und_size, und_size, 3), np.uint8),
        "gen_images": np.zeros((0, gen_size, gen_size, 3), np.uint8),
    }


def conversation(
    turns: Sequence[Turn],
    image_id: int,
    images: np.ndarray,
    gen_size: int,
    task: int = TASK_UND,
) -> Features:
    """A conversation, about pictures or not; only the answers are predicted (`mask_prompt`).

    Args:
      turns: (prompt ids, answer ids) of each turn. The first prompt goes from BOS to the end of
        "<|Assistant|>:", with `image_id` at every image slot, the later ones from "<|User|>" on; an answer
        ends with EOS.
      image_id: of `<image_placeholder>`.
      images: uint8 [U, h, w, 3].
      gen_size: side of the (absent) pictures to generate, pixels.
      task: TASK_UND or TASK_TEXT.

    Raises:
      UserError: the prompts do not have equally many image positions for each of `images`.
    """
    ids, positions, shown = [], [], []
    for prompt, answer in turns:
        # Slots belong to the pictures of the prompts: an answer has none, whatever its ids are.
        shown += [len(ids) + i for i in image_positions(prompt, image_id)]
        ids += [*prompt, *answer]
        positions += range(len(ids) - len(answer) - 1, len(ids) - 1)
    features = text_sequence(ids, images.shape[1], gen_size, task=task)
    for name in ("target_ids", "target_tasks"):
        features[name] = features[name][positions]
    features["target_positions"] = np.asarray(positions, np.int32)
    if bool(shown) != bool(len(images)) or (shown and len(shown) % len(images)):
        raise UserError(
            f"a conversation has {len(shown)} image positions for {len(images)} picture(s)"
        )
    features["token_types"][shown] = TOKEN_UND
    features["und_images"] = images
    return features


def image_positions(prompt: Sequence[int], image_id: int) -> list[int]:
    """Positions of the image positions among the ids of one prompt, as `Processor` lays it out."""
    return [i for i, token in enumerate(prompt) if token == image_id]


def generation_sequence(
    prompt_ids: Sequence[int], image_id: int, num_codes: int, image: np.ndarray, und_size: int
) -> Features:
    """A prompt, then a picture's codes; only the codes are predicted, all of them.

    Args:
      prompt_ids: BOS to BOI; for the unconditional case [BOS, pad ..., BOI] of the same length.
      image: uint8 [h, w, 3].
    """
    start = len(prompt_ids) - 1
    ids = [*prompt_ids, *([image_id] * (num_codes - 1))]
    features = text_sequence(ids, und_size, image.shape[0], first_target=len(ids))
    features["token_types"][start + 1 :] = TOKEN_GEN
    features["gen_starts"] = np.array([start], np.int32)
    features["gen_images"] = image[None]
    return features
