"""`Janus`: a checkpoint directory -> pictures from prompts, answers about pictures."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from janus_jax import checkpoints, models
from janus_jax.config import JanusConfig, Policy
from janus_jax.errors import UserError
from janus_jax.processing import (
    Processor,
    ProcessorConfig,
    Tokenizer,
    load_image,
    understanding_pixels,
)
from janus_jax.processing.image import ImageLike
from janus_jax.sampling.batching import left_pad, padded_size, round_up
from janus_jax.sampling.conversation import Conversation
from janus_jax.sampling.image_engine import ImageEngine
from janus_jax.sampling.logits import make_knobs
from janus_jax.sampling.text_engine import TextEngine
from janus_jax.weights import our_directory

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # such as tqdm.tqdm


class Janus:
    """A model ready to draw and to answer. Functions compile on first use, once for each shape.

    Attributes:
      config: architecture, with unrolled layers.
      processor: tokenizer and prompt layouts.
      params: parameter tree, layers unrolled, on the device.
      max_batch: most pictures or answers computed at once; more are split.
    """

    def __init__(
        self,
        config: JanusConfig,
        params: models.Params,
        processor: Processor,
        policy: Policy | None = None,
        max_batch: int = 64,
    ):
        """Takes parameters of either layout (scanned ones are unstacked once).

        Raises:
          UserError: the processor does not fit the architecture.
        """
        _check_fit(config, processor)
        self.config = config.replace(scan_layers=False)
        self.processor = processor
        self.max_batch = max_batch
        tokenizer = processor.tokenizer
        self._model = model = models.Janus(self.config, policy or Policy())
        self._images = ImageEngine(model, tokenizer.pad_id)
        self._texts = TextEngine(model, tokenizer.image_id, tokenizer.eos_id)
        self.params = self._prepare(params)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        step: int | None = None,
        policy: Policy | None = None,
        max_batch: int = 64,
    ) -> Janus:
        """Reads a model directory or a training run's directory (newest step unless `step`).

        A directory in the official or in the Hugging Face format, or a hub id such as
        "deepseek-ai/Janus-Pro-1B", is converted on first use into a cache (`weights.cache`).

        Raises:
          UserError: the directory is missing, empty, or not a Janus checkpoint.
        """
        policy = policy or Policy()
        loaded = checkpoints.load_model(our_directory(directory), step=step)
        processor = Processor(
            ProcessorConfig.from_dict(loaded.processor), Tokenizer.from_json(loaded.tokenizer_json)
        )
        params = {
            # The image tokenizer stays in float32: see `Policy`.
            name: part if name == "vq" else jax.tree.map(lambda x: x.astype(policy.param), part)
            for name, part in loaded.params.items()
        }
        return cls(loaded.config, params, processor, policy, max_batch)

    def with_params(self, params: models.Params) -> Janus:
        """The same model with other parameters; shares everything that is compiled."""
        other = copy.copy(self)
        other.params = self._prepare(params)
        return other

    def generate(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: Progress | None = None,
    ) -> list[Image.Image]:
        """Draws `n` pictures of each prompt; see `generate_arrays`."""
        arrays = self.generate_arrays(
            prompt, n, seed, cfg_weight, temperature, top_k, top_p, progress
        )
        return [Image.fromarray(array) for array in arrays]

    def generate_arrays(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Draws `n` pictures of each prompt.

        Picture i of a prompt depends on (prompt, seed, i) alone, not on what else is drawn.

        Args:
          prompt: one prompt or several.
          n: pictures of each prompt.
          seed: 0 to 2**32 - 1.
          cfg_weight: guidance; None takes the checkpoint's own, 1 is without and twice as fast.
          temperature: None takes the checkpoint's own; 0 takes the most likely code, so all pictures of a
            prompt are equal.
          top_k, top_p: draw from the most likely codes only; None does not restrict.
          progress: wraps the list of batches, such as `tqdm.tqdm`.

        Returns:
          uint8 [len(prompts) * n, H, W, 3], the pictures of the first prompt first.

        Raises:
          UserError: a bad argument; the message names it.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        size = self.config.vq.image_size
        if n < 1:
            raise UserError(f"n, the number of pictures of each prompt, must be >= 1, got {n}")
        if cfg_weight is None:
            cfg_weight = self.processor.config.cfg_weight
        if temperature is None:
            temperature = self.processor.config.temperature
        knobs, mode = make_knobs(
            self.config.vq.codebook_size, cfg_weight, temperature, top_k, top_p
        )
        key = _key(seed)
        requests = [(ids, i) for ids in map(self._generation_ids, prompts) for i in range(n)]
        out = [np.zeros((0, size, size, 3), np.uint8)]
        for batch in _batches(requests, self.max_batch, progress):
            rows = padded_size(len(batch), self.max_batch)
            ids, mask = left_pad([row for row, _ in batch], rows, self.processor.tokenizer.pad_id)
            keys = _picture_keys(key, batch, rows)
            codes = self._images.codes(self.params, ids, mask, keys, knobs, mode=mode)
            pixels = self._images.pixels(self.params, codes)
            out.append(np.asarray(pixels)[: len(batch)])
        return np.concatenate(out)

    def answer(
        self,
        image: ImageLike,
        question: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """Answers one question about one picture; see `answer_batch`."""
        return self.answer_batch([image], [question], max_new_tokens, temperature, top_p, seed)[0]

    def answer_batch(
        self,
        images: Sequence[ImageLike],
        questions: Sequence[str],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> list[str]:
        """Answers question i about picture i.

        Args:
          images: file names, PIL images or uint8 arrays [H, W, 3] of any size.
          questions: as many as images.
          max_new_tokens: most tokens of an answer; it also ends where the model's positions do.
          temperature: 0 is greedy.
          top_p: nucleus; None does not restrict.
          seed: 0 to 2**32 - 1; an answer depends on (picture, question, seed) alone.
          progress: wraps the list of batches.

        Raises:
          UserError: a bad argument; the message names it.
        """
        if len(images) != len(questions):
            raise UserError(f"there are {len(images)} images, but {len(questions)} questions")
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be >= 1, got {max_new_tokens}")
        knobs, mode = make_knobs(
            self.config.decoder.vocab_size, temperature=temperature, top_p=top_p
        )
        key = _key(seed)
        size = self.config.siglip.image_size
        requests = list(zip(images, map(self._understanding_ids, questions), strict=True))
        answers: list[str] = []
        for batch in _batches(requests, self.max_batch, progress):
            rows = padded_size(len(batch), self.max_batch)
            padded = [*batch, *[batch[-1]] * (rows - len(batch))]
            pixels = [understanding_pixels(load_image(image), size) for image, _ in batch]
            pixels += [pixels[-1]] * (rows - len(batch))
            ids, mask = left_pad([row for _, row in padded], rows, self.processor.tokenizer.pad_id)
            limits = np.array([min(max_new_tokens, self._room(row)) for _, row in padded], np.int32)
            tokens = self._texts.answer(
                self.params,
                np.stack(pixels),
                ids,
                mask,
                limits,
                jnp.broadcast_to(key, (rows,)),
                knobs,
                mode=mode,
                max_new_tokens=round_up(int(limits.max())),
            )
            tokens = np.asarray(tokens)[: len(batch)]
            answers += [self.processor.tokenizer.decode(row).strip() for row in tokens]
        return answers

    def conversation(
        self, temperature: float = 0.0, top_p: float | None = None, seed: int = 0
    ) -> Conversation:
        """A new conversation of several turns, with pictures and streamed answers.

        Raises:
          UserError: a bad argument; the message names it.
        """
        _key(seed)
        return Conversation(self._model, self.params, self.processor, temperature, top_p, seed)

    def _prepare(self, params: models.Params) -> models.Params:
        """Unrolled layers, on the device."""
        return jax.tree.map(jnp.asarray, models.unstack_layers(params, self.config))

    def _room(self, ids: Sequence[int]) -> int:
        """Tokens that fit after `ids`; the last one is never fed back."""
        return self.config.decoder.max_position - len(ids) + 1

    def _generation_ids(self, prompt: str) -> list[int]:
        ids = self.processor.generation_ids(prompt)
        return self._check_room(ids, "prompt", self.config.vq.num_codes)

    def _understanding_ids(self, question: str) -> list[int]:
        return self._check_room(self.processor.understanding_ids(question), "question", 1)

    def _check_room(self, ids: list[int], name: str, needed: int) -> list[int]:
        if self._room(ids) < needed:
            limit = self.config.decoder.max_position + 1 - needed
            raise UserError(
                f"the {name} is too long: {len(ids)} tokens with its chat template, "
                f"the limit of this model is {limit}"
            )
        return ids


def _key(seed: int) -> jax.Array:
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be between 0 and {2**32 - 1}, got {seed}")
    return jax.random.key(seed)


def _picture_keys(key: jax.Array, batch: Sequence[tuple[list[int], int]], rows: int) -> jax.Array:
    """One key [rows] for each (prompt ids, index): another prompt draws other noise, too."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    prompts = [zlib.crc32(np.asarray(ids, np.int32).tobytes()) for ids, _ in batch]
    indices = [index for _, index in batch]
    padding = [0] * (rows - len(batch))
    keys = fold(key, jnp.array(prompts + padding, jnp.uint32))
    return jax.vmap(jax.random.fold_in)(keys, jnp.array(indices + padding, jnp.uint32))


def _batches(requests: list[Any], size: int, progress: Progress | None) -> Iterable[list[Any]]:
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    return progress(batches) if progress else batches


def _check_fit(config: JanusConfig, processor: Processor) -> None:
    """Raises UserError if the processor was made for another architecture."""
    expected = ProcessorConfig.from_model(config)
    for name in ("und_image_size", "gen_image_size", "num_image_tokens", "num_codes"):
        have, need = getattr(processor.config, name), getattr(expected, name)
        if have != need:
            raise UserError(f"processor config: {name} is {have}, but {config.name} needs {need}")
    if processor.tokenizer.vocab_size > config.decoder.vocab_size:
        raise UserError(
            f"the tokenizer has {processor.tokenizer.vocab_size} tokens, but {config.name} has "
            f"only {config.decoder.vocab_size} embeddings: it belongs to another checkpoint"
        )
