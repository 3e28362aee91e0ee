"""`adapter_config.json`: what PEFT says about an adapter, as far as it can be read here.

The fields are those of `peft.LoraConfig`. What would make the adapter compute something else than
kernel + scale * A^T B^T is refused; what only matters to training is passed over.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from janus_jax.errors import UserError
from janus_jax.files import read_json
from janus_jax.untrusted import is_file, printable, shown, understanding

CONFIG = "adapter_config.json"
_MAX_RANK, _MAX_ALPHA = 4096, 1e9
# Fields of adapters that compute something else, or hold more, and what they are called.
_OTHER_KINDS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "lora_bias": "biases beside the factors",
    "modules_to_save": "whole modules beside the factors",
    "trainable_token_indices": "rows of embeddings beside the factors",
    "target_parameters": "parameters that are no modules",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
}
# Ways to start that change the base model itself, so that the factors alone are not what was trained.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_MERGED = "merge it into its base model with PEFT (merge_and_unload) and convert that model"
# Steps that matching a name of so many letters with all patterns may take.
_MAX_STEPS, _NAME, _MAX_PATTERNS = 2e6, 120, 4096
# A repeated group, a repeated repeat, a count, what looks ahead or back: no name of a module needs them.
_NESTED = re.compile(r"\)[*+?{]|[*+?][*+?{]|\{|\(\?[^:]|\\[1-9]")


@dataclasses.dataclass(frozen=True)
class AdapterSettings:
    """The numbers of an adapter; `patterns` are (expression, value), the first that fits counts."""

    rank: int
    alpha: float
    rank_patterns: tuple[tuple[re.Pattern[str], int], ...] = ()
    alpha_patterns: tuple[tuple[re.Pattern[str], float], ...] = ()
    rslora: bool = False

    def rank_of(self, module: str) -> int:
        """r of a module."""
        return _first(self.rank_patterns, module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of its factors is times."""
        rank, alpha = self.rank_of(module), _first(self.alpha_patterns, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_settings(directory: Path) -> AdapterSettings:
    """Reads `adapter_config.json`.

    Raises:
      UserError: it is missing, damaged, or of an adapter of another kind.
    """
    path = directory / CONFIG
    if not is_file(path):
        raise UserError(
            f"{directory} holds no adapter: it has no {CONFIG}, which PEFT writes beside the weights"
        )
    values = read_json(path, dict, "copy it back from where the adapter comes from")
    with understanding(path):
        return _settings(values, path)


def _settings(values: Mapping[str, Any], path: Path) -> AdapterSettings:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {shown(kind)}, but only 'LORA' is read: {_MERGED}")
    if (bias := values.get("bias", "none")) not in (None, "none"):
        raise UserError(
            f"{path}: bias is {shown(bias)}, but no model of Janus keeps trained biases beside an adapter: "
            f"{_MERGED}"
        )
    for field, what in _OTHER_KINDS.items():
        if values.get(field):
            raise UserError(
                f"{path}: {field} is {shown(values[field])} ({what}), which is not read: {_MERGED}"
            )
    for field, value in values.items():
        if field.startswith("use_") and value and field != "use_rslora":
            raise UserError(f"{path}: {printable(field, 40)} is not known here: {_MERGED}")
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise UserError(
            f"{path}: init_lora_weights is {shown(start)}, which changes the base model as well: save it with "
            "PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )
    return AdapterSettings(
        _rank(values.get("r"), f"{path}: r"),
        _alpha(values.get("lora_alpha"), f"{path}: lora_alpha"),
        _patterns(values, "rank_pattern", _rank, path),
        _patterns(values, "alpha_pattern", _alpha, path),
        bool(values.get("use_rslora")),
    )


def _rank(value: Any, name: str) -> int:
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise UserError(f"{name} must be a whole number from 1 to {_MAX_RANK}, not {shown(value)}")
    return value


def _alpha(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _MAX_ALPHA:  # nan is not, either
        raise UserError(f"{name} must be a number up to {_MAX_ALPHA:g}, not {shown(value)}")
    return float(value)


def _patterns(values: Mapping[str, Any], field: str, check: Any, path: Path) -> tuple[Any, ...]:
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: {field} must be an object, not {shown(found)}")
    if len(found) > _MAX_PATTERNS or sum(map(_steps, found)) > _MAX_STEPS:
        worst = max(found, key=_steps)
        raise UserError(
            f"{path}: {field} has {len(found)} patterns that take long to match, such as {shown(worst)}: name the "
            "modules instead"
        )
    return tuple(
        (_expression(key, f"{path}: {field}"), check(value, f"{path}: {field}: {shown(key)}"))
        for key, value in found.items()
    )


def _steps(key: str) -> float:
    """About how many steps it takes to see that a name does not match.

    A few stars or bars in the pattern of a stranger could keep a process busy for years.
    """
    if len(key) > 1000 or _NESTED.search(key):
        return math.inf
    repeats = sum(map(key.count, "*+?")) - key.count("(?:")
    groups, bars = max(key.count("("), 1), key.count("|")
    return _NAME ** min(repeats, 9) * (bars / groups + 1) ** min(groups, 99)


def _expression(key: str, name: str) -> re.Pattern[str]:
    """As PEFT reads a key of a pattern: a regular expression of the end of a module's name."""
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError) as error:
        raise UserError(f"{name}: {shown(key)} is no pattern: {printable(error)}") from error


def _first(patterns: tuple[tuple[re.Pattern[str], Any], ...], module: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if pattern.match(module)), default)
