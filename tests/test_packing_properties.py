"""Packing any sequences: what comes out is what went in, whole, once, and nothing else has weight."""

from collections import Counter

import grain
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data import PackedShape, pack
from janus_jax.processing import sequence as seq

SETTINGS = settings(max_examples=50, deadline=None, derandomize=True)
ROW = PackedShape(tokens=24, targets=12, und_images=3, gen_images=2)
LOOKAHEADS = st.sampled_from([0, 1, 3, 8])
IMAGE, PATCHES, CODES, SIDE = 9, 2, 4, 2  # id of an image position; positions of a picture

ids = lambda minimum, maximum: st.lists(st.integers(10, 99), min_size=minimum, max_size=maximum)
texts = st.builds(lambda t: ("text", t), ids(2, ROW.targets))
pictures = st.builds(lambda p, n: ("gen", p, n), ids(2, 8), st.integers(0, 255))
conversations = st.builds(
    lambda turns, n: ("und", turns, n),
    st.lists(st.tuples(ids(1, 3), ids(1, 3)), min_size=1, max_size=3),
    st.integers(0, 255),
)


def features(example):
    """The sequence of one example; the colour of its picture says which it is."""
    kind, content, *rest = example
    if kind == "text":
        return seq.text_sequence(content, SIDE, SIDE)
    image = np.full((SIDE, SIDE, 3), rest[0], np.uint8)
    if kind == "gen":
        return seq.generation_sequence(content, IMAGE, CODES, image, SIDE)
    (first, answer), *later = content
    turns = [([1, *[IMAGE] * PATCHES, *first], answer), *later]
    return seq.conversation(turns, IMAGE, image[None], SIDE)


def describe(sequence):
    """A sequence of `processing.sequence` as something that can be counted."""
    return (
        tuple(sequence["tokens"].tolist()),
        tuple(sequence["token_types"].tolist()),
        tuple(sequence["target_ids"].tolist()),
        tuple(sequence["target_positions"].tolist()),
        tuple(sequence["gen_starts"].tolist()),
        tuple(image.tobytes() for image in sequence["und_images"]),
        tuple(image.tobytes() for image in sequence["gen_images"]),
    )


def unpack(row):
    """The sequences of one packed row, found by segment."""
    found, shown = [], 0
    for segment in range(1, row["segment_ids"].max(initial=0) + 1):
        (where,) = np.nonzero(row["segment_ids"] == segment)
        first, length = int(where[0]), len(where)
        assert where.tolist() == list(range(first, first + length))  # in one piece
        assert row["positions"][where].tolist() == list(range(length))
        inside = lambda positions, a=first, n=length: (positions >= a) & (positions < a + n)
        target = (row["target_weights"] > 0) & inside(row["target_positions"])
        drawn = (row["gen_weights"] > 0) & inside(row["gen_starts"])
        types = row["token_types"][where]
        images = (types == seq.TOKEN_UND).sum() // PATCHES  # in the order of their positions
        found.append(
            {
                "tokens": row["tokens"][where],
                "token_types": types,
                "target_ids": row["target_ids"][target],
                "target_positions": row["target_positions"][target] - first,
                "gen_starts": row["gen_starts"][drawn] - first,
                "und_images": row["und_images"][shown : shown + images],
                "gen_images": row["gen_images"][drawn],
            }
        )
        shown += images
    return found


def packed_rows(examples, batch_size, lookahead):
    """Rows of all batches; fillers at the end, since a last batch that is not full is left out."""
    filler = seq.text_sequence([7] * ROW.tokens, SIDE, SIDE, first_target=ROW.tokens)
    sequences = [features(e) for e in examples] + [filler] * 2 * batch_size
    dataset = grain.MapDataset.source(sequences).to_iter_dataset()
    for batch in pack(dataset, ROW, batch_size, lookahead=lookahead):
        for i in range(batch_size):
            yield {name: values[i] for name, values in batch.items()}


@SETTINGS
@given(
    st.lists(st.one_of(texts, pictures, conversations), max_size=12), st.integers(1, 3), LOOKAHEADS
)
def test_unpacking_gives_back_every_sequence(examples, batch_size, lookahead):
    wanted = Counter(describe(features(e)) for e in examples)
    rows = list(packed_rows(examples, batch_size, lookahead))
    found = Counter(describe(s) for row in rows for s in unpack(row) if s["tokens"][0] != 7)
    assert found == wanted


@SETTINGS
@given(
    st.lists(st.one_of(texts, pictures, conversations), max_size=12), st.integers(1, 3), LOOKAHEADS
)
def test_only_targets_of_a_sequence_have_weight(examples, batch_size, lookahead):
    wanted = [features(e) for e in examples]
    rows = list(packed_rows(examples, batch_size, lookahead))
    assert sum(row["target_weights"].sum() for row in rows) == sum(
        len(s["target_ids"]) for s in wanted
    )
    assert sum(row["gen_weights"].sum() for row in rows) == sum(
        len(s["gen_starts"]) for s in wanted
    )
    for row in rows:
        for weights, where in (
            ("target_weights", "target_positions"),
            ("gen_weights", "gen_starts"),
        ):
            assert set(np.unique(row[weights])) <= {0.0, 1.0}
            assert (row["segment_ids"][row[where][row[weights] > 0]] > 0).all()
        empty = row["segment_ids"] == 0
        assert not row["tokens"][empty].any() and not row["token_types"][empty].any()
