"""Tracing some steps of a stage."""

import jax
import jax.numpy as jnp
import pytest

from janus_jax.configs import common, janus_tiny
from janus_jax.errors import UserError
from janus_jax.run.claim import jsonable
from janus_jax.run.config_checks import check_config
from janus_jax.training import profiling
from janus_jax.training.profiling import Profiler, profiled_steps


def test_which_steps():
    assert profiled_steps("") is None
    assert profiled_steps("10:15") == (10, 15) and profiled_steps("3:3") == (3, 3)


@pytest.mark.parametrize(
    "text", ["10", "0:5", "6:5", "a:b", "1:2:3", "-1:4", " 1:2", 7, "1:" + "9" * 400]
)
def test_what_is_no_range_is_one_line(text):
    config = common.base("x", "janus-tiny") if isinstance(text, str) else None
    with pytest.raises(
        UserError, match=r"^config\.profile must be the first and the last"
    ) as error:
        profiled_steps(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    if config:
        config = janus_tiny.get_config()
        config.profile = text
        with pytest.raises(UserError, match=r"^config\.profile"):
            check_config(config)


def run(profiler, steps, first=1):
    """A loop as that of a stage; the outputs of its steps."""
    step = jax.jit(lambda x: x @ x)
    x = jnp.eye(8)
    try:
        for done in range(first, first + steps):
            profiler.before(done)
            x = step(x)
            profiler.after({"x": x})
    finally:
        profiler.close()


def annotated(directory):
    """Numbers of the steps in the one trace below a directory."""
    (path,) = directory.rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    events = [e for plane in data.planes for line in plane.lines for e in line.events]
    found = [dict(e.stats).get("step_num") for e in events if e.name == "train"]
    return sorted({int(number) for number in found if number is not None})


def test_the_steps_asked_for_are_in_the_trace(tmp_path):
    said = []
    run(Profiler((2, 3), tmp_path / "a" / "b", "stage1", said.append), steps=5, first=41)
    assert annotated(tmp_path / "a" / "b") == [42, 43]  # the second and third of this process
    (line,) = said
    assert line.startswith(f"stage1: steps 2 to 3 are traced in {tmp_path / 'a' / 'b'}; ")
    assert f"xprof --logdir {tmp_path / 'a' / 'b'}" in line and "\n" not in line


def test_a_stage_that_ends_first_is_traced_as_far_as_it_went(tmp_path):
    said = []
    run(Profiler((2, 9), tmp_path, "s", said.append), steps=3)
    assert annotated(tmp_path) == [2, 3] and said[0].startswith("s: steps 2 to 3 are traced")
    said.clear()
    run(Profiler((5, 9), tmp_path / "none", "s", said.append), steps=3)
    assert "nothing was traced, as this process made 3 steps" in said[0]
    assert not (tmp_path / "none").exists()


def test_a_step_that_fails_leaves_no_trace_open(tmp_path):
    said = []
    profiler = Profiler((1, 2), tmp_path, "s", said.append)
    profiler.before(1)
    profiler.close()  # as the loop does whatever happens
    run(Profiler((1, 1), tmp_path / "next", "s", said.append), steps=1)
    assert [line.split(" in ")[0] for line in said] == ["s: steps 1 to 1 are traced"] * 2


def test_off_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "block_until_ready", lambda x: pytest.fail("waited"))
    said = []
    run(Profiler(None, tmp_path / "off", "s", said.append), steps=3)
    assert not said and not (tmp_path / "off").exists()


def test_what_cannot_be_traced_ends_no_training(tmp_path):
    said = []
    (tmp_path / "file").write_text("")
    run(Profiler((1, 2), tmp_path / "file" / "x", "s", said.append), steps=3)
    (line,) = said
    assert line.startswith("warning: s is not traced: ")
    with jax.profiler.trace(str(tmp_path / "other")):  # someone else's is running
        run(Profiler((1, 2), tmp_path / "mine", "s", said.append), steps=3)
    assert len(said) == 2 and said[1].startswith("warning: s is not traced: ")


def test_only_the_first_process_traces(tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "is_first", lambda: False)
    run(Profiler((1, 2), tmp_path / "x", "s", lambda line: pytest.fail(line)), steps=3)
    assert not (tmp_path / "x").exists()


def test_what_one_command_traces_is_no_part_of_the_run():
    config = janus_tiny.get_config()
    config.profile = "2:3"
    assert jsonable(config) == jsonable(janus_tiny.get_config())
