"""What all contenders are given: prompts, a question and a picture, the same in every process."""

from __future__ import annotations

from typing import Any

BOS, BOI, PAD, EOI = 1, 2, 3, 4  # random weights give no token a meaning: any ids will do


def prompt(length: int, vocab: int) -> tuple[list[int], list[int]]:
    """A conditional prompt and its unconditional one, the same in all processes."""
    import numpy as np

    inner = np.random.default_rng(0).integers(EOI + 1, vocab - 1, length - 2).tolist()
    return [BOS, *inner, BOI], [BOS, *[PAD] * (length - 2), BOI]


def question(length: int, vocab: int, slots: int) -> list[int]:
    """Words, one picture in `slots` image tokens (the last id of the vocabulary), words."""
    ids = prompt(length, vocab)[0][1:-1]
    half = len(ids) // 2
    return [BOS, *ids[:half], BOI, *[vocab - 1] * slots, EOI, *ids[half:]]


def picture(size: int) -> Any:
    """uint8 [size, size, 3], the same in all processes."""
    import numpy as np

    return np.random.default_rng(1).integers(0, 256, (size, size, 3)).astype(np.uint8)
