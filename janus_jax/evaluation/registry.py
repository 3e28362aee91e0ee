"""Benchmarks by name, and how those of a config are made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from janus_jax.errors import UserError, nearest
from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.registry import Registry

BENCHMARKS = Registry(
    "benchmark",
    {
        "emoji/geneval": "janus_jax.emoji.benchmarks:MiniGenEval",
        "emoji/judge": "janus_jax.emoji.benchmarks:JudgeCeiling",
        "emoji/questions": "janus_jax.emoji.benchmarks:Questions",
        "generation/geneval-draw": "janus_jax.evaluation.while_training:GenEvalDraw",
        "understanding/gqa": "janus_jax.evaluation.while_training:Gqa",
        "understanding/mmbench": "janus_jax.evaluation.while_training:MmBench",
        "understanding/mme": "janus_jax.evaluation.while_training:Mme",
        "understanding/mmmu": "janus_jax.evaluation.while_training:Mmmu",
        "understanding/mmvet": "janus_jax.evaluation.while_training:MmVet",
        "understanding/pope": "janus_jax.evaluation.while_training:Pope",
        "understanding/seed": "janus_jax.evaluation.while_training:Seed",
    },
)


def build_benchmark(fields: Mapping[str, Any], where: str = "benchmark") -> Benchmark:
    """A benchmark from its name and options.

    Args:
      fields: {"name": of the registry, option: value, ...}.
      where: of `fields` in a config, for messages.

    Raises:
      UserError: no such benchmark, no such option, or an impossible value.
    """
    if not isinstance(fields, Mapping) or "name" not in fields:
        raise UserError(
            f"{where} must be a dict with a name ({', '.join(BENCHMARKS.names)}) and the options of "
            f"that benchmark, not {fields!r}"
        )
    options = dict(fields)
    name = options.pop("name")
    try:
        factory = BENCHMARKS.get(name)
        known = inspect.signature(factory).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for option in options:
            if option not in known and not open_ended:
                raise UserError(
                    f"no option {option!r} of {name} ({', '.join(known)}).{nearest(option, known)}"
                )
        return factory(**options)
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def build_benchmarks(
    listed: Sequence[Mapping[str, Any]], where: str = "config.eval.benchmarks"
) -> tuple[Benchmark, ...]:
    """The benchmarks of a config, in order; see `build_benchmark`.

    Raises:
      UserError: as `build_benchmark`; the message names the entry.
    """
    if isinstance(listed, str | Mapping) or not isinstance(listed, Sequence):
        raise UserError(f"{where} must be a tuple of dicts, one a benchmark, not {listed!r}")
    return tuple(build_benchmark(fields, f"{where}[{i}]") for i, fields in enumerate(listed))
