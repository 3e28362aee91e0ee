"""From a config to the objects of a run: model, processor, mesh, stages with their sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from janus_jax import gcs
from janus_jax.checkpoints.model_dir import TOKENIZER
from janus_jax.config import PRESETS, JanusConfig, Policy
from janus_jax.data import STAGE_0_TASKS, TASKS, TOKENIZERS, make_source
from janus_jax.data.manifest import FILES
from janus_jax.errors import UserError, nearest
from janus_jax.evaluation import Benchmark, build_benchmarks
from janus_jax.models import JanusModel, Layout
from janus_jax.models.packed_attention import resolve_back_end
from janus_jax.parallel import MeshLayout, first_only, make_mesh
from janus_jax.processing import Processor, ProcessorConfig, Tokenizer
from janus_jax.run.config_checks import check_config
from janus_jax.run.manifest_config import with_manifest
from janus_jax.training import SourceSpec, Stage
from janus_jax.training.stages import OBJECTIVE_TASKS
from janus_jax.training.state import Dtypes
from janus_jax.untrusted import is_file, printable


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of. Built by `build`, pure data but for the compiled functions' caches."""

    config: ConfigDict
    model: JanusModel
    processor: Processor
    mesh: jax.sharding.Mesh
    stages: tuple[Stage, ...]
    benchmarks: tuple[Benchmark, ...] = ()

    @property
    def dtypes(self) -> Dtypes:
        """In which dtype a stage keeps parameters."""
        policy = self.config.policy
        return Dtypes(policy.param_dtype, policy.frozen_dtype)

    @property
    def janus_config(self) -> JanusConfig:
        return self.model.config


def build(
    config: ConfigDict, devices: Sequence[jax.Device] | None = None, weights: bool = True
) -> Experiment:
    """Builds a run's objects.

    Args:
      config: of the run.
      devices: of the mesh, all of this job by default; others, such as those of a TPU that is not here, do
        to compile.
      weights: there are, or will be, some. False needs no tokenizer (the model's table has its full size), and
        no data for a config that leaves its data to whoever uses it.

    Raises:
      UserError: a value of the config is impossible; the message names its field.
    """
    platform = devices[0].platform if devices else jax.default_backend()
    check_config(config, platform)
    config = with_manifest(config)
    stand_in = not weights and not config.tokenizer
    tokenizer = _tokenizer(config, stand_in)
    janus_config = _architecture(config, tokenizer)
    processor_config = ProcessorConfig.from_model(janus_config, **config.processor)
    policy = Policy(config.policy.param_dtype, config.policy.compute_dtype)
    mesh = make_mesh(**config.mesh, devices=devices)
    model = JanusModel(
        janus_config,
        policy=policy,
        remat=config.policy.remat,
        # The first process tries what "auto" may be, so that all of them run one program.
        attention=first_only(
            lambda: resolve_back_end(
                config.policy.attention, platform, janus_config.decoder.head_dim, policy.compute
            )
        ),
        # One device is the mesh of one, but its program needs no constraints.
        layout=MeshLayout(mesh) if mesh.size > 1 else Layout(),
        targets_at_once=config.policy.targets_at_once,
        pictures_at_once=config.policy.pictures_at_once,
    )
    return Experiment(
        config=config,
        model=model,
        processor=Processor(processor_config, tokenizer),
        mesh=mesh,
        stages=tuple(
            _stage(name, config.stages[name], config.data.get("held_out", 0.0), weights)
            for name in config.stage_order
        ),
        benchmarks=build_benchmarks(config.eval.benchmarks),
    )


def _tokenizer(config: ConfigDict, stand_in: bool) -> Tokenizer:
    builtin = dict(config.builtin_tokenizer)
    name = builtin.pop("name", "")
    if config.tokenizer == "builtin" or stand_in:
        try:
            return TOKENIZERS.get(name)(**builtin)
        except (UserError, TypeError) as error:
            raise UserError(f"config.builtin_tokenizer: {error}") from error
    if not config.tokenizer:
        check_init(config)
        if (file := _tokenizer_of_model(config.init_from)) is not None:
            return Tokenizer.from_file(file)
        raise UserError(
            f"{config.name} needs a tokenizer: pass --config.tokenizer=FILE (the tokenizer.json of a "
            f"Janus release), or --config.tokenizer=builtin for the {name} words only"
        )
    return Tokenizer.from_file(Path(config.tokenizer))


