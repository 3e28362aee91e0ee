"""`Janus`: a checkpoint directory -> pictures from prompts, answers about pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from janus_jax import models
from janus_jax.config import JanusConfig, Policy
from janus_jax.errors import UserError
from janus_jax.inference import checks, kv_cache, memory
from janus_jax.inference.batching import bucket, padded_size
from janus_jax.inference.conversation import Conversation, Conversations
from janus_jax.inference.dialogue import Dialogue
from janus_jax.inference.fused_params import Weights, fuse_params
from janus_jax.inference.generator import ImageGenerator, OnPreview, Request
from janus_jax.inference.image_engine import ImageEngine
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.text_engine import TextEngine
from janus_jax.inference.warmup import Program, answering_programs, buckets, drawing_programs
from janus_jax.interop import load_checkpoint
from janus_jax.processing import (
    Processor,
    ProcessorConfig,
    Tokenizer,
    load_image,
    understanding_pixels,
)
from janus_jax.processing.image import ImageLike

Progress = Callable[[Sequence[Any]], Iterable[Any]]  # such as tqdm.tqdm


class Janus:
    """A model ready to draw and to answer. Functions compile on first use, once for each shape.

    Attributes:
      config: architecture, with unrolled layers.
      processor: tokenizer and prompt layouts.
      weights: packed parameters, on the device (`weights.fuse_params`).
      max_batch: most pictures or answers computed at once; more are split.
      memory_limit: bytes that a batch may take beside the weights; None takes what is free.
    """

    def __init__(
        self,
        config: JanusConfig,
        params: models.Params,
        processor: Processor,
        policy: Policy | None = None,
        max_batch: int = 64,
        mesh: Mesh | None = None,
        int8: Collection[str] = (),
        memory_limit: int | None = None,
        donate_params: bool = False,
    ):
        """Takes parameters of either layout and packs them once (`weights.fuse_params`).

        Args:
          config: architecture.
          params: parameter tree; it is not kept.
          processor: tokenizer and prompt layouts.
          policy: dtypes.
          max_batch: most pictures or answers at once.
          mesh: from `parallel.make_mesh`: pictures over `data` x `fsdp`, heads over `tensor`.
          int8: "weights", "cache" or both: smaller and, where memory is the limit, faster; not exact.
          memory_limit: bytes that a batch may take beside the weights; None takes what is free.
          consume: empties `params` while packing: the language model is never in memory twice.

        Raises:
          UserError: the processor does not fit the architecture, or an unknown or impossible option.
        """
        checks.check_fit(config, processor)
        int8 = checks.check_options(policy, max_batch, mesh, int8, memory_limit)
        self.config = config.replace(scan_layers=False)
        self.processor = processor
        self.max_batch = max_batch
        self.memory_limit = memory_limit
        self._policy = policy or Policy()
        self._mesh, self._int8 = mesh, "weights" in int8
        self._cache_dtype = kv_cache.stored_dtype(self._policy, "cache" in int8)
        tokenizer = processor.tokenizer
        how = dict(cache_dtype=self._cache_dtype, mesh=mesh, int8=self._int8)
        self._images = ImageEngine(self.config, self._policy, **how)
        self._texts = TextEngine(
            self.config, self._policy, tokenizer.image_id, tokenizer.eos_id, **how
        )
        self.weights = self._pack(params, donate_params)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        step: int | None = None,
        policy: Policy | None = None,
        verify: bool = True,
        **options: Any,
    ) -> Janus:
        """Reads a model directory, or a training run's (newest step unless `step`) or one of its steps'.

        A directory in the official or in the Hugging Face format, or a hub id such as
        "deepseek-ai/Janus-Pro-1B", is converted on first use into a cache (`weights.cache`).

        Args:
          directory: what to read.
          step: of a training run.
          policy: dtypes.
          verify: compare the files with their checksums; a damaged step of a run is passed over.
          **options: `max_batch`, `mesh`, `int8` and `memory_limit` of `Janus`.

        Raises:
          UserError: the directory is missing, empty, or not a Janus checkpoint.
        """
        checks.check_load(directory, step, policy, options)
        policy = policy or Policy()
        loaded = load_checkpoint(directory, step=step, verify=verify)
        processor = Processor(
            ProcessorConfig.from_dict(loaded.processor), Tokenizer.from_json(loaded.tokenizer_json)
        )
        return cls(loaded.config, loaded.params, processor, policy, **options, donate_params=True)

    def with_params(self, params: models.Params) -> Janus:
        """The same model with other parameters; shares everything that is compiled."""
        other = copy.copy(self)
        other.weights = self._pack(params)
        return other

    def generate(
        self, prompt: str | Sequence[str], n: int = 1, **settings: Any
    ) -> list[Image.Image]:
        """Draws `n` pictures of each prompt as PIL images; `settings` are those of `generate_arrays`."""
        return [Image.fromarray(array) for array in self.generate_arrays(prompt, n, **settings)]

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
        preview: OnPreview | None = None,
        preview_every: int | None = None,
    ) -> np.ndarray:
        """Draws `n` pictures of each prompt.

        Picture i of a prompt depends on (prompt, seed, i) alone, not on what else is drawn.

        Args:
          prompt: one prompt or several, of any lengths.
          n: pictures of each prompt.
          seed: 0 to 2**32 - 1.
          cfg_weight: guidance; None takes the checkpoint's own, 1 is without and twice as fast.
          temperature: None takes the checkpoint's own; 0 takes the most likely code, so all pictures of a
            prompt are equal.
          top_k, top_p: draw from the most likely codes only; None does not restrict.
          progress: wraps the list of batches, such as `tqdm.tqdm`.
          preview: is called with a `Preview` while pictures grow; what it raises stops the drawing.
          preview_every: codes between two previews; None is an eighth of a picture.

        Returns:
          uint8 [len(prompts) * n, H, W, 3], the pictures of the first prompt first.

        Raises:
          UserError: a bad argument, or not even one picture fits into memory; the message says which.
        """
        prompts = checks.prompts(prompt)
        size, total = self.config.vq.image_size, self.config.vq.num_codes
        n = checks.whole("n, the number of pictures of each prompt,", n, least=1)
        checks.function("progress", progress)
        checks.function("preview", preview)
        every = checks.preview_steps(total, preview_every)
        own = self.processor.config
        knobs, mode = make_sampling_params(
            self.config.vq.codebook_size,
            own.cfg_weight if cfg_weight is None else cfg_weight,
            own.temperature if temperature is None else temperature,
            top_k,
            top_p,
        )
        key = checks.seed_key(seed)
        requests = [Request(ids, i) for ids in map(self._generation_ids, prompts) for i in range(n)]
        most = self._most_pictures(max(len(r.ids) for r in requests), mode.guided)
        drawer = self._drawer()
        out = [np.zeros((0, size, size, 3), np.uint8)]
        for batch in _batches(requests, most, progress):
            if preview is None:
                out.append(drawer.draw(batch, most, key, knobs, mode))
                continue
            first = sum(map(len, out))
            for seen in drawer.draw_seen(batch, most, key, knobs, mode, every, first):
                preview(seen)
            out.append(seen.pixels())
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
        images = checks.pictures("images", images)  # one object a picture, also of an array of them
        questions = checks.listed("questions", questions)
        checks.function("progress", progress)
        max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, least=1)
        if len(images) != len(questions):
            raise UserError(f"images: {len(images)}, but questions: {len(questions)}")
        knobs, mode = make_sampling_params(
            self.config.decoder.vocab_size, temperature=temperature, top_p=top_p
        )
        key = checks.seed_key(seed)
        asked = list(map(self._understanding_ids, questions))
        size = self.config.siglip.image_size
        # A picture that is asked about several times is read, resized and encoded once.
        pixels = {id(i): understanding_pixels(load_image(i), size) for i in images}
        requests = [([pixels[id(image)]], ids) for image, ids in zip(images, asked, strict=True)]
        limits = [min(max_new_tokens, self._room(ids)) for ids in asked]
        slots = max((len(ids) + n for ids, n in zip(asked, limits, strict=True)), default=0)
        most = self._most_answers(slots)
        answers: list[str] = []
        for batch in _batches(list(zip(requests, limits, strict=True)), most, progress):
            rows = padded_size(len(batch), most)
            padded = [*batch, *[batch[-1]] * (rows - len(batch))]
            dialogue = self._dialogue(rows, knobs, mode)
            lengths = [limit for _, limit in padded]
            pieces = dialogue.turn(
                [ids for (_, ids), _ in padded],
                [shown for (shown, _), _ in padded],
                lengths,
                jnp.broadcast_to(key, (rows,)),
            )
            tokens = np.concatenate(list(pieces), axis=1)
            for row in range(len(batch)):
                text = self.processor.tokenizer.decode(dialogue.cut(tokens[row], lengths[row]))
                answers.append(text.strip())
        return answers

    def conversation(
        self, temperature: float = 0.0, top_p: float | None = None, seed: int = 0
    ) -> Conversation:
        """A new conversation of several turns, with pictures and streamed answers.

        Raises:
          UserError: a bad argument; the message names it.
        """
        return Conversation(self.conversations(1, temperature, top_p, seed))

    def conversations(
        self, count: int, temperature: float = 0.0, top_p: float | None = None, seed: int = 0
    ) -> Conversations:
        """`count` new conversations that are answered together.

        Raises:
          UserError: a bad argument; the message names it.
        """
        count = checks.whole("count, the number of conversations,", count, least=1)
        checks.seed_key(seed)
        vocab = self.config.decoder.vocab_size
        knobs, mode = make_sampling_params(vocab, temperature=temperature, top_p=top_p)

        def check(slots: int) -> None:
            what = f"{count} conversation(s) of up to {slots} tokens"
            memory.check_rows(self._answer_bytes(slots), count, self.memory_limit, what)

        return Conversations(
            self._dialogue(count, knobs, mode),
            self.processor,
            self.config.siglip.image_size,
            self.config.decoder.max_position,
            seed,
            check,
        )

    def warmup(
        self,
        pictures: Sequence[int] = (1,),
        answers: Sequence[int] = (1,),
        tokens: int = 64,
        max_new_tokens: int = 512,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        preview_every: int | None = None,
        previews: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Compiles what the calls to come will need, so that none of them waits; runs nothing.

        Args:
          pictures: how many pictures of one prompt are drawn at once, for each number to prepare.
          answers: how many questions, each about its own picture, are answered at once.
          tokens: longest prompt and question, beyond what the chat template adds.
          max_new_tokens: of an answer.
          cfg_weight, temperature, preview_every: as in `generate_arrays`; whether there is guidance and
            whether there is chance are parts of a program. Answers are greedy.
          previews: for `generate_arrays` with a preview.
          progress: wraps the list of programs, such as `tqdm.tqdm`.

        Returns:
          The number of programs.
        """
        pictures, answers = checks.counts("pictures", pictures), checks.counts("answers", answers)
        tokens = checks.whole("tokens", tokens, least=1)
        max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, least=1)
        own, total = self.processor.config, self.config.vq.num_codes
        knobs, mode = make_sampling_params(
            self.config.vq.codebook_size,
            own.cfg_weight if cfg_weight is None else cfg_weight,
            own.temperature if temperature is None else temperature,
        )
        shortest = len(self.processor.generation_ids("a"))
        lengths = buckets(shortest, min(shortest + tokens, self._longest(total)))
        every = checks.preview_steps(total, preview_every)
        programs: list[Program] = []
        for count in pictures:
            most = self._most_pictures(max(lengths), mode.guided)
            programs += drawing_programs(
                self._images,
                self._drawer(),
                self.weights,
                lengths,
                min(count, most),
                most,
                knobs,
                mode,
                total,
                every if previews else None,
            )
        greedy = make_sampling_params(self.config.decoder.vocab_size, temperature=0)
        shortest = len(self.processor.understanding_ids("a"))
        lengths = buckets(shortest, min(shortest + tokens, self._longest(1)))
        room = min(max_new_tokens, self.config.decoder.max_position - shortest + 1)
        for count in answers:
            programs += answering_programs(
                self._texts,
                self.weights,
                self.config.siglip.image_size,
                lengths,
                count,
                room,
                *greedy,
            )
        for _, lower in progress(programs) if progress else programs:
            lower().compile()
        return len(programs)

    def _longest(self, needed: int) -> int:
        """Tokens of the longest prompt after which `needed` more fit."""
        return self.config.decoder.max_position + 1 - needed

    def _pack(self, params: models.Params, donate_params: bool = False) -> Weights:
        return fuse_params(params, self.config, self._policy, self._mesh, self._int8, donate_params)

    def _drawer(self) -> ImageGenerator:
        return ImageGenerator(
            self._images,
            self.weights,
            self.processor.tokenizer.pad_id,
            self.config.vq.num_codes,
            self._data_shards(),
        )

    def _dialogue(self, rows: int, knobs: SamplingParams, mode: StaticSampling) -> Dialogue:
        tokenizer = self.processor.tokenizer
        return Dialogue(
            self._texts, self.weights, rows, knobs, mode, tokenizer.pad_id, tokenizer.eos_id
        )

    def _data_shards(self) -> int:
        return 1 if self._mesh is None else self._mesh.size // self._mesh.shape["tensor"]

    def _most_pictures(self, prompt_length: int, guided: bool) -> int:
        """Pictures at once: what memory allows, at most `max_batch`."""
        each = memory.picture_bytes(self.config, bucket(prompt_length), guided, self._cache_dtype)
        each += memory.decode_bytes(self.config, 1)
        shards = self._data_shards()
        most = max(1, self.max_batch // shards)
        return shards * memory.max_rows_that_fit(each, self.memory_limit, most, "picture")

    def _most_answers(self, slots: int) -> int:
        return memory.max_rows_that_fit(
            self._answer_bytes(slots), self.memory_limit, self.max_batch, "answer"
        )

    def _answer_bytes(self, slots: int) -> int:
        return memory.answer_bytes(self.config, bucket(slots), self._cache_dtype)

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
            limit = self._longest(needed)
            raise UserError(
                f"the {name} is too long: {len(ids)} tokens with its chat template, "
                f"the limit of this model is {limit}"
            )
        return ids


def _batches(requests: list[Any], size: int, progress: Progress | None) -> Iterable[list[Any]]:
    batches = [requests[i : i + size] for i in range(0, len(requests), size)]
    return progress(batches) if progress else batches
