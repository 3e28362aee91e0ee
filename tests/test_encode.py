"""Examples -> arrays: which weights, sources and pictures they get, and what happens to long ones."""

import numpy as np
import pytest
from dummies_data import PROCESSOR, TOKENIZER, WORDS, DummySource
from PIL import Image

from janus_jax.data import (
    SOURCES,
    Generation,
    Ledger,
    PackedShape,
    PairEncoder,
    PictureEncoder,
    Rejected,
    SequenceEncoder,
    SequenceTooLong,
    Text,
    Understanding,
    WeightedSource,
    make_source,
    mixed_batches,
    unpacked_batches,
)
from janus_jax.errors import UserError
from janus_jax.processing import sequence as seq

ROW = PackedShape(tokens=60, targets=20, und_images=2, gen_images=1)
RED = np.full((20, 20, 3), (255, 0, 0), np.uint8)
LONG = " ".join(WORDS[:40])


def encode(example, row=None, **options):
    return SequenceEncoder(PROCESSOR, row, **options)(example, np.random.default_rng(0))


def text_of(features):
    return TOKENIZER.decode(features["tokens"].tolist())


# What an example becomes


def test_weights_and_sources_are_those_of_the_example():
    und = Understanding(images=[RED], turns=[("w1", "w2 w3")], weight=0.5, source=3)
    features = encode(und)
    assert features["target_weights"].tolist() == [0.5] * 3  # w2 w3 EOS
    assert features["target_sources"].tolist() == [3] * 3 and not len(features["gen_weights"])
    gen = encode(Generation(prompt="w1", picture=RED, weight=2.0, source=1))
    assert gen["gen_weights"].tolist() == [2.0] and gen["gen_sources"].tolist() == [1]
    assert gen["target_weights"].dtype == gen["gen_weights"].dtype == np.float32


@pytest.mark.parametrize(
    "picture",
    [RED, Image.fromarray(RED), lambda: RED, lambda: Image.fromarray(RED).convert("RGBA")],
    ids=["array", "PIL", "made when needed", "with alpha"],
)
def test_pictures_come_in_several_forms(picture):
    features = encode(Understanding(images=[picture], turns=[("w1", "w2")]))
    assert features["und_images"].shape == (1, 16, 16, 3)
    assert (features["und_images"] == (255, 0, 0)).all()
    (drawn,) = encode(Generation(prompt="w1", picture=picture))["gen_images"]
    assert (drawn == (255, 0, 0)).all()


def test_pictures_that_only_lengths_need_are_not_opened():
    def fail():
        raise AssertionError("opened")

    for example in (
        Understanding(images=[fail], turns=[("w1", "w2")]),
        Generation(prompt="w1", picture=fail),
    ):
        blank = encode(example, blank=True)
        assert not blank["und_images"].any() and not blank["gen_images"].any()


def test_questions_name_their_pictures_or_the_first_has_all():
    blue = RED[..., ::-1]
    first = Understanding(images=[RED, blue], turns=[("w1", "w2"), ("w3", "w4")])
    later = Understanding(
        images=[RED, blue], turns=[("w1", "w2"), ("<image_placeholder> w3", "w4")]
    )
    for example, before in ((first, 2), (later, 1)):
        features = encode(example)
        assert (features["token_types"] == seq.TOKEN_UND).sum() == 18
        answered = int(features["target_positions"][0])
        assert (features["token_types"][:answered] == seq.TOKEN_UND).sum() == 9 * before
        assert (features["und_images"][1] == (0, 0, 255)).all()
    turns = [("w1", "w2"), ("<image_placeholder><image_placeholder> w3", "w4")]
    assert encode(Understanding(images=[RED], turns=turns)) == Rejected(
        "more <image> than pictures", "the questions name 2 pictures, the example has 1"
    )


def test_a_bad_picture_is_a_rejected_record():
    def gone():
        raise FileNotFoundError(2, "No such file or directory", "a.jpg")

    def outside():
        return Rejected("path leaves image_root", "../a.jpg")

    for picture, reason, detail in (
        (b"no picture", "picture cannot be read", ""),
        (gone, "picture cannot be read", "a.jpg"),
        (outside, "path leaves image_root", "../a.jpg"),
    ):
        for found in (
            encode(Understanding(images=[RED, picture], turns=[("w1", "w2")])),
            encode(Generation(prompt="w1", picture=picture, dropout_draw=0.5)),
            PictureEncoder(PROCESSOR)(Generation(prompt="w1", picture=picture)),
            PairEncoder(PROCESSOR, 5)(Generation(prompt="w1", picture=picture)),
        ):
            assert isinstance(found, Rejected) and found.reason == reason
            assert detail in found.detail and "\n" not in found.detail


