"""Protocols: how a benchmark is asked, read and scored, as data. Another one gives other numbers.

`paper` is what the authors of Janus-Pro say of their table, with the roles that Janus-Pro was trained with.
`vlmevalkit` is that harness with its adapter of Janus, which writes the roles of the first Janus for Janus-Pro.
`lmms-eval` has the prompts and rules of that harness, which has no adapter of Janus: its roles and the place of
pictures are the model's own.

Sources: VLMEvalKit e8e78f0 `vlmeval/vlm/janus.py` and `vlmeval/dataset/utils`, its pull request 541 (the authors'
own results and settings), lmms-eval 0.7.3 `lmms_eval/tasks`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from janus_jax.errors import UserError, nearest
from janus_jax.evaluation.understanding.benchmarks import BENCHMARK_FACTS, benchmark_facts
from janus_jax.untrusted import shown

Cell = tuple[str, str, str]  # name of a table, row, column

# The adapter's system prompt for MM-Vet; everything else is asked without one.
STEP_BY_STEP = (
    "You are a helpful assistant. Please answer truthfully and write out your thinking step by step to be "
    "sure you get the right answer."
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How one benchmark is run.

    Attributes:
      name: paper, vlmevalkit or lmms-eval.
      benchmark: which.
      prompt: name of a way to write questions (`prompts.PROMPTS`).
      parser: name of a way to read answers (`parsers.PARSERS`).
      headline: the number that stands for the benchmark.
      beside: name -> numbers by other conventions, which are printed beside it.
      template: of the chat (`processing.chat.TEMPLATES`).
      line_of_its_own: each picture is followed by a line break; otherwise the prompt begins right after the last.
      split: of the data set; None: it has one alone.
      max_new_tokens: most tokens of an answer; all are greedy.
      system_prompt: before the question.
      stop: texts; what follows the first of them in an answer is cut off before it is read.
      note: what is known of this choice, where it is inferred.
    """

    name: str
    benchmark: str
    prompt: str
    parser: str
    headline: Cell
    beside: Mapping[str, Cell]
    template: str
    line_of_its_own: bool = False
    split: str | None = None
    max_new_tokens: int = 2048
    system_prompt: str = ""
    stop: tuple[str, ...] = ()
    note: str = ""


_POPE = {
    "F1 random": ("pope", "random", "f1"),
    "F1 overall": ("pope", "overall", "f1"),
    "F1 mean of 3": ("pope", "mean of 3", "f1"),
    "accuracy random": ("pope", "random", "accuracy"),
    "accuracy overall": ("pope", "overall", "accuracy"),
}
_MME = {
    "perception": ("mme", "perception", "score"),
    "cognition": ("mme", "cognition", "score"),
}
_MMBENCH = {
    "vanilla_0": ("mmbench", "vanilla_0", "accuracy"),
    "vanilla_all": ("mmbench", "vanilla_all", "accuracy"),
    "circular": ("mmbench", "circular", "accuracy"),
}

_JANUS = dict(
    pope=dict(prompt="janus_yes_no_pope", parser="yes_no_vlmevalkit", beside=_POPE),
    mme=dict(
        prompt="janus_yes_no",
        parser="yes_no_vlmevalkit",
        headline=_MME["perception"],
        beside=_MME,
    ),
    mmbench=dict(prompt="janus_choice", parser="choice_vlmevalkit", beside=_MMBENCH, split="dev"),
    seed=dict(
        prompt="janus_choice",
        parser="choice_vlmevalkit",
        headline=("seed", "overall", "accuracy"),
        beside={},
        split="image",
    ),
    gqa=dict(
        prompt="word_or_phrase",
        parser="exact_vlmevalkit",
        headline=("gqa", "overall", "accuracy"),
        beside={},
    ),
    mmmu=dict(
        prompt="janus_choice",
        parser="choice_vlmevalkit_mmmu",
        headline=("mmmu", "overall", "accuracy"),
        beside={},
        split="validation",
    ),
    mmvet=dict(
        prompt="janus_free",
        parser="judged",
        headline=("mmvet", "total", "score"),
        beside={},
        system_prompt=STEP_BY_STEP,
    ),
)
_PAPER = dict(
    pope=dict(
        headline=_POPE["F1 random"],
        note="the authors say that the table has the random subset; that it is F1 is inferred",
    ),
    mmbench=dict(
        headline=_MMBENCH["vanilla_all"],
        note="the authors turned circular evaluation off, which counts every row, rotated ones, too",
    ),
    gqa=dict(note="inferred: the authors do not say how they asked"),
    mmmu=dict(note="the authors say that it is the validation split"),
    mmvet=dict(
        note="the authors used the official evaluator, which takes the exported predictions"
    ),
)
_VLMEVALKIT = dict(
    pope=dict(headline=_POPE["F1 overall"]), mmbench=dict(headline=_MMBENCH["circular"])
)
_LMMS_EVAL = dict(
    pope=dict(
        prompt="single_word",
        parser="yes_no_exact",
        headline=_POPE["F1 overall"],
        beside=_POPE,
        max_new_tokens=128,
    ),
    mme=dict(
        prompt="single_word_asked_once",
        parser="yes_no_first_letters",
        headline=_MME["perception"],
        beside=_MME,
        max_new_tokens=16,
    ),
    mmbench=dict(
        prompt="lmms_mmbench",
        parser="choice_lmms",
        headline=_MMBENCH["circular"],
        beside=_MMBENCH,
        split="dev",
        max_new_tokens=1024,
        stop=("ASSISTANT:",),
    ),
    seed=dict(
        prompt="lmms_seed",
        parser="first_letter",
        headline=("seed", "overall", "accuracy"),
        beside={},
        split="image",
        max_new_tokens=1024,
        stop=("ASSISTANT:",),
        note="the task sets no limit on the length of answers; 1024 is what most adapters take then",
    ),
    gqa=dict(
        prompt="word_or_phrase",
        parser="exact_lmms",
        headline=("gqa", "overall", "accuracy"),
        beside={},
        max_new_tokens=16,
    ),
    mmmu=dict(
        prompt="lmms_mmmu",
        parser="mmmu",
        headline=("mmmu", "overall", "accuracy"),
        beside={},
        split="validation",
        max_new_tokens=128,
    ),
    mmvet=dict(
        prompt="lmms_mmvet",
        parser="judged",
        headline=("mmvet", "total", "score"),
        beside={},
        max_new_tokens=1024,
    ),
)

PROTOCOLS: dict[str, dict[str, Protocol]] = {
    "paper": {
        name: Protocol("paper", name, template="deepseek", **(_JANUS[name] | _PAPER.get(name, {})))
        for name in BENCHMARK_FACTS
    },
    "vlmevalkit": {
        name: Protocol(
            "vlmevalkit",
            name,
            template="deepseek_old",
            **(_JANUS[name] | _VLMEVALKIT.get(name, {})),
        )
        for name in BENCHMARK_FACTS
    },
    "lmms-eval": {
        name: Protocol(
            "lmms-eval", name, template="deepseek", line_of_its_own=True, **_LMMS_EVAL[name]
        )
        for name in BENCHMARK_FACTS
    },
}


def get_protocol(name: str, benchmark: str) -> Protocol:
    """How a benchmark is run under a protocol; UserError if there is no such protocol or benchmark."""
    if name not in PROTOCOLS:
        raise UserError(
            f"unknown protocol {shown(name)}, expected one of {', '.join(PROTOCOLS)}."
            + nearest(str(name)[:100].lower(), PROTOCOLS)
        )
    return PROTOCOLS[name][benchmark_facts(benchmark).name]
