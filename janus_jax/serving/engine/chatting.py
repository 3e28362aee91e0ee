"""Answers to conversations of many users, written together in blocks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import Janus, checks, memory
from janus_jax.inference.batching import round_up
from janus_jax.inference.dialogue import TEXT
from janus_jax.inference.generator import prompt_number
from janus_jax.inference.logits import SamplingParams, make_sampling_params
from janus_jax.inference.programs import Call, ProgramList, execute
from janus_jax.inference.schedule import BLOCK
from janus_jax.inference.text_stream import TextStream, find_stop
from janus_jax.parallel import to_host
from janus_jax.processing import image_positions, load_image, understanding_pixels
from janus_jax.serving.engine.pool import Pool, Start
from janus_jax.serving.engine.scheduling import Output, Prepared, Row, RowDone
from janus_jax.serving.engine.sizes import sizes_that_fit
from janus_jax.serving.jobs import ChatJob, Delta, Job, Message

SHORTEST = 32  # tokens of the shortest prompt that programs are compiled for
HALF_STEPS = (
    512  # from here on the next one is a half longer, not twice: a picture takes most of it
)


class Asked(NamedTuple):
    """A conversation.

    Attributes:
      ids: up to the answer, with the image id at the positions of the pictures.
      pixels: of its pictures, uint8 [H, W, 3].
      limit: most tokens of the answer.
      seed: 0 to 2**32 - 1.
      sampling: of the answer.
      filtered: whether that has top-p.
      stop: texts that end it.
    """

    ids: list[int]
    pixels: list[np.ndarray]
    limit: int
    seed: int
    sampling: SamplingParams
    filtered: bool
    stop: tuple[str, ...]


class Chatting:
    """The `Worker` for answers.

    Args:
      janus: the model.
      sizes: numbers of answers that programs are compiled for; the largest that fits is how many there can be.
      context: tokens of the longest conversation with its answer.
      most_pictures: of a conversation.

    Raises:
      UserError: not even the smallest batch fits into memory.
    """

    kind = "chat"

    def __init__(self, janus: Janus, sizes: Sequence[int], context: int, most_pictures: int):
        self._janus = janus
        self._context = min(context, janus.limits.longest_prompt(1))
        self._patches = janus.config.siglip.num_patches
        self._most_pictures = min(most_pictures, self._context // self._patches)
        self._lengths = prompt_lengths(self._context)
        self._engine = janus.slot_engine(1, False, self._lengths[-1], BLOCK)
        config = janus.config
        row = self._engine.pool_bytes(1) + 4 * 4 * config.decoder.vocab_size
        fixed = memory.vision_bytes(config) + memory.prefill_bytes(config, self._lengths[-1])
        fixed += self._engine.prompt_bytes(self._lengths[-1])
        self._pool = Pool(
            self._engine, janus.weights, sizes_that_fit(janus, sizes, row, fixed, "answer")
        )
        self.places = self._pool.places
        self._answers: dict[int, _Answer] = {}

    def takes(self, job: Job) -> bool:
        return isinstance(job, ChatJob)

    def prepare(self, job: ChatJob) -> Prepared:
        """See `Worker.prepare`."""
        model = self._janus
        limit = checks.whole("max_tokens", job.max_tokens, least=1)
        vocab = model.config.decoder.vocab_size
        sampling, static = make_sampling_params(vocab, temperature=job.temperature, top_p=job.top_p)
        seed, stop = checks.seed_number(job.seed), checks.stop_strings(job.stop)
        ids = model.limits.check(conversation_ids(model, job.messages), "conversation", 1)
        pictures = [picture for message in job.messages for picture in message.pictures]
        if len(ids) >= self._context:
            raise UserError(
                f"the conversation is too long: {len(ids)} tokens with its chat template and {len(pictures)} "
                f"picture(s) of {self._patches}, the limit of this server is {self._context - 1}"
            )
        if len(pictures) > self._most_pictures:
            raise UserError(
                f"the conversation has {len(pictures)} pictures, the limit of this server is "
                f"{self._most_pictures}"
            )
        size = model.config.siglip.image_size
        pixels = [understanding_pixels(load_image(picture), size) for picture in pictures]
        limit = min(limit, self._context - len(ids), model.limits.remaining_positions(ids))
        work = Asked(ids, pixels, limit, seed, sampling, static.filtered, stop)
        return Prepared(1, len(ids), work)

    @property
    def intact(self) -> bool:
        return self._pool.intact

    def start(self, place: int, row: Row) -> None:
        """See `Worker.start`."""
        asked: Asked = row.work
        key = (asked.seed, prompt_number(asked.ids), 0)
        start = Start(asked.ids, *key, asked.sampling, asked.filtered, asked.limit)
        self._pool.start(place, start, lambda call: self._prefill(call, asked))
        self._answers[place] = _Answer(self._janus, row)

    def step(self) -> list[Output]:
        """See `Worker.step`: a block of tokens."""
        said: list[Output] = []
        for place, new in self._pool.advance().items():
            said += [(place, event) for event in self._answers[place].update(new)]
        return said

    def stop(self, place: int) -> None:
        """See `Worker.stop`."""
        self._pool.stop(place)
        self._answers.pop(place, None)

    def reset(self) -> None:
        """See `Worker.reset`."""
        self._pool.reset()
        self._answers.clear()

    def allocate(self) -> None:
        """Takes the memory of its rows."""
        self._pool.allocate()

    def list_programs(self, found: ProgramList) -> None:
        """Adds all that it can need."""
        side = self._janus.config.siglip.image_size
        self._features(found, np.zeros((side, side, 3), np.uint8))
        blank = Asked([0, 0], [], 1, 0, SamplingParams(1.0, 0.0, 1, 1.0), False, ())
        prompts = [self._prefill(found, blank, length) for length in self._lengths]
        self._pool.list_programs(found, prompts)

    def _prefill(self, call: Call, asked: Asked, length: int | None = None) -> Any:
        """Of one conversation. A program has room for as many pictures as its tokens have."""
        tokenizer, P = self._janus.processor.tokenizer, self._patches
        length = length or next(one for one in self._lengths if one >= len(asked.ids))
        ids = np.full((1, length), tokenizer.pad_id, np.int32)
        ids[0, : len(asked.ids) - 1] = asked.ids[:-1]
        prefill = self._engine.prefill, self._janus.weights, ids
        room = min(length // P, self._most_pictures)
        if not room:
            return call(*prefill)
        sources = np.full((1, length), TEXT, np.int32)
        at = np.asarray(image_positions(asked.ids, tokenizer.image_id), int)
        sources[0, at] = np.arange(len(at))
        width, kind = self._janus.config.decoder.width, self._janus.policy.compute
        features = [self._features(call, pixels) for pixels in asked.pixels]
        features += [np.zeros((P, width), kind)] * (room - len(features))
        return call(*prefill, tuple(features), sources)

    def _features(self, call: Call, pixels: np.ndarray) -> np.ndarray:
        """[P, D] of a picture, on the host: there it is the same array on a mesh and without one."""
        found = call(self._janus.text_engine.features, self._janus.weights, pixels[None])
        return to_host(found)[0] if call is execute else found


def prompt_lengths(longest: int) -> list[int]:
    """Tokens of prompts that programs are compiled for; the last one is at least `longest`."""
    lengths = [SHORTEST]
    while lengths[-1] < longest:
        length = 1 << (lengths[-1].bit_length() - 1)  # a power of two, or a half more
        if length < HALF_STEPS:
            lengths.append(2 * length)
        else:
            lengths.append(length * 3 // 2 if lengths[-1] == length else 2 * length)
    lengths[-1] = round_up(longest)
    return lengths


class _Answer:
    """The answer of a row as it grows."""

    def __init__(self, model: Janus, row: Row):
        self._tokenizer, self._asked = model.processor.tokenizer, row.work
        self._text = TextStream(self._tokenizer, row.work.stop)
        self._drawn: list[int] = []

    def update(self, new: np.ndarray) -> list[Delta | RowDone]:
        """What there is to say of new tokens int32 [n]."""
        self._drawn += new.tolist()
        tokens, eos = self._drawn, self._tokenizer.eos_id
        ended = eos in tokens
        tokens = tokens[: tokens.index(eos)] if ended else tokens
        piece = self._text.update(tokens, ended or len(tokens) == self._asked.limit)
        said: list[Delta | RowDone] = [Delta(piece)] if piece else []
        if self._text.finished:
            stopped = find_stop(self._tokenizer.decode(tokens), self._asked.stop) is not None
            said.append(RowDone("stop" if ended or stopped else "length", len(tokens)))
        return said


def conversation_ids(model: Janus, messages: Sequence[Message]) -> list[int]:
    """The prompt of a conversation, up to its answer. Raises UserError; the message says which turn is wrong."""
    processor, system, turns = model.processor, None, list(messages)
    if turns and turns[0].role == "system":
        if turns[0].pictures:
            raise UserError("message 1: a system message has no pictures")
        system = turns.pop(0).text
    first = len(messages) - len(turns) + 1
    if len(turns) % 2 == 0:
        raise UserError("the conversation must end with a message of the user")
    ids: list[int] = []
    for number, turn in enumerate(turns):
        where, expected = f"message {first + number}", ("user", "assistant")[number % 2]
        if turn.role != expected:
            raise UserError(
                f"{where} must be of the {expected}: after a system message, which can only be the first, "
                "user and assistant take turns"
            )
        try:
            if expected == "assistant":
                if turn.pictures:
                    raise UserError("an answer has no pictures")
                ids += processor.answer_ids(turn.text)
            elif ids:
                ids += processor.next_question_ids(turn.text, len(turn.pictures))
            elif turn.pictures:
                ids += processor.understanding_ids(turn.text, len(turn.pictures), system)
            else:
                ids += processor.text_ids(turn.text, system=system)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return ids