def test_a_system_prompt_of_the_example_comes_first():
    for example in (
        Understanding(images=[RED], turns=[("w1", "w2")], system="w9 w8"),
        Text(turns=[("w1", "w2")], system="w9 w8"),
    ):
        assert text_of(encode(example)).startswith("w9 w8")
    assert not text_of(encode(Text(turns=[("w1", "w2")]))).startswith("w9")


def test_words_stand_where_a_picture_would():
    shown = encode(Text(turns=[("w1", "w2")], picture_words="w5 w6"))
    ids = shown["tokens"].tolist()
    begin, end = ids.index(TOKENIZER.boi_id), ids.index(TOKENIZER.eoi_id)
    assert TOKENIZER.decode(ids[begin + 1 : end]) == "w5 w6"
    assert shown["target_positions"][0] > end
    drawn = encode(Text(turns=[("w1", "w5 w6")], asks_to_draw=True))
    ids = drawn["tokens"].tolist()
    assert drawn["target_positions"][0] == ids.index(TOKENIZER.boi_id)
    assert TOKENIZER.decode(drawn["target_ids"].tolist()) == "w5 w6"
    assert set(drawn["target_tasks"].tolist()) == {seq.TASK_TEXT}


def test_a_source_may_fix_whose_prompt_is_dropped():
    prompt = lambda draw, rate, rng=None: SequenceEncoder(PROCESSOR, condition_dropout=rate)(
        Generation(prompt="w1 w2", picture=RED, dropout_draw=draw), rng
    )["tokens"].tolist()
    dropped = lambda ids: TOKENIZER.pad_id in ids
    assert dropped(prompt(0.05, 0.1)) and not dropped(prompt(0.15, 0.1))
    assert not dropped(prompt(0.0, 0.0)) and not dropped(prompt(None, 0.0))
    rng = np.random.default_rng(0)
    assert 60 < sum(dropped(prompt(None, 0.1, rng)) for _ in range(800)) < 105
    with pytest.raises(UserError, match="needs a random generator"):
        prompt(None, 0.1)


def test_codes_take_the_place_of_pixels():
    codes = np.arange(36)
    gen = encode(Generation(prompt="w1", codes=codes), codes=True)
    assert gen["gen_codes"].dtype == np.int32 and gen["gen_codes"].tolist() == [codes.tolist()]
    assert "gen_images" not in gen and len(gen["gen_starts"]) == 1
    und = encode(Understanding(images=[RED], turns=[("w1", "w2")]), codes=True)
    assert und["gen_codes"].shape == (0, 36) and "gen_images" not in und
    for example, options in (
        (Generation(prompt="w1", picture=RED), {"codes": True}),
        (Generation(prompt="w1", codes=codes), {}),
    ):
        with pytest.raises(UserError, match="must all have pictures or all have codes"):
            encode(example, **options)
    for wrong in (np.arange(35), np.zeros(36)):
        found = encode(Generation(prompt="w1", codes=wrong), codes=True)
        assert found.reason == "codes do not fit the model" and "36 integers" in found.detail
    for wrong in (codes - 1, codes + 20):  # an embedding would clip them in silence
        found = encode(Generation(prompt="w1", codes=wrong), codes=True, codebook_size=41)
        assert "must be from 0 to 40, not from" in found.detail


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Generation(prompt="w1"), "either a picture or its codes"),
        (lambda: Generation(prompt="w1", picture=RED, codes=np.arange(36)), "either a picture"),
        (lambda: Text(), "either plain text or a conversation"),
        (lambda: Text(text="w1", turns=[("w1", "w2")]), "either plain text or a conversation"),
        (lambda: Understanding(images=[], turns=[("w1", "w2")]), "a picture and a turn"),
        (lambda: Understanding(images=[RED], turns=[]), "a picture and a turn"),
        (lambda: Text(text="w1", weight=-1.0), "weight of an example"),
        (lambda: Text(text="w1", weight=float("nan")), "weight of an example"),
        (lambda: encode({"text": "w1"}), "gave dict, which is no example"),
        (lambda: PictureEncoder(PROCESSOR)(Text(text="w1")), "stage 0 trains on generation"),
        (lambda: SequenceEncoder(PROCESSOR, too_long="drop"), "too_long must be one of"),
    ],
)
def test_what_is_no_example_is_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


