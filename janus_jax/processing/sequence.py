"""Laying out one training sequence: ids, image positions, targets.

A sequence is a dict of arrays that can be packed with others along their first axes:

  tokens            int32 [T]   ids; image positions hold the id of `<image_placeholder>`
  token_types       int32 [T]   what feeds position t: TOKEN_TEXT, TOKEN_UND or TOKEN_GEN
  target_ids        int32 [M]   ids that the language head must predict ...
  target_positions  int32 [M]   ... from the hidden state at this position
  target_tasks      int32 [M]   ... on behalf of this task (TASK_UND or TASK_TEXT), for reporting
  target_weights    float32 [M] ... with this weight in the loss
  target_sources    int32 [M]   ... as an example of this source (its index in the mixture)
  gen_starts        int32 [G]   position of `<begin_of_image>` of each picture to generate
  gen_weights       float32 [G] weight of its codes in the loss
  gen_sources       int32 [G]   index of its source in the mixture
  und_images        uint8 [U, h, w, 3]  pictures to understand, in the order of their positions
  gen_images        uint8 [G, h, w, 3]  pictures to generate, or instead of them
  gen_codes         int32 [G, N]        their codes, where the data has codes

A generated picture of N codes takes N - 1 positions after `<begin_of_image>`: the hidden state at
`<begin_of_image>` predicts code 0, the position of code i predicts code i + 1, and code N - 1 feeds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from janus_jax.batch import TASK_TEXT, TASK_UND, TOKEN_GEN, TOKEN_TEXT, TOKEN_UND
from janus_jax.errors import UserError

Features = dict[str, np.ndarray]
Turn = tuple[Sequence[int], Sequence[int]]  # ids of a prompt, and of its answer


def text_sequence(
    ids: Sequence[int],
    und_size: int,
    gen_size: int,
    first_target: int = 1,
    task: int = TASK_TEXT,
    num_codes: int = 0,
) -> Features:
    """A sequence without pictures, of weight 1 and source 0.

    Args:
      ids: [T], from BOS to EOS.
      und_size, gen_size: sides of the (absent) pictures, pixels; they fix the shapes of empty arrays.
      first_target: index of the first id that is predicted (1: all after BOS; larger masks a prompt).
      task: TASK_TEXT or TASK_UND.
      num_codes: N where the (absent) pictures to generate are codes; 0 where they are pixels.
    """
    tokens = np.asarray(ids, np.int32)
    positions = np.arange(first_target - 1, len(tokens) - 1, dtype=np.int32)
    if num_codes:
        generated = {"gen_codes": np.zeros((0, num_codes), np.int32)}
    else:
        generated = {"gen_images": np.zeros((0, gen_size, gen_size, 3), np.uint8)}
    return {
        "tokens": tokens,
        "token_types": np.full(len(tokens), TOKEN_TEXT, np.int32),
        "target_ids": tokens[first_target:],
        "target_positions": positions,
        "target_tasks": np.full(len(positions), task, np.int32),
        "target_weights": np.ones(len(positions), np.float32),
        "target_sources": np.zeros(len(positions), np.int32),
        "gen_starts": np.zeros(0, np.int32),
        "gen_weights": np.zeros(0, np.float32),
        "gen_sources": np.zeros(0, np.int32),
        "und_images": np.zeros((0, und_size, und_size, 3), np.uint8),
        **generated,
    }


def conversation(
    turns: Sequence[Turn],
    image_id: int,
    images: np.ndarray,
    gen_size: int,
    task: int = TASK_UND,
    num_codes: int = 0,
) -> Features:
    """A conversation, about pictures or not; only the answers are predicted (`mask_prompt`).

    Args:
      turns: (prompt ids, answer ids) of each turn. The first prompt goes from BOS to the end of
        "<|Assistant|>:", with `image_id` at every image position, the later ones from "<|User|>" on; an
        answer ends with EOS.
      image_id: of `<image_placeholder>`.
      images: uint8 [U, h, w, 3].
      gen_size: side of the (absent) pictures to generate, pixels.
      task: TASK_UND or TASK_TEXT.
      num_codes: N where the (absent) pictures to generate are codes; 0 where they are pixels.

    Raises:
      UserError: the prompts do not have equally many image positions for each of `images`.
    """
    ids, positions, shown = [], [], []
    for prompt, answer in turns:
        # Only prompts have image positions: an answer has none, whatever its ids are.
        shown += [len(ids) + i for i in image_positions(prompt, image_id)]
        ids += [*prompt, *answer]
        positions += range(len(ids) - len(answer) - 1, len(ids) - 1)
    features = text_sequence(ids, images.shape[1], gen_size, task=task, num_codes=num_codes)
    for name in ("target_ids", "target_tasks", "target_weights", "target_sources"):
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
    """Where the ids of one prompt, as `Processor` lays it out, have places for image features."""
    return [i for i, token in enumerate(prompt) if token == image_id]


def generation_sequence(
    prompt_ids: Sequence[int], image_id: int, num_codes: int, picture: np.ndarray, und_size: int
) -> Features:
    """A prompt, then a picture's codes; only the codes are predicted, all of them.

    Args:
      prompt_ids: BOS to BOI; for the unconditional case [BOS, pad ..., BOI] of the same length.
      image_id: of `<image_placeholder>`.
      num_codes: N.
      picture: pixels, uint8 [h, w, 3], or codes, int32 [N].
      und_size: side of the (absent) pictures to understand, pixels.
    """
    start = len(prompt_ids) - 1
    ids = [*prompt_ids, *([image_id] * (num_codes - 1))]
    is_codes = picture.ndim == 1
    size = {"gen_size": 0, "num_codes": num_codes} if is_codes else {"gen_size": len(picture)}
    features = text_sequence(ids, und_size, first_target=len(ids), **size)
    features["token_types"][start + 1 :] = TOKEN_GEN
    features["gen_starts"] = np.array([start], np.int32)
    features["gen_weights"] = np.ones(1, np.float32)
    features["gen_sources"] = np.zeros(1, np.int32)
    features["gen_codes" if is_codes else "gen_images"] = picture[None]
    return features
