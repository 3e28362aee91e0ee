"""Which programs a batch of requests runs: numbers of rows, prompt lengths, decode segments, cache lengths.

Plain integers, made from the sizes of the requests alone. Running and warm-up both follow these schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from janus_jax.inference.batching import bucket, padded_size, round_up

BLOCK = 16  # answer tokens between two looks at whether all rows are done
CACHE_BUCKET = 64  # answers: cache lengths are multiples of this
UNLIMITED = 1 << 30


class Segment(NamedTuple):
    """A run of decode steps in one program.

    Attributes:
      first: number of the first code.
      steps: codes.
      cache_length: tokens that the KV cache has room for.
    """

    first: int
    steps: int
    cache_length: int


@dataclass(frozen=True)
class ImageSchedule:
    """How one batch of pictures is drawn.

    Attributes:
      images: B, rows of the decode steps.
      prompts: R, rows of the prefill: distinct prompts, conditional and unconditional.
      prompt_length: T.
      segments: the decode steps after the prefill; None is one program from prompt to pixels.
    """

    images: int
    prompts: int
    prompt_length: int
    segments: tuple[Segment, ...] | None = None


def schedule_images(
    lengths: Sequence[int],
    prompts: int,
    *,
    max_batch: int,
    shards: int = 1,
    num_codes: int,
    cache_bucket: int,
    preview_every: int | None = None,
) -> ImageSchedule:
    """The schedule of one batch.

    Args:
      lengths: tokens of each picture's prompt.
      prompts: how many distinct ones there are, with the unconditional ones.
      max_batch: most pictures at once.
      shards: the number of rows is a multiple of this.
      num_codes: codes of a picture.
      cache_bucket: decode steps between two lengths of the cache.
      preview_every: codes between two previews; None is without previews.
    """
    length = bucket(max(lengths))
    segments = None
    if preview_every is not None:
        segments = tuple(decode_segments(length, num_codes, preview_every, cache_bucket))
    images = round_up(padded_size(len(lengths), max_batch), shards)
    return ImageSchedule(images, padded_size(prompts, UNLIMITED), length, segments)


def decode_segments(prompt_length: int, total: int, every: int, cache_bucket: int) -> list[Segment]:
    """The segments that draw codes 1, ..., `total` - 1 and end at multiples of `every`.

    Cache lengths are those of the program for whole pictures, so that few programs serve any `every`.
    """
    segments = []
    done = 1  # the prefill has drawn one
    while done < total:
        steps = min(every - done % every, total - done)
        end = min(1 + round_up(done + steps - 1, cache_bucket), total)
        segments.append(Segment(done, steps, prompt_length + end - 1))
        done += steps
    return segments


@dataclass(frozen=True)
class AnswerSchedule:
    """How one turn of a batch of conversations is answered.

    Attributes:
      rows: B.
      pictures: U, pictures that are encoded.
      prompt_length: T, tokens of the prefill.
      cache_lengths: that the prefill needs, then each block of `BLOCK` tokens if no answer ends earlier.
    """

    rows: int
    pictures: int
    prompt_length: int
    cache_lengths: tuple[int, ...]


def schedule_answers(
    rows: int, pictures: int, longest: int, max_new_tokens: int, cached: int = 0
) -> AnswerSchedule:
    """The schedule of one turn.

    Args:
      rows: conversations, as many as the program has.
      pictures: distinct pictures that are not in the cache.
      longest: most tokens of a row that are not in the cache.
      max_new_tokens: most tokens of an answer.
      cached: tokens that are in the cache.
    """
    length = bucket(longest)
    blocks = -(-(max_new_tokens - 1) // BLOCK)  # the prefill draws the first token
    ends = [cached + length + BLOCK * i for i in (1, *range(1, blocks + 1))]
    pictures = padded_size(pictures, UNLIMITED) if pictures else 0
    return AnswerSchedule(rows, pictures, length, tuple(bucket(n, CACHE_BUCKET) for n in ends))


def lengths_by_bucket(shortest: int, longest: int) -> dict[int, int]:
    """Every length that `bucket` gives for `shortest`, ..., `longest`, with the shortest that gets it."""
    found: dict[int, int] = {}
    for length in range(shortest, longest + 1):
        found.setdefault(bucket(length), length)
    return found
