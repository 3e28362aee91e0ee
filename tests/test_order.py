"""The order of a source: every epoch another permutation, and of large sources the one it always had."""

import grain
import pytest

from janus_jax.data.order import order_of


@pytest.mark.parametrize("length", [1, 2, 3, 12, 127, 128, 300])
def test_every_epoch_has_every_record_once_in_another_order(length):
    order = order_of(range(length), seed=4)
    epochs = [[order(e * length + i) for i in range(length)] for e in range(6)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length > 2:
        assert len({tuple(epoch) for epoch in epochs}) > 1
    again = order_of(range(length), seed=4)
    assert [again(i) for i in reversed(range(6 * length))] == [
        i for epoch in reversed(epochs) for i in reversed(epoch)
    ]
    if length > 3:
        other = order_of(range(length), seed=5)
        assert [other(i) for i in range(6 * length)] != [i for epoch in epochs for i in epoch]


def test_few_records_come_in_all_orders():
    order = order_of(range(3), seed=0)
    found = {tuple(order(e * 3 + i) for i in range(3)) for e in range(60)}
    assert len(found) == 6


def test_a_large_source_has_the_order_of_earlier_versions():
    order, length = order_of(range(1000), seed=7), 1000
    grains = grain.MapDataset.source(range(length)).seed(7).shuffle().repeat()
    assert [order(i) for i in range(2 * length)] == [grains[i] for i in range(2 * length)]
    assert [order(3 * i + 1) for i in range(length)] == [grains[1::3][i] for i in range(length)]
