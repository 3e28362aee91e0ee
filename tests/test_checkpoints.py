import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import grain
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from janus_jax.checkpoints import (
    LoadedModel,
    StageCheckpoints,
    finished_steps,
    load_model,
    save_model,
    storage,
    write_metadata,
)
from janus_jax.config import JANUS_TINY
from janus_jax.errors import UserError
from janus_jax.models import JanusModel, init_params, stack_layers
from janus_jax.parallel import make_mesh, param_shardings, shard_params, state_shardings

pytestmark = pytest.mark.heavy

PROCESSOR = {"template": "deepseek", "num_codes": 36}
TOKENIZER = '{"a tokenizer": "é"}'
STATE = {"step": np.int32(0)}
SMALL = {"decoder": {"final_norm": {"scale": np.arange(8, dtype=np.float32)}}}


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(lambda key: init_params(JanusModel(JANUS_TINY), key), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), shapes)


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(directory, JANUS_TINY, PROCESSOR, TOKENIZER, params, {"from": "a test"})
    return directory


@pytest.fixture
def run_dir(tmp_path):
    """A run with a card and two stages, and no checkpoint yet."""
    write_metadata(tmp_path, JANUS_TINY, PROCESSOR, TOKENIZER)
    (tmp_path / "stages.json").write_text('["first", "second"]')
    return tmp_path


def stage(run_dir, name, keep=2):
    return StageCheckpoints(run_dir / "checkpoints" / name, keep)


def assert_equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for name, leaf in storage.flatten(wanted).items():
        other = storage.flatten(found)[name]
        assert other.dtype == leaf.dtype, name
        np.testing.assert_array_equal(other, leaf, err_msg=name)


def numbers():
    return iter(grain.MapDataset.range(1000).shuffle(seed=3).repeat().to_iter_dataset())


# Model directories.


def test_model_round_trip(saved, params):
    model = load_model(saved)
    assert isinstance(model, LoadedModel)
    assert model.config == JANUS_TINY
    assert (model.processor, model.tokenizer_json) == (PROCESSOR, TOKENIZER)
    assert model.origin == {"from": "a test"}
    assert_equal(model.params, params)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model"]  # nothing temporary is left


def test_scanned_bfloat16_model_round_trip_without_extras(params, tmp_path):
    config = JANUS_TINY.replace(scan_layers=True)
    half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), stack_layers(params, JANUS_TINY))
    save_model(tmp_path / "m", config, {}, "{}", {**half, "aux": {"head": np.zeros(3)}})
    model = load_model(tmp_path / "m")
    assert model.config.scan_layers
    assert_equal(model.params, half)


def test_saving_replaces_an_older_model_and_nothing_else(saved, params, tmp_path):
    place = tmp_path / "m"
    save_model(place, JANUS_TINY, {"version": 1}, "{}", params)
    save_model(place, JANUS_TINY, {"version": 2}, "{}", params)
    assert load_model(place).processor == {"version": 2}
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        save_model(other, JANUS_TINY, {}, "{}", params)
    assert (other / "chapter1.txt").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "sub/a", "params/notes.txt", "params/d/mine", ".env"]
)
def test_a_model_is_not_replaced_with_what_is_not_of_it(saved, params, tmp_path, name):
    saved = shutil.copytree(saved, tmp_path / "copy")
    (saved / ".janus.json.12345.tmp").touch()  # what a killed write left may go
    mine = saved / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("years of work")
    with pytest.raises(UserError, match=rf"holds something else: {name.removesuffix('/a')}$"):
        save_model(saved, JANUS_TINY, {"new": 1}, "{}", params)
    assert mine.read_text() == "years of work" and load_model(saved).processor == PROCESSOR
    mine.unlink()
    if name == "sub/a":
        mine.parent.rmdir()
    save_model(saved, JANUS_TINY, {"new": 1}, "{}", params)
    assert load_model(saved).processor == {"new": 1}


def test_the_card_of_another_program_is_not_replaced(params, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "janus.json").write_text('{"format": "of a gateway"}')
    with pytest.raises(UserError, match=r"holds something else: janus\.json"):
        save_model(tmp_path / "m", JANUS_TINY, {}, "{}", params)


