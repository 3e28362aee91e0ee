"""Pictures of many users in one batch, drawn in blocks of codes.

A row has its own seed and its own settings, which are arrays over the rows, so that few things keep two pictures
apart: the length of the program's prompt, and whether there is guidance.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import Janus, checks, drawing
from janus_jax.inference.batching import deduplicate_prompts, round_up
from janus_jax.inference.generator import fold_picture_keys, prompt_number
from janus_jax.inference.image_engine import Prompts
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.previews import hide_undrawn
from janus_jax.inference.programs import Call, Program, ProgramList, execute
from janus_jax.inference.schedule import ImageSchedule, Segment
from janus_jax.parallel import to_host
from janus_jax.serving.jobs import DrawJob, Job, Picture, Preview
from janus_jax.serving.scheduling import Output, Prepared, Row, RowDone

BLOCK = 48  # codes between two looks at who else wants the device, about
FEWEST_BLOCKS = 8  # of a small picture, so that it can be shown while it grows
SHORTEST = 64  # of the program's prompts, of which each length is four times the one before
WHITE = 255


class Drawn(NamedTuple):
    """What a job wants drawn.

    Attributes:
      ids: of the prompt, from BOS to BOI.
      seed: 0 to 2**32 - 1.
      sampling: of all its pictures.
      filtered: whether that has top-k or top-p.
      previews: how many of each picture.
    """

    ids: list[int]
    seed: int
    sampling: SamplingParams
    filtered: bool
    previews: int


class Group(NamedTuple):
    """What pictures of one batch have in common: tokens of the program's prompt, and whether there is guidance."""

    length: int
    guided: bool


