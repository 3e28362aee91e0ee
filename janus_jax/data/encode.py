"""From examples to arrays: chat template, pixels, dropped prompts, weights, and what is too long.

This is the only place that knows both what an example is and what the model reads. An encoder is a
function without state. A record that it cannot encode is a `Rejected`; what is wrong with all of them is an
error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from janus_jax.data.examples import Example, Generation, Picture, Rejected, Text, Understanding
from janus_jax.data.packing import PackedShape
from janus_jax.data.reading import Encoded
from janus_jax.data.rejects import NO_ROOM
from janus_jax.errors import UserError, one_line
from janus_jax.processing import Processor, generation_pixels, load_image, understanding_pixels
from janus_jax.processing import sequence as seq
from janus_jax.processing.tokenizer import IMAGE

# What happens to a sequence that no row has room for.
TOO_LONG = ("error", "reject", "truncate_answer")

_Turns = list[tuple[list[int], list[int]]]


class EncodingMistake(UserError):
    """What is wrong with the config, or with a whole source, and not with one record."""


class SequenceTooLong(EncodingMistake):
    """A sequence that no row has room for, where that is an error."""


class _BadRecord(Exception):
    """A record that cannot be encoded."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.rejected = Rejected(reason, detail)


class SequenceEncoder:
    """Examples -> training sequences (`processing.sequence`).

    Args:
      processor: chat template, ids and picture sizes.
      row: room in a packed row; None sets no limit.
      too_long: "error"; "reject", which leaves out what no row has room for; or "truncate_answer", which
        shortens the last answers, or a plain text, and leaves out only what has no room without them.
      condition_dropout: share of generation examples whose prompt becomes padding (Janus paper,
        footnote 2: 10 %).
      codes: pictures to generate come as codes.
      codebook_size: of the image tokenizer; codes are from 0 to below it. None sets no upper limit.
      blank: leave all pictures black and do not open them, where only lengths matter.
    """

    def __init__(
        self,
        processor: Processor,
        row: PackedShape | None = None,
        too_long: str = "error",
        condition_dropout: float = 0.1,
        codes: bool = False,
        codebook_size: int | None = None,
        blank: bool = False,
    ):
        if too_long not in TOO_LONG:
            raise UserError(f"too_long must be one of {', '.join(TOO_LONG)}, not {too_long!r}")
        self._processor, self._row, self._too_long = processor, row, too_long
        self._condition_dropout, self._codes, self._blank = condition_dropout, codes, blank
        self._codebook_size = codebook_size

    def __call__(
        self, example: Example, rng: np.random.Generator | None = None
    ) -> seq.Features | Rejected:
        """The arrays of one example, or why it is left out; see `encode`."""
        found = self.encode(example, rng)
        return found if isinstance(found, Rejected) else found.features

    def encode(
        self, example: Example, rng: np.random.Generator | None = None
    ) -> Encoded | Rejected:
        """The arrays of one example, and whether it was shortened.

        Args:
          example: of a source.
          rng: for what the example leaves to chance.

        Raises:
          SequenceTooLong: it is too long, and `too_long` is "error".
          EncodingMistake: it is not an example, or has codes where others have pictures.
        """
        try:
            features, shortened = self._encoded(example, rng)
        except _BadRecord as bad:
            return bad.rejected
        except EncodingMistake:
            raise
        except UserError as error:
            return Rejected("cannot be encoded", one_line(error))
        if excess := self._row and self._row.excess(features):
            if self._too_long == "error":
                raise SequenceTooLong(f"a sequence is longer than a row has room for ({excess})")
            return Rejected(NO_ROOM, excess)
        for name in ("target", "gen"):
            features[f"{name}_weights"] *= np.float32(example.weight)
            features[f"{name}_sources"] += np.int32(example.source)
        return Encoded(features, shortened)

    def _encoded(self, example: Example, rng: np.random.Generator | None) -> Encoded:
        if isinstance(example, Understanding):
            return self._understanding(example)
        if isinstance(example, Text):
            return self._text(example)
        if isinstance(example, Generation):
            return Encoded(self._generation(example, rng))
        raise EncodingMistake(f"a source gave {type(example).__name__}, which is no example")

    def _understanding(self, example: Understanding) -> Encoded:
        processor, turns = self._processor, example.turns
        counts = [question.count(IMAGE) for question, _ in turns]
        counts[0] = len(example.images) - sum(counts[1:])
        if counts[0] < 0:
            raise _BadRecord(
                "more <image> than pictures",
                f"the questions name {sum(counts[1:])} pictures, the example has "
                f"{len(example.images)}",
            )
        first = processor.understanding_ids(turns[0][0], counts[0], example.system)
        later = [
            processor.next_question_ids(question, count)
            for (question, _), count in zip(turns[1:], counts[1:], strict=True)
        ]
        ids, shortened = self._shortened(self._with_answers([first, *later], turns))
        shown = example.images[: sum(counts[: len(ids)])]
        return Encoded(self._conversation(ids, shown, seq.TASK_UND), shortened)

    def _text(self, example: Text) -> Encoded:
        processor, turns = self._processor, example.turns
        if not turns:
            return self._plain_text(example.text)
        question = turns[0][0]
        if example.asks_to_draw:
            first = processor.generation_ids(question)
        else:
            first = processor.text_ids(question, example.picture_words, example.system)
        later = [processor.next_question_ids(question) for question, _ in turns[1:]]
        ids, shortened = self._shortened(self._with_answers([first, *later], turns))
        return Encoded(self._conversation(ids, (), seq.TASK_TEXT), shortened)

    def _plain_text(self, text: str) -> Encoded:
        config, tokenizer = self._processor.config, self._processor.tokenizer
        ids = [tokenizer.bos_id, *tokenizer.encode_text(text), tokenizer.eos_id]
        shortened = False
        if self._row and self._too_long == "truncate_answer":
            room = min(self._row.tokens, self._row.targets + 1)
            if shortened := len(ids) > room > 1:
                ids = ids[:room]
        features = seq.text_sequence(
            ids, config.und_image_size, config.gen_image_size, num_codes=self._num_codes
        )
        return Encoded(features, shortened)

    def _generation(self, example: Generation, rng: np.random.Generator | None) -> seq.Features:
        config, tokenizer = self._processor.config, self._processor.tokenizer
        ids = self._processor.generation_ids(example.prompt)
        draw = example.dropout_draw
        if draw is None and self._condition_dropout:
            if rng is None:
                raise EncodingMistake("dropping prompts at random needs a random generator")
            draw = rng.random()
        if self._condition_dropout and draw < self._condition_dropout:
            ids = self._processor.unconditional_ids(ids)
        return seq.generation_sequence(
            ids, tokenizer.image_id, config.num_codes, self._drawn(example), config.und_image_size
        )

    def _drawn(self, example: Generation) -> np.ndarray:
        """The pixels, or the codes, of the picture to generate."""
        config = self._processor.config
        if self._codes != (example.codes is not None):
            has, wanted = ("pictures", "codes") if self._codes else ("codes", "pictures")
            raise EncodingMistake(
                f"generation examples must all have pictures or all have codes: one has {has} among "
                f"others with {wanted}"
            )
        if not self._codes:
            return self._pixels(example.picture, config.gen_image_size, generation_pixels)
        codes = np.asarray(example.codes)
        if codes.shape != (config.num_codes,) or not np.issubdtype(codes.dtype, np.integer):
            raise _BadRecord(
                "codes do not fit the model",
                f"the codes of a picture must be {config.num_codes} integers, not {codes.dtype} "
                f"{list(codes.shape)}",
            )
        highest = np.inf if self._codebook_size is None else self._codebook_size - 1
        if codes.size and not 0 <= codes.min() <= codes.max() <= highest:
            raise _BadRecord(
                "codes do not fit the model",
                f"the codes of a picture must be from 0 to {highest}, not from {codes.min()} to "
                f"{codes.max()}: they are of another image tokenizer",
            )
        return codes.astype(np.int32)

    def _conversation(self, turns: _Turns, images: Sequence[Picture], task: int) -> seq.Features:
        config, side = self._processor.config, self._processor.config.und_image_size
        pixels = [self._pixels(image, side, understanding_pixels) for image in images]
        return seq.conversation(
            turns,
            self._processor.tokenizer.image_id,
            np.stack(pixels) if pixels else np.zeros((0, side, side, 3), np.uint8),
            config.gen_image_size,
            task,
            self._num_codes,
        )

    def _with_answers(self, prompts: list[list[int]], turns: Sequence[tuple[str, str]]) -> _Turns:
        answers = [self._processor.answer_ids(answer) for _, answer in turns]
        return list(zip(prompts, answers, strict=True))

    def _shortened(self, turns: _Turns) -> tuple[_Turns, bool]:
        """(turns that fit a row, the last one with what fits of its answer; whether that is less than all)."""
        if not self._row or self._too_long != "truncate_answer":
            return turns, False
        tokens, targets = self._row.tokens, self._row.targets
        kept = []
        for prompt, answer in turns:
            room = min(tokens - len(prompt), targets)
            if room < 1:
                break
            kept.append((prompt, answer[:room]))
            tokens, targets = tokens - len(prompt) - len(kept[-1][1]), targets - len(kept[-1][1])
        if not kept:
            prompt, _ = turns[0]
            raise _BadRecord(
                NO_ROOM, f"tokens: {len(prompt) + 1} without the answer, room for {tokens}"
            )
        return kept, len(kept) < len(turns) or len(kept[-1][1]) < len(turns[-1][1])

    def _pixels(self, picture: Picture, side: int, resized) -> np.ndarray:
        if self._blank:
            return np.zeros((side, side, 3), np.uint8)
        return resized(_readable(picture), side)

    @property
    def _num_codes(self) -> int:
        return self._processor.config.num_codes if self._codes else 0