def test_a_model_without_checksums_is_replaced(saved, params, tmp_path):
    saved = shutil.copytree(saved, tmp_path / "copy")
    (saved / "checksums.json").unlink()
    save_model(saved, JANUS_TINY, {"new": 1}, "{}", params)
    assert load_model(saved).processor == {"new": 1}


def test_params_of_another_architecture_are_not_saved(params, tmp_path):
    layers = JANUS_TINY.decoder.layers
    config = JANUS_TINY.replace(decoder=JANUS_TINY.decoder.replace(layers=layers + 1))
    message = f"another architecture.*'decoder/layers_{layers}/.*is missing"
    with pytest.raises(UserError, match=message):
        save_model(tmp_path / "m", config, {}, "{}", params)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_older_model(saved, params, monkeypatch):
    def full(path, tree):
        path.mkdir()
        (path / "half").write_text("...")
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    monkeypatch.setattr(storage, "save_tree", full)
    with pytest.raises(UserError, match="no space left"):
        save_model(saved, JANUS_TINY, {"new": 1}, "{}", params)
    assert load_model(saved).processor == PROCESSOR
    assert sorted(p.name for p in saved.parent.iterdir()) == ["model"]


def edit_card(directory, **fields):
    metadata = json.loads((directory / "janus.json").read_text())
    (directory / "janus.json").write_text(json.dumps(metadata | fields))


def other_width():
    return JANUS_TINY.replace(
        decoder=JANUS_TINY.decoder.replace(ffw=4 * JANUS_TINY.decoder.ffw)
    ).to_dict()


def damage_arrays(directory):
    for path in (directory / "params").rglob("d/*"):
        path.write_bytes(b"rubbish")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "janus.json").unlink(), "has no janus.json"),
        (lambda d: (d / "janus.json").write_text('{"format": '), "not valid JSON"),
        (lambda d: (d / "janus.json").write_text("[1]"), "is not the janus.json"),
        (lambda d: edit_card(d, format="other"), "is not the janus.json"),
        (lambda d: edit_card(d, version=99), "version 99"),
        (lambda d: edit_card(d, config=None), "lacks 'config'"),
        (lambda d: edit_card(d, config={"name": "x"}), "JanusConfig lacks"),
        (
            lambda d: edit_card(d, config=other_width()),
            r"another architecture.*'decoder/layers_0/mlp/down_proj/kernel' has shape",
        ),
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda d: (d / "tokenizer.json").write_bytes(b"\xff\xfe"), "cannot read"),
        (lambda d: (d / "params" / "_METADATA").unlink(), "params/_METADATA is missing"),
        (damage_arrays, "has 7 bytes, not "),
        (lambda d: (d / "params").rename(d / "parms"), "neither params/ nor a finished checkpoint"),
    ],
)
def test_damaged_models_are_user_errors(saved, tmp_path, damage, message):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", saved, copy], check=True)
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        load_model(copy)
    assert "\n" not in str(error.value)


