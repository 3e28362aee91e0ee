"""Rows chosen from the sequences ahead: full, nothing put off for ever, any position restored."""

import itertools
import json

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.train.packing_fill import Setting, measure
from janus_jax.data.lookahead import LookaheadPackIterDataset, choose

SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)
ROOM = np.array([20, 6])
sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6)), min_size=1, max_size=8)


@SETTINGS
@given(sizes)
def test_a_row_holds_the_first_sequence_and_no_more_than_fits(found):
    chosen = choose(np.array(found), ROOM)
    assert chosen[0] == 0 and chosen == sorted(set(chosen))
    assert (np.array(found)[chosen].sum(0) <= ROOM).all()


@SETTINGS
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8))
def test_no_other_choice_fills_a_row_better(tokens):
    chosen = choose(np.array([(n, 0) for n in tokens]), ROOM)
    rest = range(1, len(tokens))
    every = (c for k in range(len(tokens)) for c in itertools.combinations(rest, k))
    sums = (tokens[0] + sum(tokens[i] for i in c) for c in every)
    assert sum(tokens[i] for i in chosen) == max(s for s in sums if s <= ROOM[0])


def rows(lengths, lookahead):
    def make(index):
        return {"tokens": np.full(lengths[index], index + 1), "extra": np.zeros(lengths[index] % 2)}

    dataset = grain.MapDataset.range(len(lengths)).map(make).to_iter_dataset()
    room = {"tokens": 20, "extra": 3}
    return iter(LookaheadPackIterDataset(dataset, room, ("tokens", "extra"), lookahead))


def numbers(row):
    """Which sequences are in a row."""
    return [int(n) for n in dict.fromkeys(row["tokens"][row["tokens_segment_ids"] > 0])]


LENGTHS = np.random.default_rng(0).integers(1, 21, 200).tolist()


@pytest.mark.parametrize("lookahead", [1, 2, 9])
def test_every_sequence_is_used_once_and_soon(lookahead):
    found = [numbers(row) for row in rows(LENGTHS, lookahead)]
    assert sorted(itertools.chain(*found)) == list(range(1, 201))
    used = 0
    for made, row in enumerate(found):
        assert max(row) <= min(used + lookahead, 200)  # no further than it may look
        used += len(row)
        # What could be seen `lookahead` rows ago is in a row by now.
        seen = sum(map(len, found[: made - lookahead + 1])) + lookahead
        gone = set(itertools.chain(*found[: made + 1]))
        assert made < lookahead or gone >= set(range(1, min(seen, 200) + 1))


@pytest.mark.parametrize("after", [0, 1, 2, 17, 80])
def test_a_position_is_restored_wherever_it_was(after):
    iterator = rows(LENGTHS, 9)
    for _ in range(after):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    wanted = [numbers(row) for row in iterator]
    again = rows(LENGTHS, 9)
    again.set_state(state)
    assert again.get_state() == state  # before anything is read
    again.set_state(state)
    assert [numbers(row) for row in again] == wanted and wanted


def test_rows_as_long_as_those_of_the_paper_are_full():
    ahead = measure(Setting(4096, 2048, lookahead=32), (2, 3, 5), rows=96, batch=32)
    first_fit = measure(Setting(4096, 2048, bins=4), (2, 3, 5), rows=96, batch=32)
    assert ahead["fill"] > 0.97 > 0.9 > first_fit["fill"]
    assert ahead["longest_wait_rows"] <= 32
