"""Answers to conversations of many users in one batch, in blocks of tokens.

A row has its own seed, settings and limit. What keeps two conversations apart is the length of the program's
prompt and how many pictures its rows may have, both of few values.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import Janus, checks
from janus_jax.inference.batching import padded_size
from janus_jax.inference.dialogue import TEXT, StateHolder, Turn, answer_turn
from janus_jax.inference.generator import prompt_number
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.programs import Program, ProgramList, execute
from janus_jax.inference.schedule import BLOCK, UNLIMITED, AnswerSchedule
from janus_jax.inference.text_stream import TextStream, find_stop
from janus_jax.parallel import to_host
from janus_jax.processing import image_positions, load_image, understanding_pixels
from janus_jax.serving.drawing import sizes_that_fit, stacked
from janus_jax.serving.jobs import ChatJob, Delta, Job, Message
from janus_jax.serving.scheduling import Output, Prepared, Row, RowDone

SHORTEST = (
    128  # slots of the smallest cache that programs are compiled for; each is twice the one before
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


class Group(NamedTuple):
    """What conversations of one batch have in common.

    Attributes:
      length: tokens of the program's prompt.
      pictures: that each row has room for.
    """

    length: int
    pictures: int


class Chatting:
    """The `Worker` for answers.

    Args:
      janus: the model.
      sizes: numbers of answers that programs are compiled for.
      longest_question: tokens of the longest conversation before the answer.
      longest_answer: tokens of the longest answer.
      most_pictures: of a conversation.

    Raises:
      UserError: not even the smallest batch fits into memory.
    """

    kind = "chat"
    max_batches = 2  # a long answer keeps its batch for a while: others need not wait for it

    def __init__(
        self,
        janus: Janus,
        sizes: Sequence[int],
        longest_question: int,
        longest_answer: int,
        most_pictures: int,
    ):
        self._janus = janus
        self._longest = min(longest_question, janus.limits.longest_prompt(1))
        self._longest_answer = longest_answer
        self._most_pictures = most_pictures
        # A prompt leaves room for the first block of the answer in a cache of the same size.
        self._lengths = [SHORTEST - BLOCK]
        while self._lengths[-1] < self._longest:
            self._lengths.append(2 * (self._lengths[-1] + BLOCK) - BLOCK)
        largest = self._schedule(1, Group(self._lengths[-1], 0), longest_answer)
        fit = janus.answers_that_fit(largest.cache_lengths[-1], most_pictures)
        self._sizes = sizes_that_fit(sizes, fit)
        self.max_rows = self._sizes[-1]
        self._keys = jax.jit(_keys)

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
        if len(ids) > self._longest:
            raise UserError(
                f"the conversation is too long: {len(ids)} tokens with its chat template, "
                f"the limit of this server is {self._longest}"
            )
        pictures = [picture for message in job.messages for picture in message.pictures]
        if len(pictures) > self._most_pictures:
            raise UserError(
                f"the conversation has {len(pictures)} pictures, the limit of this server is "
                f"{self._most_pictures}"
            )
        size = model.config.siglip.image_size
        pixels = [understanding_pixels(load_image(picture), size) for picture in pictures]
        limit = min(limit, self._longest_answer, model.limits.remaining_positions(ids))
        length = next(length for length in self._lengths if length >= len(ids))
        group = Group(length, padded_size(len(pixels), UNLIMITED) if pixels else 0)
        # Greedy rows are in programs with chance, too; see `SamplingParams`.
        work = Asked(ids, pixels, limit, seed, sampling, static.filtered, stop)
        return Prepared(1, group, len(ids), work)

    def run(self, rows: Sequence[Row]) -> Generator[list[Output], None, None]:
        """See `Worker.run`: the conversation and the first token, then a block of tokens a step."""
        group: Group = rows[0].ticket.prepared.group
        size = next(size for size in self._sizes if size >= len(rows))
        padded = [row.work for row in [*rows, *[rows[-1]] * (size - len(rows))]]
        static = StaticSampling(False, False, any(asked.filtered for asked in padded))
        sampling = stacked([asked.sampling for asked in padded])
        turn = self._turn(padded, group)
        schedule = self._schedule(size, group, max(asked.limit for asked in padded))
        model, holder = self._janus, StateHolder()
        engine = (execute, model.text_engine, model.weights)
        answers = [_Answer(model, row.work) for row in rows]
        finished = lambda answer: all(answer.finished for answer in answers)
        drawn = np.zeros((size, 0), np.int32)
        for new in answer_turn(*engine, schedule, holder, turn, sampling, static, finished):
            drawn = np.concatenate([drawn, to_host(new).reshape(size, -1)], axis=1)
            said: list[Output] = []
            for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                if row.alive and not answer.finished:
                    said += [(number, event) for event in answer.update(drawn[number])]
            yield said

    def programs(self) -> list[Program]:
        """All that `run` can need."""
        found, model = ProgramList(), self._janus
        patches, side = model.config.siglip.num_patches, model.config.siglip.image_size
        counts = sorted({padded_size(n, UNLIMITED) for n in range(1, self._most_pictures + 1)})
        blank = np.zeros((side, side, 3), np.uint8)
        for size in self._sizes:
            row = np.zeros(size, np.uint32)
            keys = found(self._keys, row, row)
            sampling = stacked([SamplingParams(1.0, 1.0, 1, 1.0)] * size)
            for length in self._lengths:
                # With `count` pictures a row: at least one of the conversations has more than half of them.
                fewest = lambda count: (count // 2 + 1) * patches
                for count in [0, *(c for c in counts if fewest(c) <= length)]:
                    group = Group(length, count)
                    schedule = self._schedule(size, group, self._longest_answer)
                    asked = Asked([0], [blank] * (count > 0), 1, 0, sampling, False, ())
                    turn = self._turn([asked] * size, group)._replace(keys=keys)
                    for filtered in (False, True):
                        static = StaticSampling(False, False, filtered)
                        engine = (found, model.text_engine, model.weights, schedule, StateHolder())
                        for _ in answer_turn(*engine, turn, sampling, static, lambda answer: False):
                            pass
        return found.programs

    def _schedule(self, size: int, group: Group, limit: int) -> AnswerSchedule:
        blocks = -(-(limit - 1) // BLOCK)
        ends = [group.length + BLOCK * max(number, 1) for number in range(blocks + 1)]
        lengths = tuple(SHORTEST * padded_size(-(-end // SHORTEST), UNLIMITED) for end in ends)
        return AnswerSchedule(size, size * group.pictures, group.length, lengths)

    def _turn(self, asked: Sequence[Asked], group: Group) -> Turn:
        """Host arrays of a batch."""
        tokenizer, P = self._janus.processor.tokenizer, self._janus.config.siglip.num_patches
        B, T = len(asked), group.length
        ids, mask = np.full((B, T), tokenizer.pad_id, np.int32), np.zeros((B, T), bool)
        sources = np.full((B, T), TEXT, np.int32)
        pixels: list[np.ndarray] = []
        for row, one in enumerate(asked):
            start = T - len(one.ids)
            ids[row, start:], mask[row, start:] = one.ids, True
            at = np.asarray(image_positions(one.ids, tokenizer.image_id), int) + start
            sources[row, at] = len(pixels) * P + np.arange(len(at))
            pixels += one.pixels
        limits = np.asarray([one.limit for one in asked], np.int32)
        numbers = [(one.seed, prompt_number(one.ids)) for one in asked]
        keys = execute(self._keys, *(np.asarray(n, np.uint32) for n in zip(*numbers, strict=True)))
        if not group.pictures:
            return Turn(ids, mask, None, None, limits, keys)
        pixels += pixels[-1:] * (B * group.pictures - len(pixels))
        return Turn(ids, mask, np.stack(pixels), sources, limits, keys)


class _Answer:
    """The answer of a row as it grows."""

    def __init__(self, model: Janus, asked: Asked):
        self._tokenizer, self._asked = model.processor.tokenizer, asked
        self._text = TextStream(self._tokenizer, asked.stop)

    @property
    def finished(self) -> bool:
        return self._text.finished

    def update(self, drawn: np.ndarray) -> list[Delta | RowDone]:
        """What is new, of all tokens [n] that the row has drawn."""
        tokens, eos = drawn[: self._asked.limit].tolist(), self._tokenizer.eos_id
        ended = eos in tokens
        tokens = tokens[: tokens.index(eos)] if ended else tokens
        piece = self._text.update(tokens, ended or len(tokens) == self._asked.limit)
        said: list[Delta | RowDone] = [Delta(piece)] if piece else []
        if self.finished:
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


def _keys(seeds: jax.Array, prompts: jax.Array) -> jax.Array:
    """Keys [B] of rows, the same as a `Conversation` has them."""
    return jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(seeds), prompts)
