"""Sequences, packing and mixing: nothing lost, nothing shifted, the ratios kept, any position restored."""

import grain
import numpy as np
import pytest
from dummies_data import PROCESSOR, TOKENIZER, DummySource

from janus_jax import data
from janus_jax.data import (
    TASKS,
    PackedShape,
    PairEncoder,
    PictureEncoder,
    SequenceEncoder,
    WeightedSource,
    mixed_batches,
    pack,
    unpacked_batches,
)
from janus_jax.processing import sequence as seq

ROW = PackedShape(tokens=160, targets=96, und_images=4, gen_images=3)


def one_a_task(**options):
    return [WeightedSource(task, DummySource(task, **options)) for task in TASKS]


def batches(ratio, batch_size=8, sources=None, encode=None, **kwargs):
    sources = sources or one_a_task(seed=kwargs.get("seed", 0))
    encode = encode or SequenceEncoder(PROCESSOR, ROW)
    return iter(mixed_batches(sources, ratio, encode, ROW, batch_size, **kwargs))


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# Sequences


def test_text_predicts_every_id_after_the_first():
    features = seq.text_sequence([1, 20, 21, 22, 2], 16, 16)
    assert features["target_ids"].tolist() == [20, 21, 22, 2]
    assert features["target_positions"].tolist() == [0, 1, 2, 3]
    assert features["target_tasks"].tolist() == [seq.TASK_TEXT] * 4
    assert features["token_types"].tolist() == [seq.TOKEN_TEXT] * 5
    assert features["und_images"].shape == (0, 16, 16, 3)
    assert features["gen_images"].shape == (0, 16, 16, 3) and len(features["gen_starts"]) == 0
    masked = seq.text_sequence([1, 20, 21, 22, 2], 16, 16, first_target=3)
    assert masked["target_ids"].tolist() == [22, 2]
    assert masked["target_positions"].tolist() == [2, 3]


