"""Questions: checked, cut into batches that fit, answered or scored."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from janus_jax.errors import UserError
from janus_jax.inference import checks
from janus_jax.inference.batching import left_pad, padded_size
from janus_jax.inference.conversation import Conversations
from janus_jax.inference.dialogue import TEXT, Dialogue
from janus_jax.inference.drawing import Progress, batches
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.model import InferenceModel
from janus_jax.inference.schedule import UNLIMITED
from janus_jax.inference.text_stream import TextStream, update_texts
from janus_jax.parallel import to_host
from janus_jax.processing import image_positions, load_image, understanding_pixels


class Question(NamedTuple):
    """One question.

    Attributes:
      ids: the prompt, with the image id at the positions of its pictures.
      pixels: of its pictures, uint8 [H, W, 3].
      limit: most tokens of the answer.
    """

    ids: list[int]
    pixels: list[np.ndarray]
    limit: int


class AnsweringPlan(NamedTuple):
    """Checked questions.

    Attributes:
      questions: in order.
      max_batch: answers at once.
      key: of the seed.
      sampling, static: see `make_sampling_params`.
      stop: texts that end an answer.
    """

    questions: list[Question]
    max_batch: int
    key: jax.Array
    sampling: SamplingParams
    static: StaticSampling
    stop: tuple[str, ...]


def make_plan(
    model: InferenceModel,
    shown: list[list[Any]],
    questions: list[str],
    max_new_tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int,
    stop: str | Sequence[str] | None,
) -> AnsweringPlan:
    """Checks the arguments of `Janus.answer_batch`. Raises UserError; the message names the bad one."""
    max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, least=1)
    if len(shown) != len(questions):
        raise UserError(f"images: {len(shown)}, but questions: {len(questions)}")
    vocab = model.config.decoder.vocab_size
    sampling, static = make_sampling_params(vocab, temperature=temperature, top_p=top_p)
    key, stop = checks.seed_key(seed), checks.stop_strings(stop)
    asked = []
    for ids, pixels in _prompts(model, shown, questions):
        limit = min(max_new_tokens, model.limits.remaining_positions(ids))
        asked.append(Question(ids, pixels, limit))
    longest = max((len(question.ids) + question.limit for question in asked), default=0)
    most_shown = max((len(question.pixels) for question in asked), default=0)
    max_batch = model.answers_that_fit(longest, most_shown)
    return AnsweringPlan(asked, max_batch, key, sampling, static, stop)


def answer_all(model: InferenceModel, plan: AnsweringPlan, progress: Progress | None) -> list[str]:
    """The answers, in order."""
    answers: list[str] = []
    for batch in batches(plan.questions, plan.max_batch, progress):
        texts = _empty_texts(model, plan, batch)
        for _ in _growing(model, plan, batch, texts):
            pass
        answers += [text.text for text in texts]
    return answers


def stream_one(model: InferenceModel, plan: AnsweringPlan) -> Generator[str, None, None]:
    """The answer to the only question of a plan, in pieces that are not empty."""
    texts = _empty_texts(model, plan, plan.questions)
    with closing(_growing(model, plan, plan.questions, texts)) as pieces:
        for (piece,) in pieces:
            if piece:
                yield piece


def conversations(
    model: InferenceModel, count: int, temperature: float, top_p: float | None, seed: int
) -> Conversations:
    """See `Janus.conversations`."""
    count = checks.whole("count, the number of conversations,", count, least=1)
    checks.seed_key(seed)
    vocab = model.config.decoder.vocab_size
    sampling, static = make_sampling_params(vocab, temperature=temperature, top_p=top_p)
    return Conversations(
        model.dialogue(count, sampling, static),
        model.processor,
        model.config.siglip.image_size,
        model.config.decoder.max_position,
        seed,
        lambda cache_length: model.check_answers_fit(count, cache_length),
    )


def score(
    model: InferenceModel,
    shown: list[list[Any]],
    questions: list[str],
    answers: list[str],
    progress: Progress | None,
) -> list[np.ndarray]:
    """Log-probabilities of the tokens of each answer; see `Janus.score_answers`."""
    for name, values in (("images", shown), ("answers", answers)):
        if len(values) != len(questions):
            raise UserError(f"{name}: {len(values)}, but questions: {len(questions)}")
    rows = []
    for (ids, pixels), answer in zip(_prompts(model, shown, questions), answers, strict=True):
        given = model.processor.answer_ids(answer)
        # The end-of-sentence is never fed back.
        model.limits.check(ids + given, "question with its answer", 0)
        rows.append((ids + given, pixels, len(given)))
    if not rows:
        return []
    longest = max(len(ids) for ids, *_ in rows)
    targets = max(count for *_, count in rows)
    vocab = model.config.decoder.vocab_size
    max_batch = model.scores_that_fit(longest, targets, vocab)
    scores: list[np.ndarray] = []
    for batch in batches(rows, max_batch, progress):
        found = _score_batch(model, batch, padded_size(len(batch), max_batch))
        scores += [row[-count:] for row, (*_, count) in zip(found, batch, strict=False)]
    return scores


def _score_batch(
    model: InferenceModel, batch: list[tuple[list[int], list[np.ndarray], int]], rows: int
) -> np.ndarray:
    tokenizer, P = model.processor.tokenizer, model.config.siglip.num_patches
    padded = [*batch, *[batch[-1]] * (rows - len(batch))]
    ids, mask = left_pad([ids for ids, *_ in padded], rows, tokenizer.pad_id)
    pixels: list[np.ndarray] = []
    sources = np.full(ids.shape, TEXT, np.int32)
    for row, (prompt, shown, _) in enumerate(padded):
        at = np.asarray(image_positions(prompt, tokenizer.image_id), int)
        at = at + ids.shape[1] - len(prompt)
        sources[row, at] = len(pixels) * P + np.arange(len(at))
        pixels += shown
    features = None
    if pixels:
        count = padded_size(len(pixels), UNLIMITED)
        stacked = np.stack([*pixels, *[pixels[-1]] * (count - len(pixels))])
        features = model.scorer.features(model.weights, stacked)
    targets = padded_size(max(count for *_, count in batch), ids.shape[1] - 1)
    shown = sources if pixels else None
    scored = model.scorer.answers(model.weights, ids, mask, features, shown, targets=targets)
    return to_host(scored)


def _prompts(
    model: InferenceModel, shown: list[list[Any]], questions: list[str]
) -> list[tuple[list[int], list[np.ndarray]]]:
    """Ids and pixels of every question."""
    ids = [_prompt_ids(model, text, len(some)) for text, some in zip(questions, shown, strict=True)]
    size = model.config.siglip.image_size
    # A picture that is asked about several times is read, resized and encoded once.
    pixels = {
        id(image): understanding_pixels(load_image(image), size) for some in shown for image in some
    }
    return [(new, [pixels[id(i)] for i in some]) for new, some in zip(ids, shown, strict=True)]


def _prompt_ids(model: InferenceModel, question: str, pictures: int) -> list[int]:
    processor = model.processor
    seen = pictures > 0
    ids = processor.understanding_ids(question, pictures) if seen else processor.text_ids(question)
    return model.limits.check(ids, "question", 1)


def _empty_texts(
    model: InferenceModel, plan: AnsweringPlan, batch: list[Question]
) -> list[TextStream]:
    return [TextStream(model.processor.tokenizer, plan.stop) for _ in batch]


def _growing(
    model: InferenceModel, plan: AnsweringPlan, batch: list[Question], texts: list[TextStream]
) -> Generator[list[str], None, None]:
    """Pieces of all answers of a batch, as they grow; updates `texts`."""
    rows = padded_size(len(batch), plan.max_batch)
    padded = [*batch, *[batch[-1]] * (rows - len(batch))]
    dialogue: Dialogue = model.dialogue(rows, plan.sampling, plan.static)
    limits = [question.limit for question in padded]
    turn: Iterator[np.ndarray] = dialogue.turn(
        [question.ids for question in padded],
        [question.pixels for question in padded],
        limits,
        jnp.broadcast_to(plan.key, (rows,)),
    )
    drawn = np.zeros((rows, 0), np.int32)
    with closing(turn):
        for new in turn:
            drawn = np.concatenate([drawn, new], axis=1)
            yield update_texts(texts, dialogue, drawn, limits)
            if all(text.finished for text in texts):
                return
