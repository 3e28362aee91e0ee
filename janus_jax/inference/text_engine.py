"""Pictures and questions -> answer tokens: prefill of a turn, then blocks of decode steps.

Source: deepseek-ai/Janus `inference.py` and `MultiModalityCausalLM.prepare_inputs_embeds`. A turn's
prompts are left-padded, so that all rows write the same slots of the cache; `valid` remembers which of
them hold a token. Which positions show a picture is told by the host: a model can draw the id of an
image position, too. A block ends without asking the host anything: rows that are done go on with
end-of-sentence, which is not valid and hence not seen.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from janus_jax import models
from janus_jax.config import JanusConfig, Policy
from janus_jax.inference import decoder, kv_cache
from janus_jax.inference.cpu import compiler_options
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.logits import SamplingParams, StaticSampling, fold_in, sample
from janus_jax.inference.schedule import BLOCK
from janus_jax.pixels import to_float


class State(NamedTuple):
    """The conversations so far, in all rows.

    Attributes:
      cache: of B rows; `kv_cache.flat` but on a mesh.
      valid: bool [B, S], slots that hold a token.
      positions: int32 [B], of the next token.
      index: int32, the next slot to write.
    """

    cache: kv_cache.Cache
    valid: jax.Array
    positions: jax.Array
    index: jax.Array


class Answer(NamedTuple):
    """An answer that is being given.

    Attributes:
      last: int32 [B] tokens drawn last, not in the cache yet.
      done: bool [B], the row has drawn its end-of-sentence or as many tokens as it may.
      eos_drawn: bool [B], its end-of-sentence is drawn: a limit brings it about one step later.
      past_eos: bool [B], it was drawn before `last`, which hence belongs to nothing.
      step: int32, tokens drawn so far.
    """

    last: jax.Array
    done: jax.Array
    eos_drawn: jax.Array
    past_eos: jax.Array
    step: jax.Array


class TextEngine:
    """Compiled answering of one architecture. Compiles once for each shape and `StaticSampling`.

    Args:
      config: architecture.
      policy: dtypes.
      image_id: token at the image positions of a prompt; their embeddings are replaced.
      eos_id: token that ends an answer.
      cache_dtype: of keys and values; "int8" also keeps scales. None takes the compute dtype.
      mesh: where the weights lie; heads are cut over `tensor` as theirs are. None is one device.
      int8: the weights will be in int8; matters to how programs are compiled for a CPU.
      platform: what is compiled for; None is the default one.

    Attributes:
      image_id: as above.
      patches: P, image positions of a picture.
    """

    def __init__(
        self,
        config: JanusConfig,
        policy: Policy,
        image_id: int,
        eos_id: int,
        cache_dtype: str | None = None,
        mesh: Mesh | None = None,
        int8: bool = False,
        platform: str | None = None,
    ):
        self._config = config
        self._model = models.JanusModel(config.replace(scan_layers=False), policy)
        self._dtype = policy.compute
        self._cache_dtype = jnp.dtype(cache_dtype or policy.compute)
        self.image_id, self.patches = image_id, config.siglip.num_patches
        self._eos_id = eos_id
        self._mesh = mesh
        self.empty = jax.jit(self._empty, static_argnames=("rows", "length"))
        self.features = jax.jit(self._features)
        self.grow = jax.jit(_grow, static_argnames="length")
        options = compiler_options(config.decoder, mesh, platform, int8)
        jit = partial(jax.jit, compiler_options=options)
        self.prefill = jit(self._prefill, static_argnames="static", donate_argnames="state")
        self.block = jit(self._block, static_argnames="static", donate_argnames=("state", "answer"))

    def _empty(self, rows: int, length: int) -> State:
        """`rows` conversations without tokens; the cache has room for `length`."""
        cache = kv_cache.empty(self._config.decoder, (rows,), length, self._cache_dtype)
        return State(
            cache if self._mesh is not None else kv_cache.flat(cache),
            jnp.zeros((rows, length), bool),
            jnp.zeros(rows, jnp.int32),
            jnp.int32(0),
        )

    def _features(self, weights: Weights, pixels: jax.Array) -> jax.Array:
        """Pictures uint8 [U, H, W, 3] -> tokens for the decoder [U, P, D]."""
        features = self._model.apply(
            {"params": weights["vision"]}, to_float(pixels), method="embed_images"
        )
        return features.astype(self._dtype)

    def _prefill(
        self,
        weights: Weights,
        state: State,
        ids: jax.Array,
        mask: jax.Array,
        features: jax.Array | None,
        sources: jax.Array | None,
        limits: jax.Array,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> tuple[State, Answer]:
        """Adds one turn to every row and draws the first token of the answers.

        Args:
          weights: from `weights.fuse_params`.
          state: donated; has at least T free slots.
          ids: int32 [B, T], left-padded.
          mask: bool [B, T], False on the left padding.
          features: [U, P, D] of all pictures of the turn; None without any.
          sources: int32 [B, T], which of the U * P features feeds a position, -1 where its id does; None
            without pictures.
          limits: int32 [B] most tokens of each answer, >= 1.
          keys: [B] random keys.
        """
        x = decoder.embed_text(weights, ids)
        if features is not None:
            x = models.merge_features(x, features.reshape(1, -1, features.shape[-1]), sources)
        T, length = ids.shape[1], state.valid.shape[1]
        start = state.index
        valid = jax.lax.dynamic_update_slice(state.valid, mask, (0, start))
        slot, query = jnp.arange(length), start + jnp.arange(T)
        seen = valid[:, None] & (slot <= query[:, None])
        seen |= slot == query[:, None]  # a padding token sees itself: no row without any key
        positions = state.positions[:, None] + jnp.maximum(jnp.cumsum(mask, axis=-1) - 1, 0)
        hidden, cache = decoder.decode(
            weights, self._config.decoder, x, positions, seen, state.cache, start
        )
        state = State(cache, valid, state.positions + mask.sum(-1, dtype=jnp.int32), start + T)
        no_rows = jnp.zeros(len(ids), bool)
        empty = Answer(ids[:, -1], no_rows, no_rows, no_rows, jnp.int32(0))
        answer = self._draw(weights, hidden[:, -1], empty, limits, keys, sampling, static)
        return state, answer

    def _block(
        self,
        weights: Weights,
        state: State,
        answer: Answer,
        limits: jax.Array,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> tuple[State, Answer, jax.Array]:
        """Draws `BLOCK` more tokens of every row: (state, answer, int32 [B, BLOCK]).

        `state` and `answer` are donated; `BLOCK` slots are free.
        """
        slot = jnp.arange(state.valid.shape[1])

        def step(carry, _):
            state, answer = carry
            index = state.index
            valid = jax.lax.dynamic_update_slice(state.valid, ~answer.past_eos[:, None], (0, index))
            seen = valid | (slot == index)
            hidden, cache = decoder.decode(
                weights,
                self._config.decoder,
                decoder.embed_text(weights, answer.last)[:, None],
                state.positions[:, None],
                seen[:, None],
                state.cache,
                index,
            )
            positions = state.positions + ~answer.past_eos
            answer = self._draw(weights, hidden[:, 0], answer, limits, keys, sampling, static)
            return (State(cache, valid, positions, index + 1), answer), answer.last

        (state, answer), tokens = jax.lax.scan(step, (state, answer), length=BLOCK)
        return state, answer, tokens.T

    def _draw(
        self,
        weights: Weights,
        hidden: jax.Array,
        answer: Answer,
        limits: jax.Array,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> Answer:
        """Hidden states [B, D] -> the next token; rows that are done draw end-of-sentence."""
        logits = decoder.text_logits(weights, hidden)
        tokens = sample(logits, fold_in(keys, answer.step), sampling, static)
        tokens = jnp.where(answer.done, self._eos_id, tokens)
        eos_drawn = answer.eos_drawn | (tokens == self._eos_id)
        step = answer.step + 1
        return Answer(tokens, eos_drawn | (step >= limits), eos_drawn, answer.eos_drawn, step)


def _grow(state: State, length: int) -> State:
    """The same state with room for `length` slots."""
    extra = length - state.valid.shape[1]
    valid = jnp.pad(state.valid, ((0, 0), (0, extra)))
    return state._replace(cache=kv_cache.grow(state.cache, length), valid=valid)
