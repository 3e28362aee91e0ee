"""What a config must be, as far as no part that it builds checks it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable
from typing import Any

import jax
from ml_collections import ConfigDict

from janus_jax.config import FLOAT_DTYPES
from janus_jax.configs import common
from janus_jax.configs.earlier import check_moved
from janus_jax.data import TOO_LONG
from janus_jax.errors import UserError, nearest
from janus_jax.models import BACK_ENDS, REMAT
from janus_jax.models.packed_attention import OLD_NAMES, PLATFORM
from janus_jax.param_groups import WILDCARDS
from janus_jax.training import TRAINABLE, Stage, profiled_steps
from janus_jax.training.state import INT8


def check_config(config: ConfigDict, platform: str = "") -> None:
    """Raises UserError for a value that nothing else looks at before it is used.

    Args:
      platform: of the devices; "" for this process's.
    """
    check_moved(config)
    _check_fields(config)
    if config.policy.remat not in REMAT:
        raise UserError(
            f"config.policy.remat must be one of {', '.join(REMAT)}, not {config.policy.remat!r}."
            + nearest(str(config.policy.remat), REMAT)
        )
    attention, platform = config.policy.attention, platform or jax.default_backend()
    if attention not in ("auto", *BACK_ENDS, *OLD_NAMES):
        raise UserError(
            f"config.policy.attention must be one of auto, {', '.join(BACK_ENDS)}, not {attention!r}."
            + nearest(str(attention), BACK_ENDS)
        )
    if (needed := PLATFORM.get(attention, platform)) != platform:
        raise UserError(
            f"config.policy.attention={attention} is for {needed.upper()}s, and this process has none: "
            "take auto"
        )
    if not isinstance(config.get("init_required", False), bool):
        raise UserError(f"config.init_required must be True or False, not {config.init_required!r}")
    known = (*FLOAT_DTYPES, INT8)
    if config.policy.frozen_dtype not in known:
        raise UserError(f"config.policy.frozen_dtype must be one of {', '.join(known)}")
    for name in config.stage_order if config.policy.frozen_dtype == INT8 else ():
        # What trains its own weights would start from, or hand on, rounded ones.
        if "lora" not in config.stages.get(name, {}).get("options", {}):
            raise UserError(
                f"config.policy.frozen_dtype=int8 is for adapters, and {name} has none: take bfloat16, or give it "
                f"config.stages.{name}.options.lora"
            )
    for name in ("cfg_weight", "temperature"):
        value = config.processor[name]
        if not 0 <= value < math.inf:
            raise UserError(f"config.processor.{name} must be a finite number >= 0, not {value}")
    for name in ("save_every", "log_every"):
        if config.log[name] < 1:
            raise UserError(f"config.log.{name} must be at least 1 step")
    profiled_steps(config.get("profile", ""))
    _whole("log.stop_after_worse", config.log.get("stop_after_worse", 0), 0)
    for name, least in (("keep", 1), ("keep_every", 0), ("keep_best", 0), ("stop_after_skips", 1)):
        value = config.log[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UserError(f"config.log.{name} must be an integer >= {least}, not {value!r}")
    _check_numbers(config)


def _check_fields(config: ConfigDict) -> None:
    """Nobody reads a field of another name, so a slip in a config file would go unseen."""
    known = common.base("", "janus-tiny")
    _only("config", config, known)
    for part in ("model", "processor", "policy", "mesh", "data", "log", "eval"):
        _only(f"config.{part}", config[part], known[part])
    _only("config.data.row", config.data.row, known.data.row)
    fields = [f for f in dataclasses.fields(Stage) if f.name != "name"]
    required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    for name, stage in config.stages.items():
        _only(f"config.stages.{name}", stage, [f.name for f in fields])
        for field in required:
            if field not in stage:
                raise UserError(f"config.stages.{name}.{field} is missing")


def _only(where: str, fields: Iterable[str], known: Collection[str]) -> None:
    for field in fields:
        if field not in known:
            raise UserError(f"{where} has no field {field!r}.{nearest(field, known)}")


def _check_numbers(config: ConfigDict) -> None:
    # The data of stage i is seeded with 100 * seed + i, which Grain keeps in 32 bits.
    _range("seed", config.seed, 0, 20_000_000)
    _range("data.threads", config.data.threads, 0)
    _whole("data.workers", config.data.get("workers", 0), 0)
    _whole("data.streams", config.data.streams, 1)
    _whole("data.lookahead", config.data.lookahead, 0)
    _range("data.max_rejected", config.data.max_rejected, 0, 1)
    _range("data.held_out", config.data.get("held_out", 0.0), 0, 1)
    _whole("eval.held_out_every", config.eval.get("held_out_every", 0), 0)
    _range("log.sample_every", config.log.sample_every, 0)
    for field in ("targets_at_once", "pictures_at_once"):
        _range(f"policy.{field}", config.policy[field], 0)
    _range("log.peak_tflops", config.log.get("peak_tflops", 0.0), 0)
    _range("log.save_minutes", config.log.save_minutes, 0)
    for field in ("tokens", "targets"):
        _range(f"data.row.{field}", config.data.row[field], 1)
    for field in ("und_images", "gen_images"):
        _range(f"data.row.{field}", config.data.row[field], 0)
    if config.data.too_long not in TOO_LONG:
        raise UserError(
            f"config.data.too_long must be one of {', '.join(TOO_LONG)}, not "
            f"{config.data.too_long!r}"
        )
    _check_order(config)
    for name in config.stage_order:
        stage = config.stages[name]
        _range(f"stages.{name}.learning_rate", stage.learning_rate, 0)
        _range(f"stages.{name}.warmup_steps", stage.warmup_steps, 0)
        _range(f"stages.{name}.condition_dropout", stage.condition_dropout, 0, 1)
        for weight in stage.ratio:
            _range(f"stages.{name}.ratio", weight, 0)
        groups = {group for freeze_set in TRAINABLE.values() for group in freeze_set}
        groups = {group for group in groups if not set(WILDCARDS) & set(group)}
        for group in (str(pattern).split("/")[0] for pattern in stage.trainable):
            if group not in groups and not set(WILDCARDS) & set(group):
                raise UserError(
                    f"config.stages.{name}.trainable: no parameter group {group!r}."
                    + nearest(group, groups)
                )
        _check_options(name, stage)


def _check_order(config: ConfigDict) -> None:
    order = list(config.stage_order)
    if not order:
        raise UserError("config.stage_order is empty: name at least one stage")
    for name in order:
        if name not in config.stages:
            raise UserError(
                f"config.stage_order: no stage {name!r} in config.stages."
                + nearest(str(name), config.stages)
            )
    if len(set(order)) < len(order):
        raise UserError(f"config.stage_order: a stage can run only once, not {order}")


def _check_options(name: str, stage: ConfigDict) -> None:
    where, options = f"stages.{name}.options", dict(stage.options)
    if stage.objective == "vq":
        for field in ("commitment", "warmup", "fixed_from", "revive_every"):
            if field not in options:
                raise UserError(f"config.{where}.{field} is missing")
        _range(f"{where}.revive_every", options["revive_every"], 1)
        _range(f"{where}.commitment", options["commitment"], 0)
    if stage.objective == "siglip":
        _range(f"{where}.text_length", options.get("text_length", 64), 1)
    if not isinstance(options.get("init_gen_embed_from_codebook", False), bool):
        raise UserError(f"config.{where}.init_gen_embed_from_codebook must be True or False")
    if options.get("reduction", "token") not in ("token", "sequence"):
        raise UserError(f"config.{where}.reduction must be token or sequence")


def _range(name: str, value: Any, low: float, high: float = math.inf) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        wanted = f"from {low} to {high:.0f}" if high < math.inf else f"a finite number >= {low}"
        raise UserError(f"config.{name} must be {wanted}, not {value!r}")


def _whole(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise UserError(f"config.{name} must be a whole number >= {low}, not {value!r}")
