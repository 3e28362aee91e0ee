"""Compiles what requests will need before the first of them comes, without running any of it.

Lengths are bucketed, so that the programs can be listed: those of every schedule that a request within the given
sizes can have. JAX remembers what is compiled here for the calls that follow, and keeps it on disk where a
compilation cache is set (`compilation.enable_compilation_cache`).
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_jax.inference import checks
from janus_jax.inference.batching import padded_size
from janus_jax.inference.dialogue import list_answer_programs
from janus_jax.inference.logits import SamplingParams, StaticSampling, make_sampling_params
from janus_jax.inference.model import InferenceModel
from janus_jax.inference.programs import Program, ProgramList
from janus_jax.inference.schedule import lengths_by_bucket, schedule_answers


def image_programs(
    model: InferenceModel,
    counts: Sequence[int],
    tokens: int,
    sampling: SamplingParams,
    static: StaticSampling,
    every: int | None,
) -> list[Program]:
    """Programs that draw so many pictures of one prompt.

    Args:
      counts: of pictures, each to be prepared.
      tokens: longest prompt, beyond what the chat template adds.
      sampling, static: see `make_sampling_params`.
      every: codes between two previews; None is without.
    """
    shortest = len(model.processor.generation_ids("a"))
    longest = model.limits.longest_prompt(model.config.vq.num_codes)
    lengths = lengths_by_bucket(shortest, min(shortest + tokens, longest))
    found, generator = ProgramList(), model.generator()
    for count in counts:
        for length in lengths:
            fit = model.images_that_fit(length, static.guided)
            # More than fit are drawn in several batches, of which the last may be smaller.
            for size in {min(count, fit), count % fit or fit} if count > fit else {count}:
                generator.list_programs(found, size, length, fit, sampling, static, every)
    return found.programs


def answer_programs(
    model: InferenceModel, counts: Sequence[int], tokens: int, max_new_tokens: int
) -> list[Program]:
    """Programs that answer so many questions, each about its own picture, greedily.

    Args:
      counts: of questions, each to be prepared.
      tokens: longest question, beyond what the chat template adds.
      max_new_tokens: of an answer.
    """
    shortest = len(model.processor.understanding_ids("a"))
    longest = min(shortest + tokens, model.limits.longest_prompt(1))
    sampling, static = make_sampling_params(model.config.decoder.vocab_size, temperature=0)
    found = ProgramList()
    for count in counts:
        for length, least in lengths_by_bucket(shortest, longest).items():
            limit = min(max_new_tokens, model.limits.remaining_positions([0] * least))
            fit = model.answers_that_fit(length + limit)
            for size in {min(count, fit), count % fit or fit} if count > fit else {count}:
                schedule = schedule_answers(padded_size(size, fit), size, length, limit)
                list_answer_programs(
                    found,
                    model.text_engine,
                    model.weights,
                    schedule,
                    model.config.siglip.image_size,
                    sampling,
                    static,
                )
    return found.programs


def list_programs(
    model: InferenceModel,
    pictures: Sequence[int],
    answers: Sequence[int],
    tokens: int,
    max_new_tokens: int,
    cfg_weight: float | None,
    temperature: float | None,
    preview_every: int | None,
    previews: bool,
) -> list[Program]:
    """Everything that `Janus.warmup` compiles. Raises UserError for a bad argument."""
    pictures, answers = checks.counts("pictures", pictures), checks.counts("answers", answers)
    tokens = checks.whole("tokens", tokens, least=1)
    max_new_tokens = checks.whole("max_new_tokens", max_new_tokens, least=1)
    own = model.processor.config
    sampling, static = make_sampling_params(
        model.config.vq.codebook_size,
        own.cfg_weight if cfg_weight is None else cfg_weight,
        own.temperature if temperature is None else temperature,
    )
    every = checks.preview_steps(model.config.vq.num_codes, preview_every)
    drawing = image_programs(model, pictures, tokens, sampling, static, every if previews else None)
    return drawing + answer_programs(model, answers, tokens, max_new_tokens)
