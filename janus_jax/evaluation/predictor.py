"""A model as benchmarks see it: how it samples is decided here, once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import UserError


class ModelPredictor:
    """A `Predictor` of a `janus_jax.Janus`, or of anything that draws and answers as it does.

    Args:
      model: has `generate_arrays(prompts, **sampling)` and `answer_batch(images, questions, **sampling)`; and
        `with_prompts(template, system_prompt)`, for benchmarks whose protocol says how a question is put.
      drawing: sampling settings of every picture, such as `{"cfg_weight": 2.0}`.
      answering: of every answer.
      reconstruct: uint8 [B, h, w, 3] -> the same through the image tokenizer; None if there is none.
    """

    def __init__(
        self,
        model: Any = None,
        drawing: Mapping[str, Any] | None = None,
        answering: Mapping[str, Any] | None = None,
        reconstruct: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self._model = model
        self._drawing, self._answering = dict(drawing or {}), dict(answering or {})
        self._reconstruct = reconstruct

    def drawing_with(self, **sampling: Any) -> ModelPredictor:
        """The same predictor with other settings for its pictures."""
        drawing = self._drawing | sampling
        return ModelPredictor(self._model, drawing, self._answering, self._reconstruct)

    def prompting(self, template: str, system_prompt: str = "") -> ModelPredictor:
        """The same predictor whose questions are asked in another chat template and system prompt.

        Raises:
          UserError: no such template, or the model cannot be asked otherwise.
        """
        if not hasattr(self._model, "with_prompts"):
            raise UserError("this model cannot be asked in the chat template of a protocol")
        model = self._model.with_prompts(template, system_prompt)
        return ModelPredictor(model, self._drawing, self._answering, self._reconstruct)

    def draw(self, prompts: Sequence[str], **sampling: Any) -> np.ndarray:
        return self._model.generate_arrays(list(prompts), **(self._drawing | sampling))

    def answer(
        self, images: Sequence[np.ndarray], questions: Sequence[str], **sampling: Any
    ) -> list[str]:
        settings = self._answering | sampling
        return self._model.answer_batch(list(images), list(questions), **settings)

    def reconstruct(self, pictures: np.ndarray) -> np.ndarray:
        if self._reconstruct is None:
            raise UserError("this predictor has no image tokenizer to reconstruct pictures with")
        return self._reconstruct(pictures)
