"""Fields of configs that use the built-in emoji scenes: sources, tokenizer, benchmarks."""

from __future__ import annotations

from typing import Any

WORLD = dict(image_size=48, grid=3, objects="tiny")
# What evenly mixed scenes are; the other kinds have the weight 0, so that each can be set by its name.
EVENLY = dict.fromkeys(
    ("single_object", "two_object", "counting", "colors", "position", "color_attr"), 1.0
)
KINDS = (*EVENLY, "mixed", "dense")
DEFAULTS = dict(detailed=0.0, describe=0.3, questions=1, yes_no=0.0, chat=False, drawings=0.3)
# Options that a task reads.
_READS = dict(
    und=("detailed", "describe", "questions", "yes_no"),
    text=("detailed", "describe", "questions", "yes_no", "chat", "drawings"),
    gen=("detailed",),
    pictures=(),
    pairs=(),
)


def sources(
    tasks: tuple[str, ...] = ("und", "text", "gen"),
    kinds: dict[str, float] | None = None,
    world: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """One source a task, labelled by it, all with the same options (of `emoji.source.EmojiSource`)."""
    if unknown := options.keys() - DEFAULTS.keys():
        raise ValueError(f"no option {sorted(unknown)} of emoji sources")
    options, kinds = DEFAULTS | options, EVENLY if kinds is None else kinds
    shared = dict(world=dict(world or WORLD), kinds={k: float(kinds.get(k, 0.0)) for k in KINDS})
    return {
        task: dict(
            name="emoji",
            task=task,
            weight=1.0,
            options={**shared, **{field: options[field] for field in _READS[task]}},
        )
        for task in tasks
    }


def tokenizer(world: dict[str, Any]) -> dict[str, Any]:
    """`builtin_tokenizer`: the words that can be said about the objects of a world."""
    return dict(name="emoji", objects=world["objects"])


def benchmarks(
    world: dict[str, Any], count: int, cfg_weights: tuple[float, ...] = ()
) -> tuple[dict[str, Any], ...]:
    """What is scored: `count` pictures or questions of each kind, guidance chosen among `cfg_weights`."""
    return (
        dict(name="emoji/geneval", prompts=count, world=dict(world), cfg_weights=cfg_weights),
        dict(name="emoji/questions", questions=count, world=dict(world)),
        dict(name="emoji/judge", pictures=count, world=dict(world)),
    )