class Drawing:
    """The `Worker` for pictures.

    Args:
      janus: the model.
      sizes: numbers of pictures that programs are compiled for.
      longest: tokens of the longest prompt.

    Raises:
      UserError: not even the smallest batch fits into memory.
    """

    kind = "draw"
    max_batches = 1  # all take equally long: two at a time would only make both slower

    def __init__(self, janus: Janus, sizes: Sequence[int], longest: int):
        self._janus = janus
        self._total = janus.config.vq.num_codes
        longest = min(longest, janus.limits.longest_prompt(self._total))
        self._longest = longest
        self._lengths = [SHORTEST]
        while self._lengths[-1] < longest:
            self._lengths.append(4 * self._lengths[-1])
        self._lengths[-1] = round_up(max(longest, 1))
        fit = janus.images_that_fit(self._lengths[-1], guided=True)
        self._sizes = sizes_that_fit(sizes, fit, janus.data_shards)
        self.max_rows = self._sizes[-1]
        blocks = max(round((self._total - 1) / BLOCK), min(FEWEST_BLOCKS, self._total - 1))
        self._block = -(-(self._total - 1) // blocks)
        self._keys = jax.jit(_keys)

    def takes(self, job: Job) -> bool:
        return isinstance(job, DrawJob)

    def prepare(self, job: DrawJob) -> Prepared:
        """See `Worker.prepare`."""
        model, own = self._janus, self._janus.processor.config
        ids = drawing.prompt_ids(model, job.prompt)
        if len(ids) > self._longest:
            raise UserError(
                f"the prompt is too long: {len(ids)} tokens with its chat template, "
                f"the limit of this server is {self._longest}"
            )
        sampling, static = make_sampling_params(
            model.config.vq.codebook_size,
            own.cfg_weight if job.cfg_weight is None else job.cfg_weight,
            own.temperature if job.temperature is None else job.temperature,
            job.top_k,
            job.top_p,
        )
        n = checks.whole("n, the number of pictures,", job.n, least=1)
        seed = checks.seed_number(job.seed)
        previews = checks.whole("previews", job.previews, least=0)
        length = next(length for length in self._lengths if length >= len(ids))
        work = Drawn(ids, seed, sampling, static.filtered, previews)
        return Prepared(n, Group(length, static.guided), len(ids), work)

    def run(self, rows: Sequence[Row]) -> Generator[list[Output], None, None]:
        """See `Worker.run`: the prompt and the first code, then a block of codes or a picture a step."""
        group: Group = rows[0].ticket.prepared.group
        size = next(size for size in self._sizes if size >= len(rows))
        padded = [*rows, *[rows[-1]] * (size - len(rows))]
        static = StaticSampling(group.guided, False, any(row.work.filtered for row in rows))
        prompts = self._prompts([row.work.ids for row in padded], group)
        keys = execute(self._keys, *_key_arrays(padded))
        sampling = stacked([row.work.sampling for row in padded])
        schedule = self._schedule(size, group)
        codes = np.zeros((size, schedule.segments[-1].first + self._block), np.int32)
        done = 0
        generator = self._janus.generator()
        for new in generator.draw_segments(execute, schedule, prompts, keys, sampling, static):
            new = to_host(new)
            before, drawn = done, done + new.shape[1]
            codes[:, done:drawn] = new
            done = min(drawn, self._total)  # the last block may be longer than what is left
            wanted = [
                number
                for number, row in enumerate(rows)
                if row.alive and self._shows(row.work.previews, before, done)
            ]
            if not wanted:
                yield []
            for number in wanted:
                if rows[number].alive:
                    yield self._show(number, rows[number].index, codes[number], done)

    def programs(self) -> list[Program]:
        """All that `run` can need."""
        found, generator = ProgramList(), self._janus.generator()
        for size in self._sizes:
            row = np.zeros(size, np.uint32)
            keys = found(self._keys, row, row, row)
            sampling = stacked([SamplingParams(1.0, 1.0, 1, 1.0)] * size)
            for length in self._lengths:
                for guided in (True, False):
                    group = Group(length, guided)
                    prompts = self._prompts([[0]] * size, group)
                    schedule = self._schedule(size, group)
                    for filtered in (False, True):
                        static = StaticSampling(guided, False, filtered)
                        run = (found, schedule, prompts, keys, sampling, static)
                        for _ in generator.draw_segments(*run):
                            pass
        self._pixels(found, np.zeros((1, self._total), np.int32))
        return found.programs

    def _schedule(self, size: int, group: Group) -> ImageSchedule:
        """All blocks are equally long, so that they are one program for each length of the cache."""
        T, bucket = group.length, self._janus.image_engine.cache_bucket
        firsts = range(1, self._total, self._block)
        last = firsts[-1] + self._block  # codes are drawn up to here
        segments = []
        for first in firsts:
            end = min(round_up(first + self._block - 1, bucket), last - 1)
            segments.append(Segment(first, self._block, T + end))
        return ImageSchedule(size, size * (1 + group.guided), T, tuple(segments))

    def _prompts(self, ids: list[list[int]], group: Group) -> Prompts:
        """As many prompts as there are rows, though some may be equal: their number is a shape."""
        pad = self._janus.processor.tokenizer.pad_id
        distinct, rows = deduplicate_prompts(ids, len(ids), group.guided, pad)
        count, T = len(ids) * (1 + group.guided), group.length
        array, mask = np.full((count, T), pad, np.int32), np.zeros((count, T), bool)
        for number in range(count):
            prompt = distinct[min(number, len(distinct) - 1)]
            array[number, T - len(prompt) :] = prompt
            mask[number, T - len(prompt) :] = True
        return Prompts(array, mask, np.asarray(rows, np.int32))

    def _shows(self, previews: int, before: int, done: int) -> bool:
        """Whether a picture is finished, or due to be shown: `previews` times before that."""
        parts = previews + 1
        return done == self._total or done * parts // self._total > before * parts // self._total

    def _show(self, number: int, index: int, codes: np.ndarray, done: int) -> list[Output]:
        """What is said of a row. A picture is decoded alone, so that it is rounded equally in every batch."""
        total = self._total
        (pixels,) = to_host(self._pixels(execute, codes[None, :total]))
        if done == total:
            return [(number, Picture(index, pixels)), (number, RowDone("stop", total))]
        shown = hide_undrawn(pixels[None], done, total, WHITE)[0]
        return [(number, Preview(index, shown, done, total))]

    def _pixels(self, call: Call, codes: np.ndarray) -> Any:
        return call(self._janus.image_engine.pixels, self._janus.weights, codes)


def sizes_that_fit(sizes: Sequence[int], fit: int, shards: int = 1) -> list[int]:
    """The numbers of rows to compile for: multiples of `shards`, at most `fit`. Raises UserError without any."""
    sizes = sorted(
        {round_up(checks.whole("each of sizes", size, least=1), shards) for size in sizes}
    )
    if not sizes:
        raise UserError("sizes is an empty list: give at least one number of rows")
    if sizes[0] > fit:
        raise UserError(
            f"sizes: not even {sizes[0]} rows fit, the limit of memory and max_batch is {fit}: give a smaller one"
        )
    return [size for size in sizes if size <= fit]


def stacked(sampling: Sequence[SamplingParams]) -> SamplingParams:
    """Settings of rows as arrays [B, 1]."""
    cfg_weight, temperature, top_k, top_p = (
        np.asarray(v)[:, None] for v in zip(*sampling, strict=True)
    )
    kinds = (np.float32, np.float32, np.int32, np.float32)
    values = (cfg_weight, temperature, top_k, top_p)
    return SamplingParams(*(v.astype(kind) for v, kind in zip(values, kinds, strict=True)))


def _key_arrays(rows: Sequence[Row]) -> list[np.ndarray]:
    numbers = [(row.work.seed, prompt_number(row.work.ids), row.index) for row in rows]
    return [np.asarray(column, np.uint32) for column in zip(*numbers, strict=True)]


def _keys(seeds: jax.Array, prompts: jax.Array, indices: jax.Array) -> jax.Array:
    """Keys [B] of rows, the same as `Janus.generate` has them."""
    return fold_picture_keys(jax.vmap(jax.random.key)(seeds), prompts, indices)
