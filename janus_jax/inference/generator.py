"""Requests for pictures on the host: keys, batches, and pictures that are seen while they grow."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.inference import kv_cache
from janus_jax.inference.batching import left_pad, padded_size
from janus_jax.inference.fused_params import Weights
from janus_jax.inference.image_engine import ImageEngine, Prompts, deduplicate_prompts
from janus_jax.inference.logits import SamplingParams, StaticSampling
from janus_jax.parallel import to_host

GREY = 127  # of what is not drawn yet


class Request(NamedTuple):
    """One picture: prompt ids from BOS to BOI, and its number among those of the prompt."""

    ids: list[int]
    index: int


class Preview(NamedTuple):
    """Pictures that are still being drawn.

    Attributes:
      first: number of the first of them among all that were asked for.
      count: how many there are.
      done: codes drawn so far, of each.
      total: codes of a picture.
      pixels: computes them, uint8 [count, H, W, 3], grey where nothing is drawn yet.
    """

    first: int
    count: int
    done: int
    total: int
    pixels: Callable[[], np.ndarray]


# Sees the pictures while they are drawn. What it raises stops the drawing and reaches the caller.
OnPreview = Callable[[Preview], None]


class ImageGenerator:
    """Draws batches of requests with one engine and one set of weights.

    Args:
      engine: compiled functions.
      weights: from `weights.fuse_params`.
      pad_id: of the unconditional prompt, and of left padding.
      num_codes: codes of a picture.
      multiple: the number of pictures of a batch is a multiple of this (the mesh's `data` x `fsdp`).
    """

    def __init__(
        self, engine: ImageEngine, weights: Weights, pad_id: int, num_codes: int, multiple: int = 1
    ):
        self._engine, self._weights = engine, weights
        self._pad_id, self._num_codes, self._multiple = pad_id, num_codes, multiple

    def arrange(
        self, batch: Sequence[Request], most: int, guided: bool, key: jax.Array
    ) -> tuple[Prompts, jax.Array]:
        """Host arrays of one program call for `batch`, padded to a bucketed size, and its keys [B]."""
        columns = padded_size(len(batch), most)
        columns = -(-columns // self._multiple) * self._multiple
        prompts, rows = deduplicate_prompts([r.ids for r in batch], columns, guided, self._pad_id)
        ids, mask = left_pad(prompts, padded_size(len(prompts), 1 << 30), self._pad_id)
        keys = picture_keys(key, batch, columns)
        return Prompts(ids, mask, np.asarray(rows, np.int32)), keys

    def draw(
        self,
        batch: Sequence[Request],
        most: int,
        key: jax.Array,
        knobs: SamplingParams,
        mode: StaticSampling,
    ) -> np.ndarray:
        """Pixels uint8 [len(batch), H, W, 3], in one program."""
        prompts, keys = self.arrange(batch, most, mode.guided, key)
        _, pixels = self._engine.draw(self._weights, prompts, keys, knobs, mode=mode)
        return to_host(pixels)[: len(batch)]

    def draw_seen(
        self,
        batch: Sequence[Request],
        most: int,
        key: jax.Array,
        knobs: SamplingParams,
        mode: StaticSampling,
        every: int,
        first: int = 0,
    ) -> Iterator[Preview]:
        """The same pictures in blocks of `every` codes; the last preview is of the whole pictures."""
        prompts, keys = self.arrange(batch, most, mode.guided, key)
        engine, weights = self._engine, self._weights
        T, total = prompts.ids.shape[1], self._num_codes
        state, new = engine.start(weights, prompts, keys, knobs, mode=mode)
        codes = np.zeros((keys.shape[0], total), np.int32)
        codes[:, :1] = to_host(new)
        done = 1

        def pixels() -> np.ndarray:
            return _hide(to_host(engine.pixels(weights, codes))[: len(batch)], done, total)

        yield Preview(first, len(batch), done, total, pixels)
        for begin, steps, length in plan_blocks(T, total, every, engine.window):
            if length > kv_cache.slots(state.cache):
                state = engine.grow(state, length=length)
            state, new = engine.advance(
                weights, state, begin, keys, knobs, T, steps=steps, mode=mode
            )
            done = begin + steps
            codes[:, begin:done] = to_host(new)
            yield Preview(first, len(batch), done, total, pixels)


def plan_blocks(
    prompt_length: int, total: int, every: int, window: int
) -> Iterator[tuple[int, int, int]]:
    """(first code, codes, slots of the cache) of the blocks that end at multiples of `every`.

    Slots are those of the program for whole pictures (`window`), so that few programs serve any `every`.
    """
    done = 1  # the prefill has drawn one
    while done < total:
        steps = min(every - done % every, total - done)
        end = min(1 + -(-(done + steps - 1) // window) * window, total)
        yield done, steps, prompt_length + end - 1
        done += steps


def picture_keys(key: jax.Array, batch: Sequence[Request], rows: int) -> jax.Array:
    """One key [rows] for each (prompt ids, index): another prompt draws other noise, too."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    prompts = [zlib.crc32(np.asarray(ids, np.int32).tobytes()) for ids, _ in batch]
    indices = [index for _, index in batch]
    padding = [0] * (rows - len(batch))
    keys = fold(key, jnp.array(prompts + padding, jnp.uint32))
    return jax.vmap(jax.random.fold_in)(keys, jnp.array(indices + padding, jnp.uint32))


def _hide(pixels: np.ndarray, done: int, total: int) -> np.ndarray:
    """Grey where codes, row by row over the square grid, are not drawn yet."""
    if done == total:
        return pixels
    grid = int(total**0.5)
    side = pixels.shape[1] // grid
    drawn = (np.arange(total) < done).reshape(grid, grid)
    drawn = np.kron(drawn, np.ones((side, side), bool))
    return np.where(drawn[..., None], pixels, np.uint8(GREY))
