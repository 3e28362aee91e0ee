"""Which rows of the pool the server computes, on an engine that writes down who is where instead of computing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.inference.logits import SamplingParams
from janus_jax.serving.engine.pool import Pool, Start

SIZES = 1, 2, 5
SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)
LIMIT = 30


class Book:
    """Token i of a row is 1000 times the first id of its prompt, and i. Rows of nobody have wrong ones."""

    slots, steps, reads_filled = 100, 4, True

    def __init__(self):
        self.rows, self.moved = [], 0

    def empty(self, rows):
        return [-1] * rows

    def insert(self, pool, prompt, row):
        return [*pool[:row], prompt, *pool[row + 1 :]]

    def move(self, pool, source, target):
        assert source != target
        self.moved += 1
        return [*pool[:target], pool[source], *pool[target + 1 :]]

    def block(self, weights, pool, now, steps, rows, length):
        assert len(now.filled) == rows and length >= now.filled.max()
        self.rows.append(rows)
        order = now.drawn[:, None] + np.arange(self.steps)
        return pool, np.asarray(pool[:rows])[:, None] * 1000 + order


def begin(pool, place, name, limit=LIMIT):
    sampling = SamplingParams(1.0, 0.0, 1, 1.0)
    start = Start([name, 7], 0, 0, 0, sampling, False, limit)
    pool.start(place, start, lambda call: name)


def test_who_is_left_of_many_is_computed_alone():
    book = Book()
    pool = Pool(book, None, SIZES)
    for place in range(5):
        begin(pool, place, place)
    pool.advance()
    for place in range(4):
        pool.stop(place)
    (new,) = pool.advance().values()
    assert new.tolist() == [4004, 4005, 4006, 4007]
    begin(pool, 0, 9)
    assert {place: new[0] for place, new in pool.advance().items()} == {4: 4008, 0: 9000}
    assert (book.rows, book.moved) == ([5, 1, 2], 1)


def test_a_failed_move_loses_the_rows(monkeypatch):
    book = Book()
    pool = Pool(book, None, SIZES)
    for place in range(2):
        begin(pool, place, place)
    pool.stop(0)
    monkeypatch.setattr(book, "move", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pool.advance()
    assert not pool.intact
    pool.reset()
    begin(pool, 3, 5)
    assert pool.advance()[3].tolist() == [5000, 5001, 5002, 5003]


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from(["start", "stop", "go"]), st.integers(0, 4))))
def test_everybody_goes_on_where_it_was(steps):
    book, names, drawn = Book(), iter(range(1000)), {}
    pool = Pool(book, None, SIZES)
    for step, place in steps:
        if step == "start" and place not in drawn:
            drawn[place] = [next(names), 0]
            begin(pool, place, drawn[place][0], 1 + place * 5)
        elif step == "stop":
            pool.stop(place)
            drawn.pop(place, None)
        elif step == "go" and drawn:
            found = pool.advance()
            assert book.rows[-1] == next(size for size in SIZES if size >= len(drawn))
            assert found.keys() == drawn.keys()
            for number, new in found.items():
                name, before = drawn[number]
                assert new.tolist() == [1000 * name + before + i for i in range(len(new))]
                drawn[number][1] += len(new)
                if drawn[number][1] == 1 + number * 5:
                    pool.stop(number)
            drawn = {n: one for n, one in drawn.items() if one[1] < 1 + n * 5}
