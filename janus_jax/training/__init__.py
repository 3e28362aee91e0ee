"""Training: stages, objectives, one step, the loop of a stage.

Names are imported when they are first used: a config needs the stages alone, and not JAX.
"""

import importlib

_MODULES = {
    "codebook_start": ("start_from_codebook",),
    "groups": ("merge_params", "split_params"),
    "loop": ("Stopped", "run_stage"),
    "metrics": ("MetricsLog", "read_metrics"),
    "objectives": ("OBJECTIVES", "make_objective"),
    "optimizer": ("learning_rate", "make_optimizer"),
    "stages": ("TRAINABLE", "Stage", "select_stages"),
    "state": ("TrainState", "check_trainable", "evaluated_params", "init_state"),
    "step": ("make_step",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
