"""Rows of different ages in one batch: one joins while others are in the middle, and leaves when it is done.

A pool is a KV cache of a fixed number of rows and slots. A prompt is computed alone and copied into a row of it,
or into several that continue the same prompt. A block of decode steps advances the first rows of the pool, each at
a position of its own; what a row is and how far it is, the host says with every block.

While a block runs, what was there before is only read: its new keys and values go to a small cache of their own,
where all rows write the same slot, and are copied to their places afterwards. So no step scatters, and a block
reads the slots that are filled rather than all. The kernel for GPUs (`gpu_attention`) writes and reads the pool
itself.

The last token of a prompt is left to the first step, so that every token is drawn by the same program.
Source of the idea: continuous batching, Yu et al. 2022 (Orca).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from janus_jax import models
from janus_jax.config import DecoderConfig
from janus_jax.inference import decoder, gpu_attention, kv_cache
from janus_jax.inference.batching import round_up
from janus_jax.inference.cpu import compiler_options
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.logits import SamplingParams, StaticSampling, apply_cfg, sample
from janus_jax.models.attention import apply_rotary
from janus_jax.parallel import BATCH_AXES

GREEDY, PLAIN, FILTERED = range(
    3
)  # how the rows of a block draw: all at once, as one of them needs it


class Rows(NamedTuple):
    """The first B rows of a pool, as the host knows them; what stands for a row that is not there does not matter.

    Attributes:
      filled: int32 [B] tokens that are in the cache.
      last: int32 [B] the token that comes next, drawn last or the last one of the prompt.
      drawn: int32 [B] tokens or codes that were drawn so far.
      seeds, prompts, numbers: uint32 [B], of which the random key of a row is made; a text has no number.
      sampling: of arrays [B, 1].
      mode: int32, `GREEDY`, `PLAIN` or `FILTERED`.
    """

    filled: Any
    last: Any
    drawn: Any
    seeds: Any
    prompts: Any
    numbers: Any
    sampling: SamplingParams
    mode: Any


class SlotEngine:
    """Compiled functions on a pool of rows, for pictures or for texts.

    Args:
      config: of the language model.
      ways: C, what each row has: 2 for a conditional and an unconditional prompt, which guidance mixes; else 1.
      codes: rows draw image codes (else tokens of text).
      slots: of each row: the longest prompt and what is drawn after it.
      steps: most of a block.
      cache_dtype: of keys and values; "int8" also keeps scales.
      mesh: rows are cut over `data` and `fsdp`, heads over `tensor`; None is one device.
      int8: the weights are in int8; matters to how programs are compiled for a CPU.
      platform: what is compiled for; None is the default one.
      kernel: whether steps use `gpu_attention`; None decides.

    Attributes:
      slots: S, of a row of the pool, with some more.
      steps: as above.
      reads_filled: a block reads the filled slots whatever `length` it is given.
      pool_sharding: of the arrays of a pool, [B, C, K, S, ...]; None on one device.
      prompt_sharding: the same of a prompt, [C, K, T, ...].
    """

    def __init__(
        self,
        config: DecoderConfig,
        ways: int,
        codes: bool,
        slots: int,
        steps: int,
        cache_dtype: str | jnp.dtype,
        mesh: Mesh | None = None,
        int8: bool = False,
        platform: str | None = None,
        kernel: bool | None = None,
    ):
        self._config, self._ways, self._codes = config, ways, codes
        self._dtype = jnp.dtype(cache_dtype)
        # A block writes all its slots into each row, also where fewer were drawn.
        self.slots, self.steps = round_up(slots + steps), steps
        if kernel is None:
            on_gpu = (platform or jax.default_backend()) == "gpu" and mesh is None
            kernel = on_gpu and gpu_attention.supported(self._dtype, config.head_dim)
        self.reads_filled = kernel
        self.pool_sharding = self.prompt_sharding = None
        if mesh is not None:
            self.pool_sharding = NamedSharding(mesh, P(BATCH_AXES, None, "tensor"))
            self.prompt_sharding = NamedSharding(mesh, P(None, "tensor"))
        options = compiler_options(config, mesh, platform, int8)
        self.empty = jax.jit(self._empty, static_argnames="rows")
        self.prefill = jax.jit(self._prefill, compiler_options=options)
        self.insert = jax.jit(self._insert, donate_argnames="pool")
        self.move = jax.jit(self._move, donate_argnames="pool")
        self.block = jax.jit(
            self._block,
            static_argnames=("rows", "length"),
            donate_argnames="pool",
            compiler_options=options,
        )

    def _empty(self, rows: int) -> kv_cache.Cache:
        """A pool of `rows` rows: [B, C, K, S, H]."""
        shape = (rows, self._ways)
        pool = kv_cache.empty(self._config, shape, self.slots, self._dtype)
        return self._constrain(pool, self.pool_sharding)

    def _prefill(
        self,
        weights: Weights,
        ids: jax.Array,
        features: tuple[jax.Array, ...] | None = None,
        sources: jax.Array | None = None,
    ) -> kv_cache.Cache:
        """Keys and values of a prompt without its last token, [C, K, T, H]; nobody sees those of the padding.

        Args:
          weights: from `fused_params.fuse_params`.
          ids: int32 [C, T], padded on the right.
          features: of U pictures, each [P, D]; None without any.
          sources: int32 [C, T], which of the U * P features feeds a position, -1 where its id does.
        """
        C, T = ids.shape
        x = decoder.embed_text(weights, ids)
        if features is not None:
            x = models.merge_features(x, jnp.concatenate(features)[None], sources)
        order = jnp.arange(T)
        cache = kv_cache.empty(self._config, (C,), T, self._dtype)
        mask = jnp.broadcast_to(order[:, None] >= order, (C, T, T))
        positions = jnp.broadcast_to(order, (C, T))
        _, cache = decoder.decode(weights, self._config, x, positions, mask, cache, 0)
        return self._constrain(cache, self.prompt_sharding)

    def _insert(
        self, pool: kv_cache.Cache, prompt: kv_cache.Cache, row: jax.Array
    ) -> kv_cache.Cache:
        """The pool with a prompt in one of its rows."""

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(old, new[None], (row, *[0] * new.ndim))

        return self._constrain(jax.tree.map(write, pool, prompt), self.pool_sharding)

    def _move(self, pool: kv_cache.Cache, source: jax.Array, target: jax.Array) -> kv_cache.Cache:
        """The pool with a copy of one of its rows in another."""

        def copy(x: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_index_in_dim(x, source)
            return jax.lax.dynamic_update_index_in_dim(x, row, target, 0)

        return self._constrain(jax.tree.map(copy, pool), self.pool_sharding)

    def _block(
        self,
        weights: Weights,
        pool: kv_cache.Cache,
        now: Rows,
        steps: jax.Array,
        rows: int,
        length: int,
    ) -> tuple[kv_cache.Cache, jax.Array]:
        """Draws `steps` tokens of each of the first `rows` rows.

        Args:
          weights: from `fused_params.fuse_params`.
          pool: donated.
          now: the rows.
          steps: at least 1, at most `self.steps`.
          rows: B.
          length: slots that are read, at least what is filled in any row.

        Returns:
          The pool, and int32 [B, self.steps], of which the first `steps` were drawn.
        """
        filled, C = jnp.asarray(now.filled), self._ways
        keys = self._keys(now)
        by_row = lambda x: jnp.broadcast_to(x[:, None], (rows, C))
        if self.reads_filled:
            old, cache = None, pool
        else:
            old = jax.tree.map(lambda x: x[:rows, :, :, :length], pool)
            cache = kv_cache.empty(self._config, (rows, C), self.steps, self._dtype)
            if self.pool_sharding is None:
                old, cache = kv_cache.flat(old), kv_cache.flat(cache)
            cache = self._constrain(cache, self.pool_sharding)

        def step(i: jax.Array, carry: Any) -> Any:
            cache, last, drawn = carry
            x = self._embed(weights, last, now.drawn + i)
            x = jnp.broadcast_to(x[:, None], (rows, C, self._config.width))[:, :, None]
            at = by_row(filled + i)
            layers: Any = cache
            if old is None:
                attention = decoder.kernel_attention(at, jnp.zeros_like(at))
            else:
                layers = zip(old, cache, strict=True)
                attention = _attention(by_row(filled), length, i, self.steps)
            hidden, cache = decoder.run_layers(
                weights, self._config, x, at[..., None], layers, attention
            )
            logits = self._logits(weights, hidden[:, :, 0], now.sampling)
            last = _sample(logits, _fold(keys, now.drawn + i), now.sampling, now.mode)
            return cache, last, drawn.at[i].set(last)

        drawn = jnp.zeros((self.steps, rows), jnp.int32)
        carry = (cache, jnp.asarray(now.last), drawn)
        cache, _, drawn = jax.lax.fori_loop(0, steps, step, carry)
        pool = cache if old is None else self._keep(pool, cache, filled)
        return self._constrain(pool, self.pool_sharding), drawn.T

    def _keys(self, now: Rows) -> jax.Array:
        """Keys [B], those of `generator.fold_picture_keys`, or of a conversation."""
        keys = _fold(jax.vmap(jax.random.key)(jnp.asarray(now.seeds)), now.prompts)
        return _fold(keys, now.numbers) if self._codes else keys

    def _embed(self, weights: Weights, last: jax.Array, drawn: jax.Array) -> jax.Array:
        """[B, D]: of a picture, only the last token of the prompt is one of text."""
        if not self._codes:
            return decoder.embed_text(weights, last)
        codes = decoder.embed_codes(weights, last)
        return jnp.where((drawn == 0)[:, None], decoder.embed_text(weights, last), codes)

    def _logits(self, weights: Weights, hidden: jax.Array, sampling: SamplingParams) -> jax.Array:
        """Hidden states [B, C, D] -> float32 [B, V]; a guidance of 1 is exactly the conditional ones."""
        if not self._codes:
            return decoder.text_logits(weights, hidden[:, 0])
        logits = decoder.image_logits(weights, hidden)
        if self._ways == 1:
            return logits[:, 0]
        guided = apply_cfg(logits[:, 0], logits[:, 1], sampling.cfg_weight)
        return jnp.where(sampling.cfg_weight == 1, logits[:, 0], guided)

    def _keep(self, pool: kv_cache.Cache, new: kv_cache.Cache, filled: jax.Array) -> kv_cache.Cache:
        """The pool with what a block has added to each row, behind what was filled."""
        rows = len(filled)

        def unflat(x: jax.Array, like: jax.Array) -> jax.Array:
            return x.reshape(rows, *like.shape[1:3], *x.shape[x.ndim - (like.ndim - 3) :])

        new = jax.tree.map(unflat, new, pool)

        def write(old: jax.Array, new: jax.Array) -> jax.Array:
            # Row by row without a loop, which XLA for TPUs fails to compile on a pool that the steps have read.
            for row in range(rows):
                start = (row, 0, 0, filled[row], *[0] * (old.ndim - 4))
                old = jax.lax.dynamic_update_slice(old, new[row : row + 1], start)
            return old

        return jax.tree.map(write, pool, new)

    def _constrain(self, cache: kv_cache.Cache, where: NamedSharding | None) -> kv_cache.Cache:
        if where is None:
            return cache
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), cache)

    def pool_bytes(self, rows: int) -> int:
        """Bytes of a pool, and of the part of it that a block copies."""
        slots = rows * self._ways * self.slots
        return int(1.5 * slots * kv_cache.bytes_per_slot(self._config, self._dtype))

    def prompt_bytes(self, length: int) -> int:
        """Bytes of the keys and values of a prompt of so many tokens."""
        return self._ways * length * kv_cache.bytes_per_slot(self._config, self._dtype)


def _attention(filled: jax.Array, length: int, i: jax.Array, steps: int) -> decoder.Attention:
    """Of step i of a block: over what was filled before [B, C], and over the steps so far."""
    before = (jnp.arange(length) < filled[..., None])[..., None, :]
    since = jnp.broadcast_to(jnp.arange(steps) <= i, (*filled.shape, 1, steps))

    def attention(qkv: jax.Array, angles: decoder.Angles, caches: Any) -> decoder.Attended:
        old, new = caches
        rotated = apply_rotary(qkv[..., :-1, :], *angles)
        new = kv_cache.append(new, rotated[..., -1, :], qkv[..., -1, :], i)
        return kv_cache.attend_parts(rotated[..., :-1, :], ((old, before), (new, since))), new

    return attention


def _sample(
    logits: jax.Array, keys: jax.Array, sampling: SamplingParams, mode: jax.Array
) -> jax.Array:
    """int32 [B]; only what the rows need is computed."""
    draws = [
        partial(sample, static=StaticSampling(guided=False, greedy=greedy, filtered=filtered))
        for greedy, filtered in ((True, False), (False, False), (False, True))
    ]
    return jax.lax.switch(mode, draws, logits, keys, sampling)


def _fold(keys: jax.Array, data: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in)(keys, data)


def stacked(sampling: list[SamplingParams]) -> SamplingParams:
    """Settings of rows as arrays [B, 1]."""
    columns = zip(*sampling, strict=True)
    kinds = (np.float32, np.float32, np.int32, np.float32)
    return SamplingParams(
        *(np.asarray(v, kind)[:, None] for v, kind in zip(columns, kinds, strict=True))
    )