def test_places_without_a_model_are_user_errors(saved, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is empty"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        load_model(saved / "janus.json")
    with pytest.raises(UserError, match="no stages or steps"):
        load_model(saved, step=3)


# Training runs.


def test_a_run_without_a_finished_checkpoint_is_a_user_error(run_dir):
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        load_model(run_dir)
    (run_dir / "checkpoints" / "first" / "10.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with pytest.raises(UserError, match="no finished checkpoint yet"):
        load_model(run_dir)


def test_a_run_loads_its_newest_checkpoint(run_dir, params):
    variants = {}
    for name, step in (("first", 3), ("first", 20), ("second", 5)):
        variants[name, step] = jax.tree.map(lambda x, step=step: x + step, params)
        with stage(run_dir, name) as checkpoints:
            tree = {**variants[name, step], "aux": {"head": np.ones(2, np.float32)}}
            checkpoints.save(step, tree, {"step": np.int32(step)}, {"at": step})
        model = load_model(run_dir)
        assert (model.origin["stage"], model.origin["step"]) == (name, step)
        assert_equal(model.params, variants[name, step])
    assert_equal(load_model(run_dir, step=3).params, variants["first", 3])
    assert_equal(load_model(run_dir, stage="first").params, variants["first", 20])
    with pytest.raises(UserError, match="no checkpoint of step 4; it has second: 5; first: 3, 20"):
        load_model(run_dir, step=4)
    with pytest.raises(UserError, match="no stage 'third'"):
        load_model(run_dir, stage="third")


@pytest.mark.multidevice
def test_resume_restores_parameters_optimizer_and_data(run_dir):
    mesh, other = make_mesh(1, 4, 2), make_mesh(2, 2, 1)
    params = {"decoder": {"lm_head": {"kernel": np.ones((8, 16), np.float32)}}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    placed = shard_params(params, mesh)
    grads = jax.tree.map(lambda x: x * 0.3, placed)
    updates, opt = tx.update(grads, tx.init(placed), placed)
    placed = optax.apply_updates(placed, updates)
    state = {"opt": opt, "step": np.int32(7), "key": jax.random.key_data(jax.random.key(5))}
    data = numbers()
    seen = [next(data) for _ in range(10)]
    with stage(run_dir, "first") as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.save(7, placed, state, data, {"loss": np.float32(0.5)})
        assert not checkpoints.save(7, placed, state, data)
    rest = [next(data) for _ in range(10)]

    abstract = jax.eval_shape(lambda: (params, {**state, "opt": tx.init(params)}))
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        (param_shardings(abstract[0], other), state_shardings(abstract[1], other)),
    )
    fresh = numbers()
    with stage(run_dir, "first") as checkpoints:
        assert checkpoints.latest_step() == 7
        params2, state2 = checkpoints.restore(7, *like, fresh)
        assert checkpoints.metrics(7) == {"loss": 0.5}
        assert_equal(checkpoints.restore_params(7), jax.tree.map(np.asarray, placed))
    assert_equal(params2, placed)
    assert_equal(state2, state)
    kernel = params2["decoder"]["lm_head"]["kernel"]
    assert kernel.sharding.mesh == other
    assert state2["opt"][1][0].mu["decoder"]["lm_head"]["kernel"].sharding == kernel.sharding
    assert [next(fresh) for _ in range(10)] == rest != seen


class Counter:
    """An iterator that is not Grain's."""

    def __init__(self):
        self.position = 0

    def get_state(self):
        return {"position": np.int64(self.position)}

    def set_state(self, state):
        self.position = state["position"]


def test_other_iterators_and_dicts_hold_their_place(run_dir):
    counter, fresh = Counter(), Counter()
    counter.position = 5
    plain = {"stale": True}
    with stage(run_dir, "first") as checkpoints:
        checkpoints.save(1, SMALL, STATE, counter)
        checkpoints.save(2, SMALL, STATE, {"epoch": 3})
        checkpoints.restore(1, SMALL, STATE, fresh)
        checkpoints.restore(2, SMALL, STATE, plain)
        assert_equal(checkpoints.restore(2, SMALL, STATE, None)[0], SMALL)
    assert fresh.position == 5
    assert plain == {"epoch": 3}


def test_only_the_newest_steps_are_kept(run_dir):
    with stage(run_dir, "first", keep=2) as checkpoints:
        for step in (1, 2, 5, 9):
            checkpoints.save(step, SMALL, {"step": np.int32(step)}, {})
        assert checkpoints.latest_step() == 9
    assert finished_steps(run_dir / "checkpoints" / "first") == [5, 9]


def test_restoring_what_does_not_fit_is_a_user_error(run_dir):
    wider = {"decoder": {"final_norm": {"scale": np.zeros(9, np.float32)}}}
    with stage(run_dir, "first") as checkpoints:
        checkpoints.save(1, SMALL, {"mu": SMALL}, {})
        with pytest.raises(
            UserError, match=r"'decoder/final_norm/scale' has shape \(8,\), not \(9,\)"
        ):
            checkpoints.restore(1, wider, {"mu": SMALL}, None)
        with pytest.raises(
            UserError, match="optimizer: 'mu/decoder/final_norm/scale' does not belong"
        ):
            checkpoints.restore(1, SMALL, {"nu": SMALL}, None)
        with pytest.raises(UserError, match=r"no checkpoint of step 2.*it has 1"):
            checkpoints.restore(2, SMALL, {"mu": SMALL}, None)
        data = run_dir / "checkpoints" / "first" / "1" / "data"
        (data / "process_0-of-1.json").rename(data / "process_0-of-4.json")
        (data.parent / "checksums.json").unlink()
        with pytest.raises(UserError, match="another number of processes"):
            checkpoints.restore(1, SMALL, {"mu": SMALL}, {})


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        ValueError(
            'RESOURCE_EXHAUSTED: Error writing "a": No space left on device [os_error_code=28]'
        ),
        ExceptionGroup("items", [ValueError("x"), OSError(errno.EDQUOT, "Disk quota exceeded")]),
    ],
)
def test_a_full_disk_is_a_user_error_and_spares_earlier_checkpoints(run_dir, monkeypatch, error):
    directory = run_dir / "checkpoints" / "first"
    checkpoints = stage(run_dir, "first")
    checkpoints.save(1, SMALL, STATE, {})

    def full(self, step, *args, **kwargs):
        (directory / f"{step}.orbax-checkpoint-tmp").mkdir()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(UserError, match=r"no space left.*earlier checkpoints are intact"):
            checkpoints.save(2, SMALL, STATE, {})
    assert [path.name for path in directory.iterdir()] == ["1"]  # the half written one is gone
    assert_equal(checkpoints.restore_params(1), SMALL)