def test_understanding_predicts_the_answer_alone():
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    turns = [([1, 9, 9, 30, 9, 9, 31], [40, 41, 2])]
    features = seq.conversation(turns, 9, images, 8)
    assert features["tokens"].tolist() == [1, 9, 9, 30, 9, 9, 31, 40, 41, 2]
    assert features["token_types"].tolist() == [0, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    assert features["target_ids"].tolist() == [40, 41, 2]
    assert features["target_positions"].tolist() == [6, 7, 8]  # the first from the last prompt id
    assert features["target_tasks"].tolist() == [seq.TASK_UND] * 3
    np.testing.assert_array_equal(features["und_images"], images)
    assert features["gen_images"].shape == (0, 8, 8, 3)


def test_later_turns_predict_their_answers_too():
    images = np.zeros((1, 4, 4, 3), np.uint8)
    turns = [([1, 9, 9, 31], [40, 2]), ([50, 51, 31], [41, 42, 2])]
    features = seq.conversation(turns, 9, images, 8)
    assert features["tokens"].tolist() == [1, 9, 9, 31, 40, 2, 50, 51, 31, 41, 42, 2]
    assert features["target_ids"].tolist() == [40, 2, 41, 42, 2]
    assert features["target_positions"].tolist() == [3, 4, 8, 9, 10]
    assert features["target_tasks"].tolist() == [seq.TASK_UND] * 5


def test_generation_starts_at_boi_and_feeds_all_codes_but_the_last():
    image = np.full((8, 8, 3), 7, np.uint8)
    features = seq.generation_sequence([1, 30, 31, 3], 9, 36, image, 4)
    assert features["tokens"].tolist() == [1, 30, 31, 3] + [9] * 35
    assert features["token_types"].tolist() == [seq.TOKEN_TEXT] * 4 + [seq.TOKEN_GEN] * 35
    assert features["gen_starts"].tolist() == [3]  # the hidden state at BOI gives code 0
    assert len(features["target_ids"]) == len(features["target_positions"]) == 0
    np.testing.assert_array_equal(features["gen_images"], image[None])
    assert features["und_images"].shape == (0, 4, 4, 3)


# Packing


def segments(row):
    """A packed row taken apart again: one dict of features a segment."""
    found = []
    und = 0
    for segment in range(1, row["segment_ids"].max() + 1):
        at = np.flatnonzero(row["segment_ids"] == segment)
        assert (np.diff(at) == 1).all()  # in one piece
        start = at[0]
        np.testing.assert_array_equal(row["positions"][at], np.arange(len(at)))
        weighted = row["target_weights"] > 0
        mine = weighted & np.isin(row["target_positions"], at)
        drawn = (row["gen_weights"] > 0) & np.isin(row["gen_starts"], at)
        slots = row["token_types"][at]
        pictures = int((slots == seq.TOKEN_UND).sum()) // 9
        found.append(
            {
                "tokens": row["tokens"][at],
                "token_types": slots,
                "target_ids": row["target_ids"][mine],
                "target_positions": row["target_positions"][mine] - start,
                "target_tasks": row["target_tasks"][mine],
                "target_weights": row["target_weights"][mine],
                "target_sources": row["target_sources"][mine],
                "gen_starts": row["gen_starts"][drawn] - start,
                "gen_weights": row["gen_weights"][drawn],
                "gen_sources": row["gen_sources"][drawn],
                # Pictures lie in the order of their positions.
                "und_images": row["und_images"][und : und + pictures],
                "gen_images": row["gen_images"][drawn],
            }
        )
        und += pictures
    return found


def rows_of(batch):
    count = len(batch["tokens"])
    return [{name: array[i] for name, array in batch.items()} for i in range(count)]


def test_packed_rows_hold_exactly_the_sequences():
    encode, rng = SequenceEncoder(PROCESSOR, ROW), np.random.default_rng(0)
    originals = [encode(DummySource(TASKS[i % 3])[i], rng) for i in range(90)]
    dataset = grain.MapDataset.source(originals).to_iter_dataset()
    packed = [row for batch in pack(dataset, ROW, 4) for row in rows_of(batch)]
    found = [s for row in packed for s in segments(row)]
    left = list(originals)
    for features in found:
        match = next(i for i, o in enumerate(left) if same(features, o))
        left.pop(match)
    # Only what did not fill the last batch may be missing.
    assert len(left) < 20 and len(packed) % 4 == 0 and len(packed) >= 16
    assert len(found) > 2 * len(packed)


def test_packed_rows_weigh_nothing_where_they_are_empty():
    batch = next(batches((2.0, 3.0, 5.0)))
    shapes = {k: (v.shape[1:], v.dtype.name) for k, v in batch.items()}
    assert shapes == {
        **dict.fromkeys(("tokens", "token_types", "segment_ids", "positions"), ((160,), "int32")),
        **dict.fromkeys(("target_ids", "target_positions", "target_tasks"), ((96,), "int32")),
        "target_sources": ((96,), "int32"),
        "target_weights": ((96,), "float32"),
        "und_images": ((4, 16, 16, 3), "uint8"),
        "gen_images": ((3, 16, 16, 3), "uint8"),
        "gen_starts": ((3,), "int32"),
        "gen_sources": ((3,), "int32"),
        "gen_weights": ((3,), "float32"),
    }
    for row in rows_of(batch):
        empty = row["segment_ids"] == 0
        assert (row["token_types"][empty] == seq.TOKEN_TEXT).all() and (
            row["tokens"][empty] == 0
        ).all()
        assert set(np.unique(row["target_weights"])) <= {0.0, 1.0}
        assert set(np.unique(row["gen_weights"])) <= {0.0, 1.0}
        total = {s["tokens"][0] for s in segments(row)}
        assert total == {TOKENIZER.bos_id}
        # Every text target is the next id of the same segment.
        used = row["target_weights"] > 0
        at = row["target_positions"][used]
        np.testing.assert_array_equal(row["tokens"][at + 1], row["target_ids"][used])
        np.testing.assert_array_equal(row["segment_ids"][at + 1], row["segment_ids"][at])
        assert used.sum() == sum(len(s["target_ids"]) for s in segments(row))
        starts = row["gen_starts"][row["gen_weights"] > 0]
        assert (row["tokens"][starts] == TOKENIZER.boi_id).all()
        assert row["gen_weights"].sum() == (row["token_types"] == seq.TOKEN_GEN).sum() / 35


def test_rows_are_well_filled():
    batch_iter = batches((2.0, 3.0, 5.0))
    used = np.mean([np.mean(next(batch_iter)["segment_ids"] > 0) for _ in range(5)])
    assert used > 0.8


# Mixture


def kinds_of(batch):
    """How many sequences of each task a batch holds."""
    found = [s for row in rows_of(batch) for s in segments(row)]
    gen = sum(len(s["gen_starts"]) for s in found)
    und = sum(len(s["und_images"]) for s in found)
    return np.array([und, len(found) - und - gen, gen])


@pytest.mark.parametrize("ratio", [(2, 3, 5), (1, 0, 3), (5, 1, 4)])
def test_sequences_are_mixed_by_ratio(ratio):
    iterator = batches(tuple(map(float, ratio)), batch_size=16)
    counts = sum(kinds_of(next(iterator)) for _ in range(12))
    assert counts.sum() > 400
    # Exact but for the sequences that still wait in open rows.
    np.testing.assert_allclose(counts / counts.sum(), np.array(ratio) / sum(ratio), atol=0.02)
    assert (counts == 0).tolist() == [w == 0 for w in ratio]


@pytest.mark.parametrize(("ratio", "streams"), [((1, 0, 3), 4), ((2, 3, 5), 2)])
def test_every_stream_has_the_same_mixture(ratio, streams):
    wanted = np.array(ratio) / sum(ratio)
    for index in range(streams):
        iterator = batches(tuple(map(float, ratio)), batch_size=16, stream=(index, streams))
        counts = sum(kinds_of(next(iterator)) for _ in range(4))
        np.testing.assert_allclose(counts / counts.sum(), wanted, atol=0.06, err_msg=str(index))


def test_streams_and_seeds_see_different_examples():
    def first(**kwargs):
        return next(batches((0.0, 1.0, 0.0), batch_size=4, **kwargs))

    texts = lambda batch: {s["tokens"].tobytes() for r in rows_of(batch) for s in segments(r)}
    one, two = (texts(first(stream=(i, 2))) for i in range(2))
    assert len(one & two) <= 1  # short texts can repeat by chance
    assert len(texts(first()) & texts(first(seed=1))) <= 1
    assert same(first(), first())


def test_unpacked_batches_stack_records():
    pairs = [WeightedSource("pairs", DummySource("pairs"))], PairEncoder(PROCESSOR, 40)
    one = next(iter(unpacked_batches(*pairs, 6)))
    assert one["image"].shape == (6, 16, 16, 3) and one["text"].shape == (6, 40)
    assert same(one, next(iter(unpacked_batches(*pairs, 6))))
    assert not same(one, next(iter(unpacked_batches(*pairs, 6, seed=1))))
    halves = [next(iter(unpacked_batches(*pairs, 3, stream=(i, 2)))) for i in range(2)]
    together = {t.tobytes() for half in halves for t in half["text"]}
    assert together == {t.tobytes() for t in one["text"]}


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_restored_iterator_goes_on_with_the_same_batches(after):
    iterator = batches((2.0, 3.0, 5.0), batch_size=4)
    for _ in range(after):
        next(iterator)
    state = iterator.get_state()
    wanted = [next(iterator) for _ in range(3)]
    again = batches((2.0, 3.0, 5.0), batch_size=4)
    again.set_state(state)
    for batch in wanted:
        assert same(next(again), batch)


def test_a_restored_unpacked_iterator_goes_on_with_the_same_batches():
    pictures = [WeightedSource("pictures", DummySource("pictures"))]
    make = lambda: iter(unpacked_batches(pictures, PictureEncoder(PROCESSOR), 4))
    iterator = make()
    next(iterator)
    state = iterator.get_state()
    wanted = [next(iterator) for _ in range(2)]
    again = make()
    again.set_state(state)
    assert all(same(next(again), batch) for batch in wanted)


def test_reading_threads_do_not_change_the_order():
    one, many = (batches((2.0, 3.0, 5.0), batch_size=4, threads=n) for n in (1, 4))
    assert all(same(next(one), next(many)) for _ in range(3))


def test_what_is_offered_is_imported_when_it_is_used():
    assert set(data.__all__) == set(data._MODULE_OF)
    for name in data.__all__:
        assert getattr(data, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'packs'"):
        data.packs  # noqa: B018
