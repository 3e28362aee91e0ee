"""Log-probabilities of given codes and answers: prompt and targets in one pass, each target after those before it.

Teacher forcing on the fused weights that draw and answer, so that no second copy of the model is needed.
Temperature is 1, and there is neither guidance nor top-k or top-p: the model's own distribution.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from janus_jax.config import JanusConfig
from janus_jax.inference import decoder, kv_cache
from janus_jax.inference.batching import positions_of, prefill_mask
from janus_jax.inference.cpu import compiler_options
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.logits import token_log_probs
from janus_jax.inference.text_engine import TextEngine, merge_features


class Scorer:
    """Compiled scoring of one architecture. Compiles once for each shape.

    Args:
      config: architecture.
      engine: encodes pictures.
      cache_dtype: what keys and values are rounded to, as while drawing and answering.
      mesh: where the weights lie.
      int8: whether they are in int8.
    """

    def __init__(
        self,
        config: JanusConfig,
        engine: TextEngine,
        cache_dtype: jnp.dtype,
        mesh: Mesh | None = None,
        int8: bool = False,
    ):
        self._config, self._cache_dtype = config.decoder, cache_dtype
        self.features = engine.features
        jit = partial(jax.jit, compiler_options=compiler_options(config.decoder, mesh, int8=int8))
        self.codes = jit(self._codes)
        self.answers = jit(self._answers, static_argnames="targets")

    def _codes(
        self, weights: Weights, ids: jax.Array, mask: jax.Array, codes: jax.Array
    ) -> jax.Array:
        """Log-probabilities float32 [B, N] of image codes.

        Args:
          weights: from `fused_params.fuse_params`.
          ids: int32 [B, T] prompts from BOS to BOI, left-padded.
          mask: bool [B, T], False on the padding.
          codes: int32 [B, N].
        """
        T, N = ids.shape[1], codes.shape[1]
        text = decoder.embed_text(weights, ids)
        images = decoder.embed_codes(weights, codes[:, : N - 1])
        mask = jnp.pad(mask, ((0, 0), (0, N - 1)), constant_values=True)
        hidden = self._hidden(weights, jnp.concatenate([text, images], axis=1), mask)
        return token_log_probs(decoder.image_logits(weights, hidden[:, T - 1 :]), codes)

    def _answers(
        self,
        weights: Weights,
        ids: jax.Array,
        mask: jax.Array,
        features: jax.Array | None,
        sources: jax.Array | None,
        targets: int,
    ) -> jax.Array:
        """Log-probabilities float32 [B, targets] of the last tokens.

        Args:
          weights: from `fused_params.fuse_params`.
          ids: int32 [B, T] prompts and answers, left-padded.
          mask: bool [B, T], False on the padding.
          features, sources: see `TextEngine.prefill`.
          targets: how many tokens at the end are scored.
        """
        x = decoder.embed_text(weights, ids)
        if features is not None:
            x = merge_features(x, features.reshape(1, -1, features.shape[-1]), sources)
        hidden = self._hidden(weights, x, mask)
        logits = decoder.text_logits(weights, hidden[:, -targets - 1 : -1])
        return token_log_probs(logits, ids[:, -targets:])

    def _hidden(self, weights: Weights, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Embeddings [B, T, D] of left-padded rows -> hidden states [B, T, D]."""
        rows, length = x.shape[:2]
        hidden, _ = decoder.decode(
            weights,
            self._config,
            x,
            positions_of(mask),
            prefill_mask(mask, length),
            kv_cache.empty(self._config, (rows,), length, self._cache_dtype),
            0,
        )
        return hidden
