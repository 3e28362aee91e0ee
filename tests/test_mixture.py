"""Mixtures with bad records: the ratio in every beginning, counts that survive a resume, and when to stop."""

import functools
import json

import numpy as np
import pytest
from dummies_data import PROCESSOR, DummySource
from smoke import tiny

from janus_jax.data import (
    SOURCES,
    TASKS,
    Ledger,
    PackedShape,
    Rejected,
    Rejection,
    SequenceEncoder,
    Tally,
    Text,
    TooManyRejected,
    WeightedSource,
    mixed_batches,
    mixed_sequences,
    stream_batches,
)
from janus_jax.data.encode import EncodingMistake
from janus_jax.data.interleave import Turns, picked, taken, whole_weights
from janus_jax.data.mixing import hundredths
from janus_jax.data.reading import Encoded
from janus_jax.errors import UserError
from janus_jax.run import batches, build
from janus_jax.run.rejected_log import RejectedLog
from janus_jax.run.stage_checks import check_stages

ROW = PackedShape(tokens=160, targets=96, und_images=4, gen_images=3)
SHORT = PackedShape(tokens=100, targets=60, und_images=2, gen_images=2)
RATIOS = [(5.0, 1.0, 4.0), (2.0, 3.0, 5.0), (7.0, 3.0, 10.0)]


class Flawed(DummySource):
    """A source some of whose records are bad, each for one of two reasons."""

    def __init__(self, task, seed=0, share=0.3, **options):
        super().__init__(task, seed, **options)
        self._share = share

    def __getitem__(self, index):
        # Spread by a fixed hash, so that shares are near any number of records.
        if (index * 2654435761 % 2**32) < self._share * 2**32:
            return Rejected("empty answer" if index % 3 else "bad role", f"number {index}")
        return super().__getitem__(index)

    def describe(self, index):
        return f"flawed.jsonl, line {index + 1}"


class Labelled:
    """Stands in for the encoder: what a sequence is of, without making one."""

    def encode(self, example, rng=None):
        return Encoded({"task": np.int32(example.source)})


class Light:
    """Examples without content."""

    def __init__(self, size=1000, bad=0.0):
        self._size, self._bad = size, bad

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        if index * 37 % 100 < self._bad * 100:
            return Rejected("empty answer")
        return Text(text="w1")


# Order


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ((7.0, 3.0, 10.0), [7, 3, 10]),
        ((0.7, 0.3, 1.0), [7, 3, 10]),
        ((100.0, 300.0), [1, 3]),
        ((1e-9, 1.0), [1, 10**9]),
        ((np.float32(0.5), 1), [1, 2]),
    ],
)
def test_weights_are_whole_as_they_are_written(weights, whole):
    assert whole_weights(weights) == whole


def test_turns_count_what_was_taken():
    weights, counts = [7, 3, 10, 1], np.zeros(4, int)
    for index in range(500):
        nth, before = picked(index, weights)
        assert before == counts[nth]
        counts[nth] += 1
        assert taken(index + 1, weights) == counts.tolist()
        assert np.abs(counts - (index + 1) * np.array(weights) / 21).max() < 2


def test_many_sources_of_a_task_leave_the_ratio_of_the_tasks_as_it_is():
    turns = Turns([2.0, 3.0], [[1.0] * 40, [0.1, 0.3, 7.0]])
    found = np.array([turns(i) for i in range(5000)])
    tasks = np.cumsum(found < 40)
    assert np.abs(tasks - 0.4 * np.arange(1, 5001)).max() <= 1
    # 3000 turns by 1 : 3 : 70
    assert np.abs(np.bincount(found)[40:] - np.array([1, 3, 70]) * 3000 / 74).max() < 2


QUICK = ((RATIOS[0], 0), (RATIOS[2], 2))


@pytest.mark.parametrize(
    ("ratio", "threads"),
    [
        pytest.param(ratio, threads, marks=() if (ratio, threads) in QUICK else pytest.mark.slow)
        for ratio in RATIOS
        for threads in (0, 1, 2, 4)
    ],
)
def test_rejected_records_take_no_share(ratio, threads):
    # Sizes that differ a lot, so that some sources are read again and again.
    sources = [
        WeightedSource("und", Light(500, bad=0.3)),
        WeightedSource("text", Light(9_000)),
        WeightedSource("gen", Light(1_000)),
    ]
    ledger = Ledger()
    iterator = iter(mixed_sequences(sources, ratio, Labelled(), threads=threads, ledger=ledger))
    found = np.array([next(iterator)["task"] for _ in range(10_000)])
    iterator.close()
    wanted = np.array(ratio) / sum(ratio)
    counts = np.cumsum(found[:, None] == np.arange(3), axis=0)
    assert np.abs(counts[-1] / 10_000 - wanted).max() < 0.001
    off = np.abs(counts - np.arange(1, 10_001)[:, None] * wanted)
    assert off.max() < 3
    tallies = ledger.totals()
    assert [tallies[f"{t} {i}"].used for i, t in enumerate(TASKS)] == counts[-1].tolist()
    bad = tallies["und 0"]
    assert bad.left_out / bad.seen == pytest.approx(0.3, abs=0.02)


