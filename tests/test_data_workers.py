"""Worker processes, orders and epochs: the same records whoever reads them, each as often as it should be."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from dummies_data import PROCESSOR, DummySource
from smoke import tiny
from test_mixture import RATIOS, ROW, Flawed, Labelled, Light

from janus_jax.data import (
    TASKS,
    Ledger,
    SequenceEncoder,
    WeightedSource,
    WorkerProcesses,
    mixed_batches,
    mixed_sequences,
    stream_batches,
)
from janus_jax.data.encode import EncodingMistake, SequenceTooLong
from janus_jax.data.order import MIXED_BLOCKS, BlockOrder, order_of
from janus_jax.errors import RunError, UserError
from janus_jax.run import batches, build

HERE = Path(__file__).resolve().parent


def sources():
    return [WeightedSource(t, Flawed(t) if t == "gen" else DummySource(t)) for t in TASKS]


def packed(stream, batch_size=1, threads=0, workers=None, ledger=None):
    encode = SequenceEncoder(PROCESSOR, ROW)
    return mixed_batches(
        sources(), RATIOS[0], encode, ROW, batch_size, 3, stream, threads, False, 4, ledger, workers
    )


def joined(workers):
    make = lambda **options: packed(workers=workers, **options)
    return iter(stream_batches(make, 2, 4, range(4)))


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_make_the_batches_that_threads_make(count):
    alone, workers = joined(None), WorkerProcesses(count)
    try:
        made = joined(workers)
        wanted = [next(alone) for _ in range(6)]
        assert all(same(next(made), batch) for batch in wanted[:4])
        state = made.get_state()
        again = joined(workers)
        again.set_state(state)
        assert all(same(next(again), batch) for batch in wanted[4:])
        assert again.get_state() == alone.get_state()
    finally:
        workers.close()


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ten_thousand_sequences_keep_the_ratio_with_any_number_of_processes(ratio, count):
    of = [WeightedSource(t, Light(1000 + 700 * i, 0.3 * (i == 2))) for i, t in enumerate(TASKS)]
    workers, ledger = WorkerProcesses(count), Ledger()
    try:
        made = iter(mixed_sequences(of, ratio, Labelled(), ledger=ledger, workers=workers))
        tasks = np.array([next(made)["task"] for _ in range(10_000)])
    finally:
        workers.close()
    shares = np.array(ratio) / sum(ratio)
    counts = np.cumsum(tasks[:, None] == np.arange(3), axis=0)
    assert np.abs(counts - shares * np.arange(1, 10_001)[:, None]).max() < 3
    assert np.abs(counts[-1] / 10_000 - shares).max() <= 1e-3
    assert ledger.totals()["gen 2"].left_out > 1000


def test_a_worker_that_is_killed_is_one_line():
    workers = WorkerProcesses(1)
    try:
        made = joined(workers)
        next(made)
        (worker,) = workers._pool._processes
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RunError, match=r"has died.*data\.workers"):
            for _ in range(200):
                next(made)
    finally:
        workers.close()


def test_the_other_workers_end_when_one_is_killed():
    workers = WorkerProcesses(2)
    read = workers.of_stream([], None, (0, 1))
    # The pid of a worker that is busy for a while, so that the next record is the other one's.
    ask = lambda: workers._pool.submit(subprocess.getoutput, "sleep 0.2; echo $PPID")
    pids = set()
    while len(pids) < 2:  # until both have started, and left SIGTERM to the parent
        pids.update(int(asked.result()) for asked in [ask(), ask()])
    last = int(ask().result())
    processes = list(workers._pool._processes.values())
    try:
        # The one that did not answer waits in the queue, and holds its lock.
        os.kill(*(pids - {last}), signal.SIGKILL)
        with pytest.raises((RunError, BrokenProcessPool)):
            for _ in range(10):
                read(0, 0).result()
        closing = threading.Thread(target=workers.close, daemon=True)
        closing.start()
        closing.join(10)
        assert not closing.is_alive(), "the other worker is waited for in vain"
        assert not any(process.is_alive() for process in processes)
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize("kind", [SequenceTooLong, EncodingMistake, UserError])
def test_an_error_comes_back_from_a_worker_as_it_is(kind):
    error = pickle.loads(pickle.dumps(kind("what is wrong")))
    assert type(error) is kind and str(error) == "what is wrong"


PARENT = """
import sys, time
from test_data_workers import WorkerProcesses, joined

if __name__ == "__main__":
    workers = WorkerProcesses(1)
    next(joined(workers))
    print(*workers._pool._processes, flush=True)
    time.sleep(60)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | paths) as parent:
        worker = int(parent.stdout.readline())
        for number in (signal.SIGTERM, signal.SIGINT):  # these are the parent's to answer
            os.kill(worker, number)
        time.sleep(0.2)
        os.kill(worker, 0)
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()


