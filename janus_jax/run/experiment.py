"""From a config to the objects of a run: model, processor, world, mesh, stages, data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from janus_jax.config import PRESETS, JanusConfig, Policy
from janus_jax.emoji import TASKS, World, vocabulary
from janus_jax.errors import UserError, nearest
from janus_jax.evaluation import Benchmark, build_benchmarks
from janus_jax.models import JanusModel
from janus_jax.parallel import make_mesh
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer, build_word_tokenizer
from janus_jax.run.config_checks import check_config
from janus_jax.training import Stage


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of. Built by `build`, pure data but for the compiled functions' caches."""

    config: ConfigDict
    model: JanusModel
    processor: Processor
    world: World
    mesh: jax.sharding.Mesh
    stages: tuple[Stage, ...]
    benchmarks: tuple[Benchmark, ...] = ()

    @property
    def janus_config(self) -> JanusConfig:
        return self.model.config


def build(config: ConfigDict) -> Experiment:
    """Builds a run's objects.

    Raises:
      UserError: a value of the config is impossible; the message names its field.
    """
    check_config(config)
    tokenizer, world = _tokenizer(config), World(**config.world)
    janus_config = _architecture(config, tokenizer)
    processor_config = ProcessorConfig.from_model(janus_config, **config.processor)
    model = JanusModel(
        janus_config,
        policy=Policy(config.policy.param_dtype, config.policy.compute_dtype),
        remat=config.policy.remat,
        attention=config.policy.attention,
    )
    return Experiment(
        config=config,
        model=model,
        processor=Processor(processor_config, tokenizer),
        world=world,
        mesh=make_mesh(**config.mesh),
        stages=tuple(_stage(name, config.stages[name]) for name in config.stage_order),
        benchmarks=build_benchmarks(config.eval.benchmarks),
    )


def _tokenizer(config: ConfigDict) -> Tokenizer:
    if config.tokenizer == "builtin":
        return build_word_tokenizer(vocabulary(World(**config.world)))
    if not config.tokenizer:
        raise UserError(
            f"{config.name} needs a tokenizer: pass --config.tokenizer=FILE (the tokenizer.json of a "
            "Janus release), or --config.tokenizer=builtin for the emoji words only"
        )
    return Tokenizer.from_file(Path(config.tokenizer))


def _architecture(config: ConfigDict, tokenizer: Tokenizer) -> JanusConfig:
    if config.model.preset not in PRESETS:
        raise UserError(
            f"config.model.preset: no model {config.model.preset!r} ({', '.join(PRESETS)})."
            + nearest(config.model.preset, PRESETS)
        )
    fields = PRESETS[config.model.preset].to_dict()
    for part, changes in config.model.overrides.items():
        if part not in fields or not isinstance(fields[part], dict):
            raise UserError(f"config.model.overrides: no part {part!r}.{nearest(part, fields)}")
        fields[part] = fields[part] | dict(changes)
    if config.tokenizer == "builtin":
        # The built-in words make a table of their own size, rounded up for even sharding.
        fields["decoder"]["vocab_size"] = -(-tokenizer.vocab_size // 64) * 64
    janus_config = JanusConfig.from_dict(fields)
    if tokenizer.vocab_size > janus_config.decoder.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's table only "
            f"{janus_config.decoder.vocab_size} rows: {config.tokenizer} is of another model"
        )
    return janus_config


def _stage(name: str, fields: ConfigDict) -> Stage:
    values: dict[str, Any] = dict(fields)
    values["trainable"] = tuple(values["trainable"])
    values["ratio"] = tuple(values["ratio"])
    values["options"] = dict(values["options"])
    scenes = dict(values["scenes"])
    scenes["tasks"] = {t: w for t, w in dict(scenes["tasks"]).items() if w > 0}
    unknown = set(scenes["tasks"]) - {*TASKS, "mixed", "dense"}
    if unknown or not scenes["tasks"]:
        raise UserError(f"config.stages.{name}.scenes.tasks: no task {sorted(unknown)}")
    where = f"config.stages.{name}"
    for field in ("detailed", "describe", "yes_no", "drawings", "condition_dropout"):
        if not 0 <= scenes[field] <= 1:
            raise UserError(
                f"{where}.scenes.{field} must be a share from 0 to 1, not {scenes[field]}"
            )
    if scenes["questions"] < 1:
        raise UserError(f"{where}.scenes.questions must be at least 1, not {scenes['questions']}")
    if values["objective"] == "vq":
        # Otherwise the codebook would never be placed, or doubled codes never be merged.
        warmup, fixed = values["options"]["warmup"], values["options"]["fixed_from"]
        if not 0 <= warmup < fixed < values["steps"]:
            raise UserError(
                f"{where}.options: warmup ({warmup}) must come before fixed_from ({fixed}), and that "
                f"before the last of the {values['steps']} steps"
            )
    return Stage(name=name, **{**values, "scenes": scenes})