def _tokenizer_of_model(init_from: str) -> Path | None:
    """The tokenizer.json of a model directory or of a run, here or in a bucket."""
    if not init_from:
        return None
    file = gcs.absolute(init_from) / TOKENIZER
    if not is_file(file):
        if is_file(file.parent / "adapter_config.json"):
            raise UserError(
                f"config.init_from: {printable(init_from, 200)} is an adapter: name the model that it belongs to"
            )
        raise UserError(
            f"config.init_from: {printable(init_from, 200)} is no model directory, it has no {TOKENIZER}: convert "
            "a checkpoint with convert_torch_weights.py, or name a run"
        )
    return file


def check_init(config: ConfigDict) -> None:
    """Raises UserError for a config that starts from a model and names none."""
    if config.get("init_required", False) and not config.init_from:
        raise UserError(
            "a fine-tune needs config.init_from, the model that it starts from: --config.init_from=DIR, a "
            "converted checkpoint (convert_torch_weights.py) or the directory of a run"
        )


def _architecture(config: ConfigDict, tokenizer: Tokenizer) -> JanusConfig:
    if config.model.preset not in PRESETS:
        raise UserError(
            f"config.model.preset: no model {config.model.preset!r} ({', '.join(PRESETS)})."
            + nearest(config.model.preset, PRESETS)
        )
    fields = PRESETS[config.model.preset].to_dict()
    for part, changes in config.model.overrides.items():
        if part not in fields:
            raise UserError(f"config.model.overrides: no part {part!r}.{nearest(part, fields)}")
        is_part = isinstance(fields[part], dict)
        fields[part] = fields[part] | dict(changes) if is_part else changes
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


def _stage(name: str, fields: ConfigDict, held_out: float, reads: bool) -> Stage:
    """`reads`: it must have something to read for each of its tasks."""
    where, values = f"config.stages.{name}", dict(fields)
    values["trainable"] = tuple(values["trainable"])
    values["ratio"] = tuple(values["ratio"])
    values["options"] = dict(values["options"])
    held_out = 0.0 if values["objective"] in OBJECTIVE_TASKS else held_out
    values["sources"] = _sources(f"{where}.sources", values["sources"], held_out)
    if values["objective"] == "vq":
        # Otherwise the codebook would never be placed, or doubled codes never be merged.
        warmup, fixed = values["options"]["warmup"], values["options"]["fixed_from"]
        if not 0 <= warmup < fixed < values["steps"]:
            raise UserError(
                f"{where}.options: warmup ({warmup}) must come before fixed_from ({fixed}), and that "
                f"before the last of the {values['steps']} steps"
            )
    stage = Stage(name=name, **values)
    for task in tasks_of(stage) if reads or stage.sources else ():
        has = [spec for spec in stage.sources if spec.task == task and spec.weight > 0]
        if not has:
            # A config that leaves its data to whoever uses it has no source at all.
            way = "" if stage.sources else ": pass --config.data.manifest=FILE (docs/data.md)"
            raise UserError(f"{where}.sources: no source with a weight for the task {task!r}{way}")
        if all(spec.epochs is not None for spec in has):
            raise UserError(
                f"{where}.sources: every source of the task {task!r} has a limit of epochs, and something must be "
                "read to the last step: leave one without (how long a stage is, its steps say)"
            )
    return stage


def tasks_of(stage: Stage) -> list[str]:
    """The tasks that a stage needs sources for."""
    if stage.objective in OBJECTIVE_TASKS:
        return [OBJECTIVE_TASKS[stage.objective]]
    return [task for task, share in zip(TASKS, stage.ratio, strict=True) if share > 0]


def _sources(where: str, entries: ConfigDict, held_out: float) -> tuple[SourceSpec, ...]:
    """The sources of a stage, each made once: what is wrong with its options is found now.

    Only of files something is held out: what is made on the fly never comes twice.
    """
    specs = []
    for label, entry in entries.items():
        fields = entry.to_dict() if isinstance(entry, ConfigDict) else dict(entry)
        known = ("name", "task", "weight", "options", "shuffle", "epochs")
        for field in fields:
            if field not in known:
                raise UserError(f"{where}.{label}: no field {field!r}.{nearest(field, known)}")
        for field in ("name", "task"):
            if field not in fields:
                raise UserError(f"{where}.{label}.{field} is missing")
        tasks = (*TASKS, *STAGE_0_TASKS)
        if fields["task"] not in tasks:
            raise UserError(
                f"{where}.{label}.task must be one of {', '.join(tasks)}, not {fields['task']!r}"
            )
        share = float(held_out) if fields["name"] == FILES else 0.0
        spec = SourceSpec(**fields, label=label, held_out=share)
        make_source(spec.name, spec.task, spec.options, where=f"{where}.{label}")
        specs.append(spec)
    return tuple(specs)
