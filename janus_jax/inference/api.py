"""`Janus`: a checkpoint -> pictures from prompts, answers about pictures, and how likely either is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.inference import answering, checks, drawing, warmup
from janus_jax.inference.conversation import Conversation, Conversations
from janus_jax.inference.drawing import ImageSamples, Progress
from janus_jax.inference.model import InferenceModel
from janus_jax.inference.options import checked_options
from janus_jax.inference.previews import OnPreview, Preview
from janus_jax.processing import GenerationConfig
from janus_jax.processing.image import ImageLike

Images = ImageLike | Sequence[ImageLike] | None  # of one question


class Janus(InferenceModel):
    """A model ready to draw and to answer. Functions compile on first use, once for each shape.

    Wherever a method takes `config`, it is a `GenerationConfig`; single arguments go before its fields. A bad
    argument, or an option that does not exist, raises `UserError` with one line that names it. Attributes are
    those of `InferenceModel`.

    Example:
      >>> janus = Janus.load("runs/janus_tiny")
      >>> janus.generate("a red car above a panda", seed=3)[0].save("car.png")
      >>> janus.answer("car.png", "which colour is the car?")
      'red'
    """

    @checked_options
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
        preview: OnPreview | None = None,
        preview_every: int | None = None,
        *,
        config: GenerationConfig | None = None,
    ) -> list[Image.Image]:
        """Draws `n` pictures of each prompt as PIL images; see `generate_arrays`.

        Example:
          >>> pictures = janus.generate(["a red car", "a blue dog"], n=2, seed=0, cfg_weight=2)
        """
        given = (seed, cfg_weight, temperature, top_k, top_p, progress, preview, preview_every)
        return [Image.fromarray(array) for array in self.generate_arrays(prompt, n, *given)]

    @checked_options
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
        *,
        config: GenerationConfig | None = None,
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
          config: for what is not given.

        Returns:
          uint8 [len(prompts) * n, H, W, 3], the pictures of the first prompt first.

        Raises:
          UserError: a bad argument, or not even one picture fits into memory; the message says which.

        Example:
          >>> janus.generate_arrays("a red car", n=2).shape
          (2, 48, 48, 3)
        """
        plan = drawing.make_plan(self, prompt, n, seed, cfg_weight, temperature, top_k, top_p)
        checks.function("progress", progress)
        checks.function("preview", preview)
        every = checks.preview_steps(self.config.vq.num_codes, preview_every)
        if preview is None:
            return drawing.draw(self, plan, progress).pixels
        done = []
        for seen in drawing.stream(self, plan, every, progress):
            preview(seen)
            if seen.done == seen.total:
                done.append(seen.pixels())
        return np.concatenate(done)

    @checked_options
    def sample(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        *,
        seed: int = 0,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        log_probs: bool = False,
        progress: Progress | None = None,
        config: GenerationConfig | None = None,
    ) -> ImageSamples:
        """Draws the pictures of `generate`, and returns their codes with them.

        Args:
          log_probs: also the log-probability of each code under the distribution that it was drawn from. That of
            the model without guidance, as reinforcement learning needs it, is `score_images(prompt, codes)`.

        Example:
          >>> drawn = janus.sample("a red car", n=4, log_probs=True)
          >>> drawn.codes.shape, drawn.log_probs.shape, drawn.images[0].size
          ((4, 36), (4, 36), (48, 48))
        """
        plan = drawing.make_plan(self, prompt, n, seed, cfg_weight, temperature, top_k, top_p)
        checks.function("progress", progress)
        return drawing.draw(self, plan, progress, checks.flag("log_probs", log_probs))

    @checked_options
    def stream_images(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        *,
        every: int | None = None,
        seed: int = 0,
        cfg_weight: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        config: GenerationConfig | None = None,
    ) -> Iterator[Preview]:
        """Yields the pictures of `generate` while they grow, batch after batch; to stop, stop iterating.

        Arguments are checked at once.

        Args:
          every: codes between two previews; None is an eighth of a picture.

        Example:
          >>> for preview in janus.stream_images("a red car"):
          ...     Image.fromarray(preview.pixels()[0]).save(f"car_{preview.done}.png")
        """
        plan = drawing.make_plan(self, prompt, n, seed, cfg_weight, temperature, top_k, top_p)
        every = checks.preview_steps(self.config.vq.num_codes, every, "every")
        return drawing.stream(self, plan, every)

    @checked_options
    def answer(
        self,
        image: Images,
        question: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        *,
        stop: str | Sequence[str] | None = None,
        config: GenerationConfig | None = None,
    ) -> str:
        """Answers one question about one picture, several, or none (None); see `answer_batch`.

        Example:
          >>> janus.answer("car.png", "which colour is the car?")
          'red'
        """
        shown = [checks.pictures_of_one("images", image)]
        asked = (max_new_tokens, temperature, top_p, seed, stop)
        plan = answering.make_plan(self, shown, [question], *asked)
        return answering.answer_all(self, plan, None)[0]

    @checked_options
    def answer_batch(
        self,
        images: Sequence[Images],
        questions: Sequence[str],
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        *,
        stop: str | Sequence[str] | None = None,
        config: GenerationConfig | None = None,
    ) -> list[str]:
        """Answers question i about picture i, or about the pictures of list i.

        Args:
          images: for each question a picture, a list of them, or None. A picture is a file name, an open binary
            file, a PIL image or a uint8 array [H, W, 3] of any size. Pictures stand before the question, or at
            its `<image_placeholder>`s.
          questions: as many as images.
          max_new_tokens: most tokens of an answer; it also ends where the model's positions do.
          temperature: 0 is greedy.
          top_p: nucleus; None does not restrict.
          seed: 0 to 2**32 - 1; an answer depends on (pictures, question, seed) alone.
          progress: wraps the list of batches.
          stop: texts; an answer ends before the first of them.
          config: for what is not given.

        Raises:
          UserError: a bad argument; the message names it.

        Example:
          >>> janus.answer_batch(["car.png", None], ["which colour?", "what is red?"], stop=".")
          ['red', 'a colour']
        """
        shown = checks.pictures_of_each("images", images)
        asked = (max_new_tokens, temperature, top_p, seed, stop)
        plan = answering.make_plan(self, shown, checks.listed("questions", questions), *asked)
        checks.function("progress", progress)
        return answering.answer_all(self, plan, progress)

    @checked_options
    def stream_answer(
        self,
        image: Images,
        question: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        *,
        stop: str | Sequence[str] | None = None,
        config: GenerationConfig | None = None,
    ) -> Iterator[str]:
        """Yields the text of `answer` in pieces as it grows; to stop, close the iterator or drop it.

        Arguments are checked at once.

        Example:
          >>> for piece in janus.stream_answer("car.png", "describe the picture"):
          ...     print(piece, end="", flush=True)
        """
        shown = [checks.pictures_of_one("images", image)]
        asked = (max_new_tokens, temperature, top_p, seed, stop)
        return answering.stream_one(self, answering.make_plan(self, shown, [question], *asked))

    @checked_options
    def conversation(
        self,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        *,
        config: GenerationConfig | None = None,
    ) -> Conversation:
        """A new conversation of several turns, with pictures and streamed answers.

        Example:
          >>> talk = janus.conversation()
          >>> "".join(talk.ask("what is it?", ["car.png"])), "".join(talk.ask("which colour?"))
          ('a car', 'red')
        """
        return Conversation(answering.conversations(self, 1, temperature, top_p, seed))

    @checked_options
    def conversations(
        self,
        count: int,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
        *,
        config: GenerationConfig | None = None,
    ) -> Conversations:
        """`count` new conversations that are answered together.

        Example:
          >>> pieces = list(janus.conversations(2).ask(["what is red?", "what is blue?"]))
        """
        return answering.conversations(self, count, temperature, top_p, seed)

    @checked_options
    def score_images(
        self, prompt: str | Sequence[str], codes: Any, *, progress: Progress | None = None
    ) -> np.ndarray:
        """How likely pictures are: the model's own distribution, without guidance, at temperature 1.

        Args:
          prompt: one, or one for each picture.
          codes: int [B, num_codes], such as of `sample` or `encode_image`.
          progress: wraps the list of batches.

        Returns:
          float32 [B, num_codes]: log p(code | prompt, codes before it).

        Example:
          >>> drawn = janus.sample("a red car", n=2)
          >>> janus.score_images("a red car", drawn.codes).sum(axis=1)
        """
        checks.function("progress", progress)
        return drawing.score(self, prompt, codes, progress)

    @checked_options
    def score_answers(
        self,
        images: Sequence[Images],
        questions: Sequence[str],
        answers: Sequence[str],
        *,
        progress: Progress | None = None,
    ) -> list[np.ndarray]:
        """How likely answers are, at temperature 1.

        Args:
          images, questions, progress: see `answer_batch`.
          answers: as many as questions.

        Returns:
          For each answer float32 [tokens]: log p(token | pictures, question, tokens before it), the last one of
          the end-of-sentence.

        Example:
          >>> yes, no = janus.score_answers(["car.png"] * 2, ["is it red?"] * 2, ["yes.", "no."])
          >>> yes.sum() > no.sum()
        """
        shown = checks.pictures_of_each("images", images)
        questions = checks.listed("questions", questions)
        answers = checks.listed("answers", answers)
        checks.function("progress", progress)
        return answering.score(self, shown, questions, answers, progress)

    @checked_options
    def encode_image(self, image: ImageLike | Sequence[ImageLike]) -> np.ndarray:
        """Codes of a picture, int32 [num_codes], or of several, [B, num_codes].

        The short side is resized to the size of the image tokenizer, the middle is cut out.

        Example:
          >>> janus.decode_codes(janus.encode_image("car.png")).save("again.png")
        """
        if image is None:
            raise UserError("image must be a picture or a list of pictures, not None")
        shown = checks.pictures_of_one("image", image)
        one = checks.is_one_picture(image)
        codes = drawing.encode(self, shown)
        return codes[0] if one else codes

    @checked_options
    def decode_codes(self, codes: Any) -> Image.Image | list[Image.Image]:
        """The picture of codes [num_codes], or the pictures of [B, num_codes], as PIL images.

        Example:
          >>> janus.decode_codes(janus.sample("a red car").codes[0]).size
          (48, 48)
        """
        arrays = self.decode_codes_arrays(codes)
        return Image.fromarray(arrays) if arrays.ndim == 3 else list(map(Image.fromarray, arrays))

    @checked_options
    def decode_codes_arrays(self, codes: Any) -> np.ndarray:
        """Codes [num_codes] or [B, num_codes] -> uint8 [H, W, 3] or [B, H, W, 3].

        Example:
          >>> janus.decode_codes_arrays(janus.sample("a red car", n=2).codes).shape
          (2, 48, 48, 3)
        """
        codes = drawing.check_codes(self, codes)
        if codes.ndim == 1:
            return drawing.decode(self, codes[None])[0]
        return drawing.decode(self, codes)

    @checked_options
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
          previews: for `generate_arrays` with a preview, or `stream_images`.
          progress: wraps the list of programs, such as `tqdm.tqdm`.

        Returns:
          The number of programs.

        Example:
          >>> janus.warmup(pictures=[1, 4], answers=[])
        """
        checks.function("progress", progress)
        previews = checks.flag("previews", previews)
        sizes = (pictures, answers, tokens, max_new_tokens)
        programs = warmup.list_programs(
            self, *sizes, cfg_weight, temperature, preview_every, previews
        )
        for program in progress(programs) if progress else programs:
            program.compile()
        return len(programs)