class PictureEncoder:
    """Generation examples -> records of the image tokenizer: {"image": uint8 [h, w, 3]}."""

    def __init__(self, processor: Processor):
        self._side = processor.config.gen_image_size

    def __call__(self, example: Generation) -> dict[str, np.ndarray] | Rejected:
        picture = _picture_of(example)
        if isinstance(picture, Rejected):
            return picture
        return {"image": generation_pixels(picture, self._side)}


class PairEncoder:
    """Generation examples -> records of the contrastive objective.

    {"image": uint8 [h, w, 3], "text": int32 [text_length]}, the prompt cut or padded with the pad id.
    """

    def __init__(self, processor: Processor, text_length: int):
        self._processor, self._text_length = processor, text_length

    def __call__(self, example: Generation) -> dict[str, np.ndarray] | Rejected:
        tokenizer, side = self._processor.tokenizer, self._processor.config.und_image_size
        picture = _picture_of(example)
        if isinstance(picture, Rejected):
            return picture
        try:
            ids = tokenizer.encode_text(example.prompt)[: self._text_length]
        except UserError as error:
            return Rejected("cannot be encoded", one_line(error))
        text = np.full(self._text_length, tokenizer.pad_id, np.int32)
        text[: len(ids)] = ids
        return {"image": understanding_pixels(picture, side), "text": text}


def open_picture(picture: Picture) -> Image.Image:
    """A picture of an example as an RGB image.

    Raises:
      UserError: it is no picture, or cannot be read.
    """
    if callable(picture) and not isinstance(picture, Image.Image):
        picture = picture()
    if isinstance(picture, Rejected):
        raise _BadRecord(picture.reason, picture.detail)
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
        return Image.fromarray(picture)
    return load_image(picture)


def _readable(picture: Picture) -> Image.Image:
    """A picture of an example; one that cannot be read is a bad record."""
    try:
        return open_picture(picture)
    except (UserError, OSError) as error:
        raise _BadRecord("picture cannot be read", one_line(error)) from error


def _picture_of(example: Generation) -> Image.Image | Rejected:
    if not isinstance(example, Generation) or example.picture is None:
        raise EncodingMistake("stage 0 trains on generation examples with pictures")
    try:
        return _readable(example.picture)
    except _BadRecord as bad:
        return bad.rejected