def test_a_run_reads_with_workers_what_it_reads_without():
    def first(count):
        config = tiny()
        config.data.workers = count
        experiment = build(config)
        stage = experiment.stages[-1]
        made = batches(experiment, stage)
        try:
            return [next(made) for _ in range(2)], made.get_state()
        finally:
            made.close()

    (alone, state), (shared, other) = first(0), first(1)
    assert all(same(*pair) for pair in zip(alone, shared, strict=True)) and state == other
    config = tiny()
    config.data.workers = -1
    with pytest.raises(UserError, match=r"data\.workers"):
        build(config)


# Orders


class Blocks:
    def __init__(self, starts, length):
        self.blocks, self._length = np.array(starts), length

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        raise AssertionError("an order reads nothing")


@pytest.mark.parametrize(
    ("starts", "length"),
    [([0, 3, 10, 11, 40, 41, 42], 50), ([*range(0, 1000, 7)], 1001), ([0, 1], 2)],
)
def test_every_epoch_of_a_block_order_has_every_record_once(starts, length):
    order = order_of(Blocks(starts, length), 5)
    assert isinstance(order, BlockOrder)
    epochs = [[order(e * length + i) for i in range(length)] for e in range(3)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    # Any position is reached at once, and is the same for all.
    again = order_of(Blocks(starts, length), 5)
    assert [again(2 * length + i) for i in range(length)] == epochs[2]
    if length > 2:
        assert epochs[0] != epochs[1] != list(range(length))
        assert [order_of(Blocks(starts, length), 6)(i) for i in range(length)] != epochs[0]


def test_a_block_order_stays_in_a_few_blocks_and_mixes_them():
    order = BlockOrder(np.arange(0, 1000, 10), 1000, seed=1)
    read = np.array([order(i) // 10 for i in range(1000)]).reshape(-1, 10 * MIXED_BLOCKS)
    assert all(len(set(group)) == MIXED_BLOCKS for group in read.tolist())
    assert all(len(set(group[:10])) > 1 for group in read.tolist())
    # Blocks that come together lie anywhere.
    assert np.mean([np.ptp(group) for group in read]) > 40


def test_records_may_be_read_in_their_order():
    order = order_of(DummySource("text"), 3, shuffle=False)
    length = len(DummySource("text"))
    assert [order(i) for i in range(2 * length)] == [*range(length)] * 2


# Epochs


def read(count, *of, threads=0, stream=(0, 1), ratio=(0, 1, 0), at=None):
    made = iter(mixed_sequences(of, ratio, Labelled(), threads=threads, stream=stream))
    if at is not None:
        made.set_state(at)
    found = []
    for _ in range(count):
        try:
            found.append(int(next(made)["task"]))
        except StopIteration:
            break
    state = made.get_state()
    made.close()
    return found, state


@pytest.mark.parametrize("threads", [0, 3])
def test_a_source_is_read_as_often_as_it_says_and_others_have_its_turns(threads):
    small = WeightedSource("text", Light(20, bad=0.3), weight=3.0, epochs=2)
    more = [WeightedSource("text", Light(1000), weight=w) for w in (1.0, 2.0)]
    found, _ = read(300, small, *more, threads=threads)
    used = sum(1 for i in range(20) if not i * 37 % 100 < 30) * 2
    assert found.count(0) == used
    end = max(i for i, source in enumerate(found) if source == 0)
    # Half of the turns until then, and none after.
    assert abs(used - (end + 1) / 2) <= 1
    left = np.array(found[end + 1 :])
    assert abs((left == 1).sum() - len(left) / 3) <= 2
    # From any position, whoever reads.
    for position in (0, end - 1, end, end + 5):
        _, state = read(position, small, *more, threads=3 - threads)
        again, _ = read(300 - position, small, *more, threads=threads, at=state)
        assert again == found[position:], position


def test_streams_share_the_epochs_of_a_source():
    limited = WeightedSource("text", Light(25), epochs=1.5)
    counts = [len(read(100, limited, stream=(i, 4))[0]) for i in range(4)]
    assert sum(counts) == 37 and max(counts) - min(counts) <= 1


def test_where_nothing_is_left_the_sequences_end():
    of = [WeightedSource("text", Light(7), epochs=1), WeightedSource("gen", Light(100))]
    found, _ = read(100, *of, ratio=(0, 1, 1), threads=2)
    assert len(found) in (14, 15) and found.count(0) == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(epochs=0), "epochs must be a finite number above 0"),
        (dict(epochs="two"), "epochs must be a finite number above 0"),
        (dict(shuffle=1), "shuffle must be true or false"),
        (dict(epochs=2), r"stage2\.sources: every source of the task 'und' has a limit of epochs"),
    ],
)
def test_bad_epochs_are_one_line(fields, message):
    config = tiny()
    source = next(s for s in config.stages.stage2.sources.values() if s.task == "und")
    with source.unlocked():
        source.update(fields)
    with pytest.raises(UserError, match=message):
        build(config)