def test_order_does_not_depend_on_threads_nor_on_other_sources():
    def taken_of(task, sources, **options):
        encode = SequenceEncoder(PROCESSOR)
        iterator = iter(mixed_sequences(sources, (1.0, 1.0, 2.0), encode, **options))
        made = [next(iterator) for _ in range(120)]
        iterator.close()
        return [
            s["tokens"].tobytes() for s in made if (s["gen_starts"].size > 0) == (task == "gen")
        ]

    good = [WeightedSource(task, DummySource(task)) for task in TASKS]
    flawed = [WeightedSource("und", Flawed("und")), *good[1:]]
    wanted = taken_of("gen", good, threads=0)
    assert taken_of("gen", good, threads=3) == wanted
    # Neither its examples nor which prompts are dropped.
    assert taken_of("gen", flawed, threads=2) == wanted


# Positions


def flawed_batches(lookahead=0, ledger=None, **options):
    sources = [
        WeightedSource("gen", Flawed("gen", size=300), 1.0),
        WeightedSource("text", DummySource("text"), 3.0),
        WeightedSource("text", Flawed("text", seed=1, share=0.6), 1.0),
        WeightedSource("und", Flawed("und", size=50)),
    ]
    encode = SequenceEncoder(PROCESSOR, SHORT)
    made = lambda **o: mixed_batches(
        sources, RATIOS[2], encode, SHORT, lookahead=lookahead, ledger=ledger, **o
    )
    return iter(stream_batches(made, 2, 2, range(2), **options))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("lookahead", [0, pytest.param(5, marks=pytest.mark.slow)])
def test_any_of_fifty_positions_is_restored_exactly(lookahead):
    states, made, counts = [], [], []
    ledger = Ledger(streams=2)
    iterator = flawed_batches(lookahead, ledger, threads=0)
    for _ in range(62):
        states.append(json.dumps(iterator.get_state()))
        made.append(next(iterator))
        counts.append({k: (t.used, dict(t.rejected)) for k, t in ledger.totals().items()})
    again_ledger = Ledger(streams=2)
    again = flawed_batches(lookahead, again_ledger, threads=0)
    ahead = flawed_batches(lookahead, threads=4)
    points = np.random.default_rng(0).permutation(60)[:50]
    assert any(t.left_out for t in ledger.totals().values())
    for nth, at in enumerate(points):
        one = ahead if nth % 2 else again
        one.set_state(json.loads(states[at]))
        assert all(same(next(one), made[at + i]) for i in range(2)), at
        if one is again:
            found = {k: (t.used, dict(t.rejected)) for k, t in again_ledger.totals().items()}
            assert found == counts[at + 1], at
    ahead.close()


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1)])
def test_another_number_of_processes_goes_on_with_the_same_counts(before, after):
    def job(count):
        sources = [
            WeightedSource("text", DummySource("text")),
            WeightedSource("gen", Flawed("gen")),
        ]
        encode, found = SequenceEncoder(PROCESSOR, SHORT), []
        for rows in np.split(np.arange(4), count):
            ledger = Ledger(streams=4)
            made = functools.partial(
                mixed_batches, sources, (0.0, 1.0, 1.0), encode, SHORT, ledger=ledger
            )
            found.append((iter(stream_batches(made, 4, 4, rows, 0)), ledger))
        return found

    def steps(processes, count):
        parts = [[next(i)["tokens"] for i, _ in processes] for _ in range(count)]
        return [np.concatenate(rows) for rows in parts]

    def counts(processes):
        total = Tally()
        for _, ledger in processes:
            total.add(ledger.totals()["gen 1"])
        return total

    wanted = steps(alone := job(1), 7)
    found = steps(first := job(before), 3)
    states = [iterator.get_state()["streams"] for iterator, _ in first]
    streams = {index: state for each in states for index, state in each.items()}
    second = job(after)
    for iterator, _ in second:
        iterator.set_state({"streams": streams})
    np.testing.assert_array_equal(np.stack(found + steps(second, 4)), np.stack(wanted))
    tally = counts(second)
    assert tally == counts(alone) and tally.left_out > 3
    assert tally.seen == tally.used + sum(tally.rejected.values())


def test_what_an_earlier_version_saved_goes_on():
    def at(position, threads=1):
        sources = [WeightedSource(task, DummySource(task)) for task in TASKS]
        encode = SequenceEncoder(PROCESSOR, ROW, condition_dropout=0.0)
        iterator = iter(mixed_sequences(sources, RATIOS[0], encode, threads=threads))
        if position:
            iterator.set_state(position)
        made = [next(iterator) for _ in range(40)]
        iterator.close()
        return made

    assert all(map(same, at({"next_index": 17}), [*at(None)[17:], *at({"next_index": 40})[:17]]))
    # Where the order is another one, what each source had given is not given again.
    assert hundredths([7.0, 3.0, 10.0])(666) == [233, 100, 333]


# Too much


