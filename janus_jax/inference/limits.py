"""How long prompts and answers may be: the positions that a model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from janus_jax.errors import UserError


class PositionLimits(NamedTuple):
    """Arithmetic of positions.

    Attributes:
      max_position: positions of the model.
    """

    max_position: int

    def remaining_positions(self, ids: Sequence[int]) -> int:
        """Tokens that fit after `ids`; the last one is never fed back."""
        return self.max_position - len(ids) + 1

    def longest_prompt(self, needed: int) -> int:
        """Tokens of the longest prompt after which `needed` more fit."""
        return self.max_position + 1 - needed

    def check(self, ids: list[int], name: str, needed: int) -> list[int]:
        """Returns `ids`.

        Raises:
          UserError: `needed` tokens do not fit after them; `name` says what they are.
        """
        if self.remaining_positions(ids) < needed:
            raise UserError(
                f"the {name} is too long: {len(ids)} tokens with its chat template, "
                f"the limit of this model is {self.longest_prompt(needed)}"
            )
        return ids
