"""Batches of requests for pictures: keys, host arrays, and the programs that draw them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference import kv_cache, programs
from janus_jax.inference.batching import deduplicate_prompts, left_pad
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.image_engine import ImageEngine, Prompts
from janus_jax.inference.logits import SamplingParams, StaticSampling
from janus_jax.inference.previews import Preview, hide_undrawn
from janus_jax.inference.programs import Call
from janus_jax.inference.schedule import ImageSchedule, schedule_images
from janus_jax.parallel import to_host


class Request(NamedTuple):
    """One picture: prompt ids from BOS to BOI, and its number among those of the prompt."""

    ids: list[int]
    index: int


class Drawn(NamedTuple):
    """Pictures of one batch.

    Attributes:
      codes: int32 [B, num_codes].
      pixels: uint8 [B, H, W, 3].
      log_probs: float32 [B, num_codes], or None.
    """

    codes: np.ndarray
    pixels: np.ndarray
    log_probs: np.ndarray | None = None


class ImageGenerator:
    """Draws batches of requests with one engine and one set of weights.

    Args:
      engine: compiled functions.
      weights: from `fused_params.fuse_params`.
      pad_id: of the unconditional prompt, and of left padding.
      num_codes: codes of a picture.
      shards: the number of pictures of a batch is a multiple of this (the mesh's `data` x `fsdp`).
    """

    def __init__(
        self, engine: ImageEngine, weights: Weights, pad_id: int, num_codes: int, shards: int = 1
    ):
        self._engine, self._weights = engine, weights
        self._pad_id, self._num_codes, self._shards = pad_id, num_codes, shards

    def arrange(
        self, batch: Sequence[Request], max_batch: int, guided: bool, key: jax.Array
    ) -> tuple[Prompts, jax.Array]:
        """Host arrays for one batch, padded to a bucketed size, and its keys [B]."""
        _, prompts, keys = self._arrange(batch, max_batch, guided, key)
        return prompts, keys

    def draw(
        self,
        batch: Sequence[Request],
        max_batch: int,
        key: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
        log_probs: bool = False,
    ) -> Drawn:
        """Draws whole pictures in one program.

        Args:
          batch: at most `max_batch` requests.
          max_batch: most pictures of one program.
          key: of the seed.
          sampling, static: see `make_sampling_params`.
          log_probs: also those of the codes.
        """
        _, prompts, keys = self._arrange(batch, max_batch, static.guided, key)
        run = (programs.execute, prompts, keys, sampling, static, log_probs)
        return Drawn(*(to_host(x)[: len(batch)] for x in self._draw(*run)))

    def stream(
        self,
        batch: Sequence[Request],
        max_batch: int,
        key: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
        every: int,
        first: int = 0,
    ) -> Iterator[Preview]:
        """The same pictures in segments of `every` codes; the last preview is of the whole pictures.

        Args:
          batch, max_batch, key, sampling, static: see `draw`.
          every: codes between two previews.
          first: number of the first picture of the batch among all that were asked for.
        """
        schedule, prompts, keys = self._arrange(batch, max_batch, static.guided, key, every)
        codes = np.zeros((keys.shape[0], self._num_codes), np.int32)
        done = 0

        def pixels() -> np.ndarray:
            drawn = to_host(self._pixels(programs.execute, codes))[: len(batch)]
            return hide_undrawn(drawn, done, self._num_codes)

        run = (programs.execute, schedule, prompts, keys, sampling, static)
        for new in self.draw_segments(*run):
            codes[:, done : done + new.shape[1]] = to_host(new)
            done += new.shape[1]
            yield Preview(first, len(batch), done, self._num_codes, pixels)

    def list_programs(
        self,
        call: Call,
        count: int,
        length: int,
        max_batch: int,
        sampling: SamplingParams,
        static: StaticSampling,
        every: int | None = None,
    ) -> None:
        """Gives `call` the programs that draw `count` pictures of one prompt.

        Args:
          call: a `ProgramList`.
          count: pictures, at most `max_batch`.
          length: tokens of the prompt.
          max_batch, sampling, static: see `draw`.
          every: codes between two previews; None is without.
        """
        schedule = self._schedule([length] * count, 1 + static.guided, max_batch, every)
        R, T, B = schedule.prompts, schedule.prompt_length, schedule.images
        rows = np.zeros((1 + static.guided, B), np.int32)
        prompts = Prompts(np.zeros((R, T), np.int32), np.ones((R, T), bool), rows)
        keys = jax.random.split(jax.random.key(0), B)
        if schedule.segments is None:
            self._draw(call, prompts, keys, sampling, static)
            return
        for _ in self.draw_segments(call, schedule, prompts, keys, sampling, static):
            pass
        self._pixels(call, np.zeros((B, self._num_codes), np.int32))

    def _schedule(
        self, lengths: Sequence[int], prompts: int, max_batch: int, every: int | None
    ) -> ImageSchedule:
        return schedule_images(
            lengths,
            prompts,
            max_batch=max_batch,
            shards=self._shards,
            num_codes=self._num_codes,
            cache_bucket=self._engine.cache_bucket,
            preview_every=every,
        )

    def _arrange(
        self,
        batch: Sequence[Request],
        max_batch: int,
        guided: bool,
        key: jax.Array,
        every: int | None = None,
    ) -> tuple[ImageSchedule, Prompts, jax.Array]:
        requests = [request.ids for request in batch]
        distinct, _ = deduplicate_prompts(requests, len(batch), guided, self._pad_id)
        lengths = list(map(len, requests))
        schedule = self._schedule(lengths, len(distinct), max_batch, every)
        _, rows = deduplicate_prompts(requests, schedule.images, guided, self._pad_id)
        ids, mask = left_pad(distinct, schedule.prompts, self._pad_id)
        keys = picture_keys(key, batch, schedule.images)
        return schedule, Prompts(ids, mask, np.asarray(rows, np.int32)), keys

    def _draw(
        self,
        call: Call,
        prompts: Prompts,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
        log_probs: bool = False,
    ) -> Any:
        draw = self._engine.draw_with_log_probs if log_probs else self._engine.draw
        return call(draw, self._weights, prompts, keys, sampling, static=static)

    def draw_segments(
        self,
        call: Call,
        schedule: ImageSchedule,
        prompts: Prompts,
        keys: jax.Array,
        sampling: SamplingParams,
        static: StaticSampling,
    ) -> Iterator[Any]:
        """The programs of a schedule with segments.

        Args:
          call: `programs.execute` or a `ProgramList`.
          schedule, prompts: of the batch; their shapes agree.
          keys: [B] random keys, one a picture.
          sampling, static: see `make_sampling_params`; the numbers may be arrays [B, 1].

        Yields:
          Codes int32 [B, n] of the prefill, then of every segment.
        """
        engine, weights = self._engine, self._weights
        state, new = call(engine.start, weights, prompts, keys, sampling, static=static)
        yield new
        for segment in schedule.segments or ():
            if segment.cache_length > kv_cache.length(state.cache):
                state = call(engine.grow, state, length=segment.cache_length)
            state, new = call(
                engine.advance,
                weights,
                state,
                segment.first,
                keys,
                sampling,
                schedule.prompt_length,
                steps=segment.steps,
                static=static,
            )
            yield new

    def _pixels(self, call: Call, codes: np.ndarray) -> Any:
        return call(self._engine.pixels, self._weights, codes)


def picture_keys(key: jax.Array, batch: Sequence[Request], rows: int) -> jax.Array:
    """One key [rows] for each (prompt ids, index): another prompt draws other noise, too."""
    prompts = [prompt_number(ids) for ids, _ in batch]
    indices = [index for _, index in batch]
    padding = [0] * (rows - len(batch))
    return fold_picture_keys(
        jnp.broadcast_to(key, (rows,)),
        jnp.array(prompts + padding, jnp.uint32),
        jnp.array(indices + padding, jnp.uint32),
    )


def prompt_number(ids: Sequence[int]) -> int:
    """What a prompt adds to a random key, 0 to 2**32 - 1."""
    return zlib.crc32(np.asarray(ids, np.int32).tobytes())


def fold_picture_keys(keys: jax.Array, prompts: jax.Array, indices: jax.Array) -> jax.Array:
    """Keys [B] of the seeds, `prompt_number`s and numbers of the pictures, uint32 [B] -> keys [B]."""
    fold = jax.vmap(jax.random.fold_in)
    return fold(fold(keys, prompts), indices)