def limited(source, limit=0.01, count=4000, **options):
    ledger = Ledger(limit, where="run/rejected.jsonl", **options)
    sources = [WeightedSource("text", source, label="talk")]
    iterator = iter(mixed_sequences(sources, (0.0, 1.0, 0.0), Labelled(), threads=0, ledger=ledger))
    for _ in range(count):
        next(iterator)
    return ledger.totals()["talk"]


def test_a_source_with_too_many_bad_records_ends_the_run():
    with pytest.raises(TooManyRejected) as error:
        limited(Flawed("text", share=0.02, chat=False))
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("source talk: ")
    seen = int(message.split(" of the ")[1].split()[0])
    assert 1000 <= seen < 1300  # the first bad one after a thousand records
    assert "most of them: empty answer" in message and "run/rejected.jsonl lists them" in message
    assert "--config.data.max_rejected=0.0" in message
    # Below the limit it goes on, and a thousand records are looked at, not the first few.
    assert limited(Flawed("text", share=0.008)).left_out > 10
    assert limited(Flawed("text", share=0.02), limit=0.05).left_out > 40


def test_a_small_source_is_judged_by_its_first_epoch():
    with pytest.raises(TooManyRejected, match=r"talk: 1\d of the 1\d\d records"):
        limited(Light(100, bad=0.1))
    assert limited(Light(100, bad=0.1), limit=0.2).left_out > 300


@pytest.mark.parametrize("limit", [0.01, 1.0])
@pytest.mark.parametrize("size", [1, 30])
def test_a_source_without_a_usable_record_ends_the_run(size, limit):
    with pytest.raises(TooManyRejected, match=r"source talk.*all of them: empty answer"):
        limited(Light(size, bad=1.0), limit)


def test_a_mistake_of_the_config_is_no_bad_record():
    sources = [WeightedSource("gen", DummySource("gen", codes=36))]
    encode = SequenceEncoder(PROCESSOR, ROW)
    iterator = iter(mixed_sequences(sources, (0.0, 0.0, 1.0), encode, threads=2))
    with pytest.raises(EncodingMistake, match="must all have pictures or all have codes"):
        next(iterator)
    iterator.close()


def test_what_a_source_raises_for_a_record_is_a_rejection():
    class Raising(Light):
        def __getitem__(self, index):
            return Text(text="w1" if index % 200 else "")

    tally = limited(Raising())
    assert tally.rejected == {"no example": tally.left_out} and tally.left_out > 10


# In a run


def flawed_run(size=5000, share=0.005, **fields):
    SOURCES.register("flawed", Flawed)
    options = dict(size=size, share=share, side=48)
    config = tiny(stage_order=("stage2",), data__streams=2, **fields)
    # Only words that the built-in tokenizer knows: pictures to draw, from one source of three.
    config.stages.stage2.sources.gen = {"name": "flawed", "task": "gen", "options": options}
    config.stages.stage2.condition_dropout = 1.0
    return build(config)


def test_rejected_records_are_listed_once_whatever_is_read_again(tmp_path):
    experiment = flawed_run(size=200, share=0.1, data__max_rejected=1.0)
    (stage,) = experiment.stages
    for _ in range(2):
        iterator = batches(experiment, stage, tmp_path)
        state = iterator.get_state()
        for _ in range(3):
            next(iterator)
        iterator.set_state(state)
        for _ in range(16):
            next(iterator)
        assert 0 < iterator.rejected_share() < 0.2
        iterator.close()
    records = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    keys = [(r["source"], r["index"]) for r in records]
    assert len(set(keys)) == len(keys) > 10
    assert records[0].keys() == {"stage", "source", "index", "record", "reason", "detail"}
    for record in records:
        assert record["record"] == f"flawed.jsonl, line {record['index'] + 1}"
        assert record["detail"] == f"number {record['index']}"
        assert {record["stage"], record["source"]} == {"stage2", "gen"}


def test_half_a_line_that_a_kill_left_is_no_harm(tmp_path, capsys):
    path = tmp_path / "rejected.jsonl"
    RejectedLog(tmp_path, "stage1")(Rejection("a", 1, "record 1", "r", ""))
    path.write_bytes(path.read_bytes() + b'{"stage": "st')
    log = RejectedLog(tmp_path, "stage1")
    log(Rejection("a", 1, "record 1", "r", ""))
    log(Rejection("a", 2, "record 2", "r", ""))
    RejectedLog(tmp_path, "stage2")(Rejection("a", 1, "record 1", "r", ""))
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and [json.loads(lines[i])["index"] for i in (0, 2, 3)] == [1, 2, 1]


def test_the_run_stops_with_one_line(tmp_path):
    experiment = flawed_run(size=40, share=0.5)
    iterator = batches(experiment, experiment.stages[0], tmp_path)
    with pytest.raises(UserError, match=r"^stage2: source gen: .*rejected\.jsonl lists them"):
        for _ in range(60):
            next(iterator)
    iterator.close()


def test_a_source_that_begins_with_bad_records_only_is_refused_at_the_start():
    experiment = flawed_run(share=1.0)
    with pytest.raises(UserError, match=r"sources\.gen: none of the first 100 records.*number 0"):
        check_stages(experiment, experiment.stages)
    check_stages(flawed := flawed_run(share=0.5), flawed.stages)
