"""Prompt ids -> image codes -> pixels under one jit, with classifier-free guidance and a KV cache.

Source: deepseek-ai/Janus `generation_inference.py`. Neither the language head nor, after the prompt, the
table of token embeddings is read. Rows have two leading axes [C, B]: the conditional rows, then the
unconditional ones (C = 2), or with guidance 1 the conditional ones alone (C = 1), which gives the
same codes at half the cost. B is the pictures; only B is cut over a mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax import models
from janus_jax.config import JanusConfig, Policy
from janus_jax.inference import decoder, gpu_attention, kv_cache
from janus_jax.inference.batching import positions_of, prefill_mask
from janus_jax.inference.cpu import compiler_options
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.logits import (
    SamplingParams,
    StaticSampling,
    apply_cfg,
    fold_in,
    log_probs,
    sample,
)
from janus_jax.parallel import BATCH_AXES
from janus_jax.pixels import to_uint8

DECODE_CHUNK = 16  # pictures that the VQ decoder handles at once: bounds its activations
CACHE_BUCKET = (
    128  # decode steps between two lengths of the cache: attention reads that much too much at most
)


class Prompts(NamedTuple):
    """Distinct prompts, and which of them each row continues.

    Attributes:
      ids: int32 [R, T] from BOS to BOI, left-padded; conditional and unconditional ones.
      mask: bool [R, T], False on the left padding.
      rows: int32 [C, B] into them.
    """

    ids: jax.Array
    mask: jax.Array
    rows: jax.Array


class State(NamedTuple):
    """Between two blocks of steps: what the next one needs.

    Attributes:
      cache: of [C, B] rows, with as many slots as were needed so far, or more; `kv_cache.flat` but on a mesh.
      pads: int32 [C, B] slots of left padding, never attended to.
      codes: int32 [B] the last ones drawn, not in the cache yet.
    """

    cache: kv_cache.Cache
    pads: jax.Array
    codes: jax.Array


# (logits float32 [B, V], step) -> (codes [B], anything to keep of this step)
Choose = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


class ImageEngine:
    """Compiled image generation of one architecture. Compiles once for each shape and `StaticSampling`.

    Args:
      config: architecture.
      policy: dtypes; activations are in its compute dtype.
      cache_dtype: of keys and values; "int8" also keeps scales. None takes the compute dtype.
      mesh: pictures are cut over `data` and `fsdp`, heads over `tensor`; None is one device.
      cache_bucket: decode steps between two lengths of the cache. Smaller reads less and compiles longer;
        None takes `CACHE_BUCKET`.
      platform: what is compiled for, such as "tpu"; None is the default one.
      int8: the weights will be in int8; matters to how programs are compiled for a CPU.
      kernel: whether steps use `gpu_attention`, with one length of the cache for all of them; None decides.
    """

    def __init__(
        self,
        config: JanusConfig,
        policy: Policy,
        cache_dtype: str | None = None,
        mesh: Mesh | None = None,
        cache_bucket: int | None = None,
        platform: str | None = None,
        int8: bool = False,
        kernel: bool | None = None,
    ):
        self._config = config
        self._model = models.JanusModel(config.replace(scan_layers=False), policy)
        self._cache_dtype = jnp.dtype(cache_dtype or policy.compute)
        self._mesh = mesh
        if kernel is None:
            on_gpu = (platform or jax.default_backend()) == "gpu" and mesh is None
            kernel = on_gpu and gpu_attention.supported(self._cache_dtype, config.decoder.head_dim)
        self._kernel = kernel
        self.cache_bucket = cache_bucket or (config.vq.num_codes if kernel else CACHE_BUCKET)
        options = compiler_options(config.decoder, mesh, platform, int8)
        jit = partial(jax.jit, compiler_options=options)
        self.draw = jit(self._draw, static_argnames="static")
        self.draw_with_log_probs = jit(self._draw_with_log_probs, static_argnames="static")
        self.score = jit(self._score)
        self.start = jit(self._start, static_argnames="static")
        self.grow = jax.jit(self._grow, static_argnames="length")
        self.advance = jit(
            self._advance, static_argnames=("steps", "static"), donate_argnames="state"
        )
        self.pixels = jit(self._pixels)
        self.encode = jit(self._encode)

    def _draw(
        self,
        weights: Weights,
        prompts: Prompts,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> tuple[jax.Array, jax.Array]:
        """Draws one picture a column of `prompts.rows`, from prompt to pixels.

        Args:
          weights: from `weights.fuse_params`.
          prompts: see `Prompts`.
          keys: [B] random keys, one a picture.
          sampling, static: see `make_sampling_params`.

        Returns:
          Codes int32 [B, num_codes], row-major over the grid, and pixels uint8 [B, H, W, 3].
        """
        codes = self._run(weights, prompts, sampling, self._sampler(keys, sampling, static))
        return codes.T, self._pixels(weights, codes.T)

    def _draw_with_log_probs(
        self,
        weights: Weights,
        prompts: Prompts,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `draw`, and float32 [B, num_codes]: the log-probability of each code under the distribution that
        it was drawn from. A program of its own, so that drawing without them pays nothing."""

        def choose(logits: jax.Array, step: jax.Array) -> tuple[jax.Array, Any]:
            codes = sample(logits, fold_in(keys, step), sampling, static)
            return codes, (codes, log_probs(logits, codes, sampling, static))

        codes, kept = self._run(weights, prompts, sampling, choose)
        return codes.T, self._pixels(weights, codes.T), kept.T

    def _score(
        self, weights: Weights, prompts: Prompts, codes: jax.Array, sampling: SamplingParams
    ) -> jax.Array:
        """Guided logits float32 [B, num_codes, V] before each of the given codes [B, num_codes]."""
        choose = lambda logits, step: (codes[:, step], logits)
        return jnp.swapaxes(self._run(weights, prompts, sampling, choose), 0, 1)

    def _start(
        self,
        weights: Weights,
        prompts: Prompts,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> tuple[State, jax.Array]:
        """Prefill and the first code: (state, codes [B, 1])."""
        state, first = self._prefill(
            weights, prompts, sampling, self._sampler(keys, sampling, static)
        )
        return state, first[:, None]

    def _advance(
        self,
        weights: Weights,
        state: State,
        first: jax.Array,
        keys: jax.Array,
        sampling: SamplingParams,
        prompt_length: jax.Array,
        steps: int,
        static: StaticSampling,
    ) -> tuple[State, jax.Array]:
        """Draws the codes `first`, ..., `first + steps - 1`: (state, codes [B, steps]).

        Args:
          state: donated; has at least `prompt_length + first + steps - 1` slots (see `grow`).
        """
        choose = self._sampler(keys, sampling, static)
        state, codes = self._steps(
            weights, state, first + jnp.arange(steps), prompt_length, sampling, choose
        )
        return state, codes.T

    def _sampler(self, keys: jax.Array, sampling: SamplingParams, static: StaticSampling) -> Choose:
        def choose(logits: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
            codes = sample(logits, fold_in(keys, step), sampling, static)
            return codes, codes

        return choose

    def _run(
        self, weights: Weights, prompts: Prompts, sampling: SamplingParams, choose: Choose
    ) -> Any:
        """All steps; what `choose` keeps, stacked over the steps."""
        T = prompts.ids.shape[1]
        state, first = self._prefill(weights, prompts, sampling, choose)
        kept = [jax.tree.map(lambda x: x[None], first)]
        for begin, end in blocks(self._config.vq.num_codes, self.cache_bucket):
            state = self._grow(state, T + end - 1)
            state, more = self._steps(weights, state, jnp.arange(begin, end), T, sampling, choose)
            kept.append(more)
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *kept)

    def _prefill(
        self, weights: Weights, prompts: Prompts, sampling: SamplingParams, choose: Choose
    ) -> tuple[State, Any]:
        """Each distinct prompt once; then a copy of its cache for each row that continues it."""
        ids, mask, rows = prompts
        config = self._config.decoder
        R, T = ids.shape
        cache = kv_cache.empty(config, (R,), T, self._cache_dtype)
        hidden, cache = decoder.decode(
            weights,
            config,
            decoder.embed_text(weights, ids),
            positions_of(mask),
            prefill_mask(mask, T),
            cache,
            0,
        )
        cache = self._constrain_cache(jax.tree.map(lambda x: x[rows], cache))
        pads = (T - mask.sum(axis=-1, dtype=jnp.int32))[rows]
        codes, kept = choose(self._logits(weights, hidden[:, -1][rows], sampling), jnp.int32(0))
        return State(cache, pads, codes), kept

    def _steps(
        self,
        weights: Weights,
        state: State,
        steps: jax.Array,
        prompt_length: jax.Array | int,
        sampling: SamplingParams,
        choose: Choose,
    ) -> tuple[State, Any]:
        """Draws the codes of `steps` [n]; the cache has room for them."""
        pads, config = state.pads, self._config.decoder
        slot = jnp.arange(kv_cache.length(state.cache))
        starts = pads if self._kernel else None

        def step(carry, i):
            cache, codes = carry
            index = prompt_length + i - 1  # the slot of the code drawn before
            x = jnp.broadcast_to(decoder.embed_codes(weights, codes), (*pads.shape, config.width))
            seen = (slot >= pads[..., None]) & (slot <= index)
            hidden, cache = decoder.decode(
                weights,
                config,
                x[..., None, :],
                (index - pads)[..., None],
                seen[..., None, :],
                cache,
                index,
                starts,
            )
            codes, kept = choose(self._logits(weights, hidden[..., 0, :], sampling), i)
            return (cache, codes), kept

        (cache, codes), kept = jax.lax.scan(step, (state.cache, state.codes), steps)
        return State(cache, pads, codes), kept

    def _grow(self, state: State, length: int) -> State:
        """The same state with room for `length` slots."""
        return state._replace(cache=self._constrain_cache(kv_cache.grow(state.cache, length)))

    def _logits(self, weights: Weights, hidden: jax.Array, sampling: SamplingParams) -> jax.Array:
        """Hidden states [C, B, D] -> guided logits [B, V]."""
        logits = decoder.image_logits(weights, hidden)
        return (
            apply_cfg(logits[0], logits[1], sampling.cfg_weight) if len(logits) == 2 else logits[0]
        )

    def _constrain_cache(self, cache: kv_cache.Cache) -> kv_cache.Cache:
        """Pins how the cache [C, B, K, S, ...] lies on the mesh; without one, `kv_cache.flat`."""
        if self._mesh is None:
            return kv_cache.flat(cache)
        where = NamedSharding(self._mesh, P(None, BATCH_AXES, "tensor"))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), cache)

    def _pixels(self, weights: Weights, codes: jax.Array) -> jax.Array:
        """Codes [B, num_codes] -> uint8 [B, H, W, 3], truncated as in the official script."""
        params = {"params": {"vq": weights["vq"]}}

        def decode(codes: jax.Array) -> jax.Array:
            return to_uint8(self._model.apply(params, codes, method="decode_codes"))

        if codes.shape[0] <= DECODE_CHUNK or self._mesh is not None:
            return decode(codes)
        return jax.lax.map(lambda one: decode(one[None])[0], codes, batch_size=DECODE_CHUNK)

    def _encode(self, weights: Weights, pixels: jax.Array) -> jax.Array:
        """Pictures uint8 [B, H, W, 3] -> codes int32 [B, num_codes], row-major over the grid."""
        pixels = (pixels.astype(jnp.float32) / 255 - 0.5) / 0.5
        return self._model.apply({"params": {"vq": weights["vq"]}}, pixels, method="encode_codes")


def blocks(steps: int, size: int) -> list[tuple[int, int]]:
    """[begin, end) of the blocks that draw codes 1, ..., `steps` - 1; code 0 is the prefill's."""
    return [(begin, min(begin + size, steps)) for begin in range(1, steps, size)]
