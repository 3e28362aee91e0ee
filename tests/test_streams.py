"""Several processes read what one would: the same rows of a step, and positions that any number can use."""

import json

import numpy as np
import pytest
from dummies_data import PROCESSOR, DummySource
from smoke import tiny

from janus_jax.checkpoints import StageCheckpoints
from janus_jax.configs import janus_1b, janus_pro_1b, janus_pro_7b
from janus_jax.data import (
    TASKS,
    PackedShape,
    PairEncoder,
    SequenceEncoder,
    WeightedSource,
    mixed_batches,
    stream_batches,
    streams_of,
    unpacked_batches,
)
from janus_jax.errors import UserError
from janus_jax.files import DamagedError
from janus_jax.run import batches, build, config_checks, stage_checks, stage_data
from janus_jax.run.stage_checks import check_stages

ROW = PackedShape(tokens=160, targets=96, und_images=4, gen_images=3)
BATCH, RATIO = 8, (2.0, 3.0, 5.0)


def packed(lookahead=0, **kwargs):
    sources = [WeightedSource(task, DummySource(task)) for task in TASKS]
    encode = SequenceEncoder(PROCESSOR, ROW)
    return mixed_batches(sources, RATIO, encode, ROW, lookahead=lookahead, **kwargs)


def unpacked(**kwargs):
    pairs = [WeightedSource("pairs", DummySource("pairs"))]
    return unpacked_batches(pairs, PairEncoder(PROCESSOR, 40), **kwargs)


def ahead(**kwargs):
    return packed(lookahead=6, **kwargs)


def shares(count):
    return np.split(np.arange(BATCH), count)


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("make", [packed, ahead, unpacked])
def test_the_batch_of_a_step_is_the_same_for_any_number_of_processes(make):
    one = iter(stream_batches(make, 4, BATCH, np.arange(BATCH)))
    wanted = [next(one) for _ in range(3)]
    assert not same(wanted[0], wanted[1])
    for count in (2, 4, 8):  # eight: two read each stream
        parts = [iter(stream_batches(make, 4, BATCH, rows)) for rows in shares(count)]
        for batch in wanted:
            assert same(joined([next(part) for part in parts]), batch), count
    # Rows that are not next to each other, as on a mesh that follows the wiring.
    rows = [1, 2, 7]
    some = next(iter(stream_batches(make, 4, BATCH, rows)))
    assert same(some, {name: values[rows] for name, values in wanted[0].items()})


@pytest.mark.parametrize("make", [packed, unpacked])
def test_one_stream_is_the_pipeline_itself(make):
    alone, plain = iter(stream_batches(make, 1, BATCH, range(BATCH))), iter(make(batch_size=BATCH))
    assert all(same(next(alone), next(plain)) for _ in range(3))


def test_a_process_opens_only_the_streams_of_its_rows():
    opened = []

    def make(stream, **kwargs):
        opened.append(stream)
        return packed(stream=stream, **kwargs)

    stream_batches(make, 4, BATCH, [2, 3, 4, 5])
    assert opened == [(1, 4), (2, 4)]
    assert streams_of([0, 7], 4, BATCH) == [0, 3]


@pytest.mark.parametrize(
    ("threads", "wanted"), [(0, [0, 0, 0]), (2, [0, 0, 0]), (3, [1, 1, 1]), (7, [3, 2, 2])]
)
def test_streams_share_the_threads_and_order_does_not_depend_on_them(threads, wanted):
    given = []

    def make(threads, **kwargs):
        given.append(threads)
        return packed(threads=threads, **kwargs)

    iterator = iter(stream_batches(make, 4, BATCH, range(6), threads))
    assert given == wanted
    one = iter(stream_batches(packed, 4, BATCH, range(6), 1))
    assert all(same(next(iterator), next(one)) for _ in range(3))
    iterator.close()


# Positions


def job(monkeypatch, experiment, count):
    """The data of every process of a job, one after the other in this one."""
    found = []
    for rows in np.split(np.arange(experiment.stages[-1].batch_size), count):
        monkeypatch.setattr(stage_data, "process_rows", lambda mesh, size, rows=rows: rows)
        found.append(batches(experiment, experiment.stages[-1]))
    return found


def steps(processes, count):
    return [joined([next(process) for process in processes]) for _ in range(count)]


def end(processes):
    for process in processes:
        process.close()


@pytest.mark.parametrize(
    ("before", "after", "lookahead"), [(2, 1, 5), (2, 4, 0), (1, 2, 0), (4, 1, 5)]
)
def test_what_some_processes_saved_any_number_goes_on_from(
    before, after, lookahead, monkeypatch, tmp_path, capsys
):
    fields = {"data__streams": 4, "data__lookahead": lookahead, "stages__stage2__batch_size": 4}
    experiment = build(tiny(**fields))
    alone = job(monkeypatch, experiment, 1)
    wanted = steps(alone, 4)
    end(alone)
    first = job(monkeypatch, experiment, before)
    found = steps(first, 2)
    write(tmp_path, first[0], [process.get_state() for process in first])
    end(first)
    second = job(monkeypatch, experiment, after)
    with StageCheckpoints(tmp_path) as checkpoints:
        for process in second:
            checkpoints.restore(1, PARAMS, STATE, process)
    found += steps(second, 2)
    end(second)
    assert all(map(same, found, wanted))
    assert capsys.readouterr().err == ""