def test_too_little_space_is_seen_before_writing(saved, params, run_dir, monkeypatch):
    with stage(run_dir, "first") as checkpoints:
        checkpoints.save(1, SMALL, STATE, {})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
        assert checkpoints.save(2, SMALL, STATE, {})
        with pytest.raises(UserError, match=r"first: 2 MB are needed, 1 MB are free; earlier"):
            checkpoints.save(
                3, {"w": np.zeros(250_000, np.float32)}, {"mu": np.ones(250_000, np.float32)}, {}
            )
        for needed, free, said in (
            (250_000, 999_999, "1 MB are needed, 0"),
            (850_000, 3_300_000, "4 MB are needed, 3"),
        ):
            patch_free = SimpleNamespace(free=free)
            monkeypatch.setattr(shutil, "disk_usage", lambda path, it=patch_free: it)
            with pytest.raises(UserError, match=f"{said} MB are free"):
                checkpoints.save(3, {"w": np.zeros(needed, np.float32)}, {}, {})
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    assert sorted(p.name for p in (run_dir / "checkpoints" / "first").iterdir()) == ["1", "2"]
    with pytest.raises(UserError, match="no space left"):
        save_model(run_dir / "m", JANUS_TINY, {}, "{}", params)
    assert not (run_dir / "m").exists()


def test_other_errors_while_saving_are_not_hidden(run_dir, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a bug")

    with stage(run_dir, "first") as checkpoints:
        monkeypatch.setattr(ocp.CheckpointManager, "save", broken)
        with pytest.raises(ValueError, match="a bug") as error:
            checkpoints.save(1, SMALL, STATE, {})
    assert not isinstance(error.value, UserError)


KILLED = """
import sys
import numpy as np
from janus_jax.checkpoints import StageCheckpoints
checkpoints = StageCheckpoints(sys.argv[1])
for step in (1, 2):
    big = np.random.default_rng(step).standard_normal(16_000_000, dtype=np.float32)
    checkpoints.save(step, {"w": big}, {"step": np.int32(step)}, {"step": step})
"""


def test_a_process_killed_while_saving_leaves_the_earlier_checkpoint(tmp_path):
    directory = tmp_path / "stage"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(directory)])
    deadline = time.monotonic() + 120
    # Step 2 is under way as soon as its temporary directory is there.
    while not list(directory.glob("2.*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished_steps(directory) == [1]
    assert list(directory.glob("2.*"))
    with StageCheckpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 1
        wanted = np.random.default_rng(1).standard_normal(16_000_000, dtype=np.float32)
        np.testing.assert_array_equal(checkpoints.restore_params(1)["w"], wanted)
        assert checkpoints.save(2, {"w": wanted}, STATE, {})
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


def test_saving_and_loading_print_nothing(run_dir, capfd):
    with stage(run_dir, "first") as checkpoints:
        checkpoints.save(1, SMALL, STATE, numbers())
        checkpoints.restore(1, SMALL, STATE, numbers())
        checkpoints.restore_params(1)
    assert capfd.readouterr() == ("", "")