# What is too long


def test_what_is_too_long_is_an_error_by_default():
    with pytest.raises(SequenceTooLong, match=r"\(targets: 41, room for 20\)"):
        encode(Text(text=LONG), ROW)
    with pytest.raises(SequenceTooLong, match=r"und_images: 3, room for 2"):
        encode(Understanding(images=[RED] * 3, turns=[("w1", "w2")]), PackedShape(99, 9, 2, 1))


def test_what_is_too_long_can_be_left_out():
    encoder = SequenceEncoder(PROCESSOR, ROW, too_long="reject")
    examples = [Text(text=LONG), Text(text="w1"), Text(turns=[("w1", LONG)])]
    found = [encoder(e) for e in examples]
    assert [isinstance(f, Rejected) for f in found] == [True, False, True]
    assert found[0] == Rejected("longer than a row", "targets: 41, room for 20")


def test_answers_can_be_shortened():
    encoder = SequenceEncoder(PROCESSOR, ROW, too_long="truncate_answer")
    plain, was_shortened = encoder.encode(Text(text=LONG))
    assert was_shortened and len(plain["tokens"]) == 21 and len(plain["target_ids"]) == 20
    turns = [("w1", "w2"), ("w3", LONG), ("w4", "w5")]
    shortened, was_shortened = encoder.encode(Understanding(images=[RED], turns=turns))
    assert was_shortened and len(shortened["target_ids"]) == 20
    whole = SequenceEncoder(PROCESSOR)(Understanding(images=[RED], turns=turns))
    length = len(shortened["tokens"])
    np.testing.assert_array_equal(shortened["tokens"], whole["tokens"][:length])
    np.testing.assert_array_equal(
        shortened["target_positions"], whole["target_positions"][: len(shortened["target_ids"])]
    )
    # A question that fills the row leaves nothing to shorten, nor does a prompt with its codes.
    for example in (
        Text(turns=[(LONG + " " + LONG, "w1")]),
        Generation(prompt=LONG, picture=RED, dropout_draw=0.5),
    ):
        found = encoder(example)
        assert found.reason == "longer than a row" and "room for 60" in found.detail
    whole, was_shortened = encoder.encode(Text(turns=[("w1", "w2")]))
    assert not was_shortened and whole["target_ids"][-1] == TOKENIZER.eos_id


def test_a_picture_of_a_turn_that_is_left_out_is_left_out_too():
    turns = [("w1", LONG), ("<image_placeholder> w3", "w4")]
    encoder = SequenceEncoder(PROCESSOR, ROW, too_long="truncate_answer")
    features = encoder(Understanding(images=[RED, RED], turns=turns))
    assert len(features["und_images"]) == 1
    assert (features["token_types"] == seq.TOKEN_UND).sum() == 9


@pytest.mark.parametrize("policy", ["reject", "truncate_answer"])
def test_batches_go_on_without_what_is_too_long(policy):
    sources = [WeightedSource("text", DummySource("text", longest=40, chat=False))]
    encoder, ledger = SequenceEncoder(PROCESSOR, ROW, too_long=policy), Ledger(limit=0.01)
    iterator = iter(mixed_batches(sources, (0.0, 1.0, 0.0), encoder, ROW, 4, ledger=ledger))
    lengths = [int(next(iterator)["target_weights"].sum(1).max()) for _ in range(5)]
    assert max(lengths) <= 20
    tally = ledger.totals()["text 0"]
    # What a policy asks for is counted, and no fault of the data.
    assert (tally.rejected["longer than a row"] > 0) == (policy == "reject")
    assert (tally.shortened > 0) == (policy == "truncate_answer")


def test_an_error_in_a_reading_thread_keeps_its_kind():
    sources = [WeightedSource("text", DummySource("text", longest=40, chat=False))]
    encoder = SequenceEncoder(PROCESSOR, ROW)
    iterator = iter(mixed_batches(sources, (0.0, 1.0, 0.0), encoder, ROW, 4, threads=2))
    with pytest.raises(SequenceTooLong, match="room for 20"):
        next(iterator)


# Several sources of one task


