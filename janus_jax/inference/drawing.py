"""Requests for pictures: checked, cut into batches that fit, drawn; and pictures through the image tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.inference import checks
from janus_jax.inference.batching import left_pad, padded_size
from janus_jax.inference.generator import Drawn, Request
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.model import InferenceModel
from janus_jax.inference.previews import Preview
from janus_jax.parallel import to_host
from janus_jax.processing import generation_pixels, load_image
from janus_jax.processing.image import ImageLike

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # such as tqdm.tqdm


class ImageSamples(NamedTuple):
    """Pictures and what they were made of.

    Attributes:
      codes: int32 [N, num_codes], row-major over the grid.
      pixels: uint8 [N, H, W, 3].
      log_probs: float32 [N, num_codes] of the codes under the distribution that they were drawn from, after
        guidance, temperature, top-k and top-p (0 if greedy); None unless asked for.
    """

    codes: np.ndarray
    pixels: np.ndarray
    log_probs: np.ndarray | None

    @property
    def images(self) -> list[Image.Image]:
        """The pictures as PIL images."""
        return [Image.fromarray(array) for array in self.pixels]


class DrawingPlan(NamedTuple):
    """Checked requests.

    Attributes:
      requests: one for each picture.
      max_batch: pictures at once.
      key: of the seed.
      sampling, static: see `make_sampling_params`.
    """

    requests: list[Request]
    max_batch: int
    key: jax.Array
    sampling: SamplingParams
    static: StaticSampling


def make_plan(
    model: InferenceModel,
    prompt: str | Sequence[str],
    n: int,
    seed: int,
    cfg_weight: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
) -> DrawingPlan:
    """Checks the arguments of `Janus.generate`. Raises UserError; the message names the bad one."""
    texts = checks.prompts(prompt)
    n = checks.whole("n, the number of pictures of each prompt,", n, least=1)
    own = model.processor.config
    sampling, static = make_sampling_params(
        model.config.vq.codebook_size,
        own.cfg_weight if cfg_weight is None else cfg_weight,
        own.temperature if temperature is None else temperature,
        top_k,
        top_p,
    )
    key = checks.seed_key(seed)
    prompts = [prompt_ids(model, text) for text in texts]
    requests = [Request(ids, i) for ids in prompts for i in range(n)]
    max_batch = model.images_that_fit(max(map(len, prompts)), static.guided)
    return DrawingPlan(requests, max_batch, key, sampling, static)


def draw(
    model: InferenceModel,
    plan: DrawingPlan,
    progress: Progress | None = None,
    log_probs: bool = False,
) -> ImageSamples:
    """Draws everything."""
    generator = model.generator()
    size, total = model.config.vq.image_size, model.config.vq.num_codes
    parts = [
        Drawn(
            np.zeros((0, total), np.int32),
            np.zeros((0, size, size, 3), np.uint8),
            np.zeros((0, total), np.float32),
        )
    ]
    for batch in batches(plan.requests, plan.max_batch, progress):
        parts.append(generator.draw(batch, *plan[1:], log_probs=log_probs))
    codes, pixels = (np.concatenate([part[i] for part in parts]) for i in range(2))
    scores = np.concatenate([part.log_probs for part in parts]) if log_probs else None
    return ImageSamples(codes, pixels, scores)


def stream(
    model: InferenceModel, plan: DrawingPlan, every: int, progress: Progress | None = None
) -> Iterator[Preview]:
    """Previews of all batches, one after the other."""
    generator, first = model.generator(), 0
    for batch in batches(plan.requests, plan.max_batch, progress):
        yield from generator.stream(batch, *plan[1:], every=every, first=first)
        first += len(batch)


def prompt_ids(model: InferenceModel, prompt: str) -> list[int]:
    """Ids of a prompt after which a picture fits. Raises UserError."""
    ids = model.processor.generation_ids(prompt)
    return model.limits.check(ids, "prompt", model.config.vq.num_codes)


def encode(model: InferenceModel, images: Sequence[ImageLike]) -> np.ndarray:
    """Pictures -> codes int32 [B, num_codes]."""
    size = model.config.vq.image_size
    codes = [np.zeros((0, model.config.vq.num_codes), np.int32)]
    for batch in batches(list(images), model.codes_that_fit(), None):
        pixels = np.stack([generation_pixels(load_image(image), size) for image in batch])
        codes.append(_in_bucket(lambda x: model.image_engine.encode(model.weights, x), pixels))
    return np.concatenate(codes)


def decode(model: InferenceModel, codes: np.ndarray) -> np.ndarray:
    """Codes int32 [B, num_codes] -> uint8 [B, H, W, 3]."""
    size = model.config.vq.image_size
    pixels = [np.zeros((0, size, size, 3), np.uint8)]
    for batch in batches(list(codes), model.codes_that_fit(), None):
        draw = lambda x: model.image_engine.pixels(model.weights, x)
        pixels.append(_in_bucket(draw, np.stack(batch)))
    return np.concatenate(pixels)


def check_codes(model: InferenceModel, codes: Any, axes: tuple[int, ...] = (1, 2)) -> np.ndarray:
    """Image codes [num_codes] or [B, num_codes] as int32.

    Raises:
      UserError: no whole numbers, another shape, or outside of the codebook.
    """
    vq = model.config.vq
    try:
        array = np.asarray(codes)
    except ValueError as error:  # lists of different lengths
        raise UserError(
            f"codes must be whole numbers [{'B, ' * (2 in axes)}{vq.num_codes}], not rows of different lengths"
        ) from error
    if array.dtype.kind not in "iu" or array.ndim not in axes or array.shape[-1] != vq.num_codes:
        raise UserError(
            f"codes must be whole numbers [{'B, ' * (2 in axes)}{vq.num_codes}], not {array.dtype} of shape "
            f"{array.shape}"
        )
    if array.size and not 0 <= array.min() <= array.max() < vq.codebook_size:
        raise UserError(
            f"codes must be from 0 to {vq.codebook_size - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)


def score(
    model: InferenceModel, prompt: str | Sequence[str], codes: Any, progress: Progress | None
) -> np.ndarray:
    """Log-probabilities float32 [B, num_codes]; see `Janus.score_images`."""
    texts, codes = checks.prompts(prompt), check_codes(model, codes, axes=(2,))
    if len(texts) not in (1, len(codes)):
        raise UserError(f"prompts: {len(texts)}, but codes of {len(codes)} pictures")
    prompts = [prompt_ids(model, text) for text in texts]
    prompts = prompts * len(codes) if len(prompts) == 1 else prompts
    vq = model.config.vq
    length = max(map(len, prompts), default=0) + vq.num_codes
    max_batch = model.scores_that_fit(length, vq.num_codes, vq.codebook_size)
    scores = [np.zeros((0, vq.num_codes), np.float32)]
    for batch in batches(list(zip(prompts, codes, strict=True)), max_batch, progress):
        rows = padded_size(len(batch), max_batch)
        ids, mask = left_pad([ids for ids, _ in batch], rows, model.processor.tokenizer.pad_id)
        given = np.stack([*(c for _, c in batch), *[batch[-1][1]] * (rows - len(batch))])
        scored = model.scorer.codes(model.weights, ids, mask, given)
        scores.append(to_host(scored)[: len(batch)])
    return np.concatenate(scores)


def batches(requests: list[Any], size: int, progress: Progress | None) -> Iterable[list[Any]]:
    """Requests in lists of at most `size`."""
    parts = [requests[i : i + size] for i in range(0, len(requests), size)]
    return progress(parts) if progress else parts


def _in_bucket(function: Callable[[np.ndarray], Any], rows: np.ndarray) -> np.ndarray:
    """`function` on a bucketed number of rows; the last one is repeated."""
    count = padded_size(len(rows), 1 << 30)
    padded = np.concatenate([rows, np.repeat(rows[-1:], count - len(rows), axis=0)])
    return to_host(function(padded))[: len(rows)]
