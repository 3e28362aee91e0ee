"""What people see who fine-tune: what cannot be changed in a run, and which step was the best."""

import pytest

from janus_jax.adapters import LoraOptions
from janus_jax.adapters.lora import lora_shapes
from janus_jax.errors import UserError
from janus_jax.run.claim import ABSENT, Change, _ChangeRules
from janus_jax.run.training_run import _say_best


class Watch:
    def __init__(self, best, last):
        self.best, self.last = best, last


class Place:
    def __init__(self, address):
        self.address = address


class Stage:
    name = "finetune"


@pytest.mark.parametrize(
    ("best", "last", "said"),
    [
        ((4.18, 20), (4.45, 60), "lowest after step 20, 4.1800, and is 4.4500 after 60"),
        ((4.18, 60), (4.18, 60), ""),
        (None, None, ""),
    ],
)
def test_a_run_whose_last_step_is_not_the_best_says_so(tmp_path, capsys, best, last, said):
    _say_best(Stage, Watch(best, last), Place(tmp_path))
    printed = capsys.readouterr().err
    assert said in printed and bool(printed) == bool(said)
    if said:
        assert "it was not kept" in printed  # there is no checkpoint of it


def rules(done):
    made = object.__new__(_ChangeRules)
    made._saved, made._steps, made._by_steps = {"finetune": done}, {"finetune": 60}, set()
    return made


@pytest.mark.parametrize("field", ["rank", "alpha", "targets"])
def test_an_adapter_stays_what_it_is_once_it_is_saved(field):
    change = Change(f"stages.finetune.options.lora.{field}", 16, 8)
    assert rules(0).allowable(change)
    assert not rules(20).allowable(change)


def test_an_adapter_is_not_added_to_a_run_that_has_begun():
    assert not rules(20).allowable(Change("stages.finetune.options.lora", ABSENT, {"rank": 8}))


def test_targets_that_match_nothing_are_answered_with_some_that_do():
    params = {"decoder": {"layers": {"attn": {"q_proj": {"kernel": _shape(4, 4)}}}}}
    with pytest.raises(UserError, match=r"no dense layer \(decoder/layers/attn/q_proj\)"):
        lora_shapes(params, LoraOptions(targets=("nothing",)))


def _shape(*sizes):
    import jax
    import jax.numpy as jnp

    return jax.ShapeDtypeStruct(sizes, jnp.float32)