PARAMS, STATE = {"w": np.zeros(2, np.float32)}, {"step": np.int32(1)}


def write(directory, data, states):
    """A checkpoint as a job of `len(states)` processes leaves it."""
    with StageCheckpoints(directory) as checkpoints:
        checkpoints.save(1, PARAMS, STATE, data)
    place = directory / "1" / "data"
    (place / "process_0-of-1.json").unlink()
    (place.parent / "checksums.json").unlink()
    for index, state in enumerate(states):
        (place / f"process_{index}-of-{len(states)}.json").write_text(json.dumps(state))


def test_a_position_without_one_of_its_processes_is_damaged(monkeypatch, tmp_path):
    experiment = build(tiny(data__streams=2, stages__stage2__batch_size=4))
    processes = job(monkeypatch, experiment, 2)
    steps(processes, 1)
    states = [process.get_state() for process in processes]
    write(tmp_path, processes[0], states)
    (tmp_path / "1" / "data" / "process_1-of-2.json").unlink()
    with (
        StageCheckpoints(tmp_path) as checkpoints,
        pytest.raises(DamagedError, match=r"data/process_1-of-2.json is missing"),
    ):
        checkpoints.restore(1, PARAMS, STATE, processes[0])
    with pytest.raises(DamagedError, match="stage2: the position of stream 1 is missing"):
        processes[0].set_states(states[:1])
    end(processes)


def test_what_a_version_without_streams_saved_goes_on(monkeypatch, capsys):
    """Its processes each read what is a stream now."""
    experiment = build(tiny(data__streams=2, stages__stage2__batch_size=4))
    alone = job(monkeypatch, experiment, 1)
    wanted = steps(alone, 2)
    now = alone[0].get_state()
    wanted += steps(alone, 2)
    old = [
        {
            "restarted": 0,
            "settings": {
                k: v for k, v in now["settings"].items() if k not in ("streams", "lookahead")
            }
            | {"processes": 2},
            "position": position,
        }
        for position in now["position"]["streams"].values()
    ]
    for states in (old, [state["position"] for state in old]):
        alone[0].set_states(states)
        assert all(map(same, steps(alone, 2), wanted[2:]))
    end(alone)
    assert capsys.readouterr().err == ""
    # With another number of streams it is another order, which is said.
    (other,) = job(monkeypatch, build(tiny(stages__stage2__batch_size=4)), 1)
    other.set_states(old)
    assert "goes on in a new order (streams was 2, now 1)" in capsys.readouterr().err
    assert not same(next(other), wanted[2])
    other.close()


def test_another_lookahead_is_another_order(monkeypatch, capsys):
    (before,) = job(monkeypatch, build(tiny()), 1)
    next(before)
    state = before.get_state()
    before.close()
    del state["settings"]["lookahead"]  # of a version that packed first-fit only
    (after,) = job(monkeypatch, build(tiny(data__lookahead=4)), 1)
    after.set_state(state)
    assert "in a new order (lookahead was 0, now 4)" in capsys.readouterr().err
    after.close()


# Numbers that do not fit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"data__streams": 3, "stages__stage2__batch_size": 12},
            "data.streams: the 8 rows of stage0_lm do not divide over 3 streams; take one of 1, 2, 4$",
        ),
        ({"data__streams": 0}, "data.streams must be a whole number >= 1, not 0"),
        ({"data__lookahead": -1}, "data.lookahead must be a whole number >= 0, not -1"),
        ({"data__lookahead": True}, "data.lookahead must be a whole number >= 0, not True"),
    ],
    ids=str,
)
def test_bad_numbers_are_one_line_at_the_start(fields, message):
    with pytest.raises(UserError, match=message):
        config = tiny(**fields)
        config_checks.check_config(config)
        experiment = build(config)
        check_stages(experiment, experiment.stages)


def test_processes_that_read_more_than_they_need_say_what_would_be_better(monkeypatch, capsys):
    experiment = build(tiny(stage_order=("stage2",)))
    check_stages(experiment, experiment.stages)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(stage_checks.jax, "process_count", lambda: 4)
    monkeypatch.setattr(stage_checks, "process_rows", lambda mesh, size: np.arange(2))
    check_stages(experiment, experiment.stages)
    assert capsys.readouterr().err == (
        "warning: config.data.streams=1 for 4 processes: each reads 8 rows a step of stage2 and trains on "
        "2 of them; with one of 4, 8 it reads no more\n"
    )


@pytest.mark.parametrize("module", [janus_1b, janus_pro_1b, janus_pro_7b])
def test_the_papers_batches_are_shared_by_up_to_64_machines(module):
    config = module.get_config()
    for stage in config.stages.values():
        assert stage.batch_size % config.data.streams == 0
        for count in (1, 2, 8, 32, 64):
            rows = np.arange(stage.batch_size // count)
            read = streams_of(rows, config.data.streams, stage.batch_size)
            assert len(read) == config.data.streams // count