def shares(sources, ratio, batches=12):
    """Share of the sequences of each source, counted by their last targets and pictures."""
    encoder = SequenceEncoder(PROCESSOR)
    row = PackedShape(tokens=160, targets=96, und_images=4, gen_images=3)
    iterator = iter(mixed_batches(sources, ratio, encoder, row, 8))
    counts = np.zeros(len(sources))
    for _ in range(batches):
        batch = next(iterator)
        ends = (batch["target_ids"] == TOKENIZER.eos_id) & (batch["target_weights"] > 0)
        counts += np.bincount(batch["target_sources"][ends], minlength=len(sources))
        drawn = batch["gen_weights"] > 0
        counts += np.bincount(batch["gen_sources"][drawn], minlength=len(sources))
    return counts / counts.sum()


def test_sources_of_a_task_share_its_part_by_weight():
    sources = [
        WeightedSource("gen", DummySource("gen"), 1.0),
        WeightedSource("text", DummySource("text"), 3.0),
        WeightedSource("text", DummySource("text", seed=1), 1.0),
        WeightedSource("text", DummySource("text", seed=2), 0.0),
        WeightedSource("und", DummySource("und"), 1.0),
    ]
    found = shares(sources, (0.0, 3.0, 2.0))
    np.testing.assert_allclose(found, [2 / 5, 9 / 20, 3 / 20, 0, 0], atol=0.03)
    assert found[3] == found[4] == 0  # no weight, no part in the ratio


def test_two_sources_of_one_kind_give_different_examples():
    same = [WeightedSource("text", DummySource("text")) for _ in range(2)]
    encoder = SequenceEncoder(PROCESSOR)
    row = PackedShape(tokens=40, targets=40, und_images=0, gen_images=0)
    batch = next(iter(mixed_batches(same, (0.0, 1.0, 0.0), encoder, row, 8)))
    first = batch["tokens"][batch["target_sources"][:, 0] == 0]
    second = batch["tokens"][batch["target_sources"][:, 0] == 1]
    assert len(first) and len(second)
    assert not {t.tobytes() for t in first} & {t.tobytes() for t in second}


def test_stage_0_mixes_its_sources_too():
    sources = [
        WeightedSource("pairs", DummySource("pairs", seed=s), w) for s, w in ((0, 1.0), (1, 3.0))
    ]
    one = next(iter(unpacked_batches(sources, PairEncoder(PROCESSOR, 12), 16)))
    again = next(iter(unpacked_batches(sources, PairEncoder(PROCESSOR, 12), 16)))
    np.testing.assert_array_equal(one["text"], again["text"])
    alone = [
        next(iter(unpacked_batches([s], PairEncoder(PROCESSOR, 12), 16)))["text"] for s in sources
    ]
    first = {t.tobytes() for t in alone[0]}
    assert sum(t.tobytes() in first for t in one["text"]) == 4


def test_batches_hold_codes_where_the_data_does():
    sources = [
        WeightedSource("text", DummySource("text")),
        WeightedSource("gen", DummySource("gen", codes=36)),
    ]
    row = PackedShape(tokens=160, targets=96, und_images=0, gen_images=3)
    encoder = SequenceEncoder(PROCESSOR, row, codes=True)
    batch = next(iter(mixed_batches(sources, (0.0, 1.0, 1.0), encoder, row, 4, codes=True)))
    assert batch["gen_codes"].shape == (4, 3, 36) and batch["gen_codes"].dtype == np.int32
    assert "gen_images" not in batch
    drawn = batch["gen_weights"] > 0
    assert drawn.any() and batch["gen_codes"][drawn].any(-1).all()
    assert not batch["gen_codes"][~drawn].any()


# The registry


def test_sources_of_ones_own_plug_in_by_name():
    SOURCES.register("dummy", DummySource)
    source = make_source("dummy", "text", {"longest": 5}, seed=3)
    assert source[4].text == DummySource("text", seed=3, longest=5)[4].text
    with pytest.raises(UserError, match=r"^config\.x: no source 'dumy'.*Did you mean 'dummy'"):
        make_source("dumy", "text", {}, where="config.x")
    with pytest.raises(UserError, match=r"no option 'longst'\. Did you mean 'longest'"):
        make_source("dummy", "text", {"longst": 5})
    with pytest.raises(UserError, match="has no examples"):
        make_source("dummy", "text", {"size": 0})
