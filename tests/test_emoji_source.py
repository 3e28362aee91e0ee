"""Emoji scenes as a source: what its examples say, and how they are laid out for the model."""

import re

import numpy as np
import pytest

from janus_jax import emoji as es
from janus_jax.configs import janus_tiny
from janus_jax.data import PairEncoder, PictureEncoder, SequenceEncoder, make_source
from janus_jax.emoji.source import EmojiSource
from janus_jax.emoji.tokenizer import word_tokenizer
from janus_jax.errors import UserError
from janus_jax.processing import Processor, ProcessorConfig
from janus_jax.processing import sequence as seq

WORLD = es.World()
TOKENIZER = word_tokenizer()
# Pictures smaller than the model's: the layout is the same.
PROCESSOR = Processor(
    ProcessorConfig(und_image_size=16, gen_image_size=16, num_image_tokens=9, num_codes=36),
    TOKENIZER,
)
CHAT = dict(describe=0.1, chat=True)
TASKS = ("und", "text", "gen")


class Encoded:
    """The arrays of a source's examples."""

    def __init__(self, examples, encode):
        self._examples, self._encode = examples, encode

    def __getitem__(self, index):
        return self._encode(self._examples[index])


def source(task, processor=PROCESSOR, condition_dropout=0.1, **options):
    encode = {
        "pictures": lambda: PictureEncoder(processor),
        "pairs": lambda: PairEncoder(processor, 40),
    }.get(task, lambda: SequenceEncoder(processor, condition_dropout=condition_dropout))()
    return Encoded(EmojiSource(task, **options), encode)


@pytest.mark.parametrize("kind", TASKS)
def test_records_have_the_layout_of_their_kind(kind):
    tok = TOKENIZER
    for record in (source(kind, **mix)[i] for mix in ({}, CHAT) for i in range(60)):
        ids = record["tokens"].tolist()
        assert ids[0] == tok.bos_id and tok.bos_id not in ids[1:]
        targets = record["target_ids"].tolist()
        # Each target is the id right after its position.
        assert [ids[p + 1] for p in record["target_positions"]] == targets
        images = [i for i, t in enumerate(ids) if t == tok.image_id]
        if kind == "gen":
            start = int(record["gen_starts"][0])
            assert ids.index(tok.boi_id) == start and images == list(range(start + 1, start + 36))
            continue
        assert ids[-1] == tok.eos_id == targets[-1] and tok.eos_id not in ids[:-1]
        prompt = tok.token_id("<|Assistant|>") in ids
        assert prompt == (kind == "und" or tok.token_id("<|User|>") in ids)
        if prompt:
            end = ids.index(tok.token_id("<|Assistant|>")) + 1
            assert ids[end] == tok.token_id(":")
            end += ids[end + 1] == tok.boi_id  # a drawing in words
            assert record["target_positions"][0] == end
        else:
            assert record["target_positions"][0] == 0
        if kind == "und":
            first = ids.index(tok.boi_id)
            assert images == list(range(first + 1, first + 10)) and ids[first + 10] == tok.eoi_id


def test_chat_and_describe_decide_the_form():
    def share(mix, kind, test):
        return np.mean([test(source(kind, **mix)[i]["tokens"].tolist()) for i in range(200)])

    user = TOKENIZER.token_id("<|User|>")
    assert share({}, "text", lambda ids: user in ids) == 0
    assert share(CHAT, "text", lambda ids: user in ids) == 1
    asked = [TOKENIZER.encode(text) for text in es.DESCRIBE]
    describes = lambda ids: any(str(a)[1:-1] in str(ids) for a in asked)
    assert share({"describe": 1.0}, "und", describes) == 1
    assert share({"describe": 0.0}, "und", describes) == 0
    assert 0.2 < share({}, "und", describes) < 0.4


def test_text_conversations_have_words_where_pictures_would_be():
    names = {TOKENIZER.token_id(n) for n in (*WORLD.names, *es.BACKGROUNDS, *es.TINTS)}
    begin, end = TOKENIZER.boi_id, TOKENIZER.eoi_id
    for drawings in (0.0, 1.0):
        mix = dict(describe=0.3, questions=3, chat=True, drawings=drawings)
        for record in (source("text", **mix)[i] for i in range(50)):
            ids = record["tokens"].tolist()
            assert set(record["target_tasks"].tolist()) == {seq.TASK_TEXT}
            assert not len(record["und_images"]) and not len(record["gen_starts"])
            first = ids.index(begin)
            if drawings:  # as a request to draw: an answer of 36 words
                assert ids[first - 1] == TOKENIZER.token_id(":") and end not in ids
                assert set(ids[first + 1 : -1]) <= names and len(ids) - first == 38
                assert record["target_positions"].tolist() == list(range(first, len(ids) - 1))
            else:  # as a question about a picture: nine cells, some of two words
                last = ids.index(end)
                assert set(ids[first + 1 : last]) <= names and 10 <= last - first <= 12
                assert record["target_positions"][0] > last


def test_more_questions_can_ask_whether_something_is_there():
    user, there = TOKENIZER.token_id("<|User|>"), TOKENIZER.token_id("is")

    def share(yes_no):
        mix = dict(describe=0.0, questions=5, yes_no=yes_no)
        turns = asked = 0
        for record in (source("und", **mix)[i] for i in range(200)):
            ids = record["tokens"].tolist()
            turns += ids.count(user)
            first = ids.index(TOKENIZER.eoi_id) + 1
            starts = [first, *(i + 2 for i, t in enumerate(ids) if t == user and i > first)]
            asked += sum(ids[i] == there for i in starts)
        return asked / turns

    assert share(0.0) < 0.3 < 0.5 < share(0.6) < 0.8


def test_detailed_captions_tell_everything():
    mix = dict(detailed=1.0, describe=1.0, condition_dropout=0.0)
    objects = {TOKENIZER.token_id(n) for n in WORLD.names}
    colours = {TOKENIZER.token_id(b) for b in es.BACKGROUNDS}
    asked = [str(TOKENIZER.encode(text))[1:-1] for text in es.DESCRIBE_IN_DETAIL]
    longest = 0
    for kind in ("und", "gen"):
        for record in (source(kind, **mix)[i] for i in range(100)):
            ids = record["tokens"].tolist()
            assert colours & set(ids)  # the background is always named
            assert (kind == "und") == any(a in str(ids) for a in asked)
            longest = max(longest, sum(i in objects for i in ids))
    assert longest == 6  # two thirds of the cells
    half = dict(detailed=0.5, describe=1.0)
    told = [
        any(a in str(source("und", **half)[i]["tokens"].tolist()) for a in asked)
        for i in range(200)
    ]
    assert 0.4 < np.mean(told) < 0.6


def test_a_conversation_asks_several_different_questions():
    mix = dict(describe=0.0, questions=4)
    user, eos = TOKENIZER.token_id("<|User|>"), TOKENIZER.eos_id
    counts = []
    for record in (source("und", **mix)[i] for i in range(200)):
        ids = record["tokens"].tolist()
        turns = [i for i, t in enumerate(ids) if t == user]
        counts.append(len(turns))
        assert all(ids[i - 1] == eos for i in turns[1:]) and len(record["und_images"]) == 1
        assert record["target_ids"].tolist().count(eos) == len(turns)
        questions = [ids[i : ids.index(TOKENIZER.token_id("<|Assistant|>"), i)] for i in turns]
        assert len({str(q[-6:]) for q in questions}) == len(turns)
    assert max(counts) == 4 and np.mean(counts) > 2


def test_condition_dropout_leaves_bos_pads_boi():
    kept = source("gen", condition_dropout=0.0, seed=2)
    dropped = source("gen", seed=2)
    tok, count = TOKENIZER, 0
    for i in range(2000):
        ids, start = (r := dropped[i])["tokens"].tolist(), int(r["gen_starts"][0])
        if ids[1] != tok.pad_id:
            assert tok.pad_id not in ids
            continue
        count += 1
        assert ids[: start + 1] == [tok.bos_id] + [tok.pad_id] * (start - 1) + [tok.boi_id]
        # Everything else, the length above all, is as it was.
        full = kept[i]
        assert tok.pad_id not in full["tokens"]
        np.testing.assert_array_equal(full["gen_images"], r["gen_images"])
        np.testing.assert_array_equal(full["token_types"], r["token_types"])
        np.testing.assert_array_equal(full["gen_starts"], r["gen_starts"])
    assert 160 < count < 240  # 10 %, four standard deviations


def test_stage_0_records():
    picture = source("pictures")[0]["image"]
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    pair = source("pairs")[0]
    assert pair["text"].shape == (40,) and pair["text"].dtype == np.int32
    length = int((pair["text"] != TOKENIZER.pad_id).sum())
    assert (pair["text"][length:] == TOKENIZER.pad_id).all()
    assert TOKENIZER.decode(pair["text"][:length]).startswith("there is a")


def test_pictures_belong_to_their_words():
    # At full size the drawn scene can be read back: the picture of record i is the caption's.
    size = Processor(
        ProcessorConfig(und_image_size=48, gen_image_size=48, num_image_tokens=9, num_codes=36),
        TOKENIZER,
    )
    options = dict(kinds={"single_object": 1.0}, describe=1.0, condition_dropout=0.0)
    und, gen = (source(task, size, **options) for task in ("und", "gen"))
    for i in range(20):
        for record, image in ((und[i], "und_images"), (gen[i], "gen_images")):
            words = re.findall(r"\w+", TOKENIZER.decode(record["tokens"]))
            name = next(w for w in words if w in WORLD.names)
            drawn = [
                es.render(es.Scene("", b, (es.Placement(name, None, r, c),)), WORLD)
                for b in es.BACKGROUNDS
                for r in range(3)
                for c in range(3)
            ]
            assert any(np.array_equal(record[image][0], d) for d in drawn)


@pytest.mark.parametrize("kind", TASKS)
def test_every_sequence_fits_a_row_of_the_tiny_config(kind):
    room = janus_tiny.get_config().data.row
    stage3 = janus_tiny.get_config().stages.stage3.sources[kind].options.to_dict()
    mixes = ({}, stage3) if kind == "text" else ({},)
    longest = {"tokens": 0, "target_ids": 0}
    for mix in mixes:
        records = source(kind, seed=9, **mix)
        for i in range(700):
            record = records[i]
            longest = {k: max(n, len(record[k])) for k, n in longest.items()}
    assert longest["tokens"] <= room.tokens and longest["target_ids"] <= room.targets


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": {"jumping": 1.0}}, "options.kinds: no kind of scene 'jumping'"),
        ({"kinds": {"countin": 1.0}}, "Did you mean 'counting'"),
        ({"kinds": {"counting": 0.0}}, "at least one kind"),
        ({"kinds": {"counting": -1.0}}, "options.kinds.counting must be a weight"),
        ({"detailed": 1.5}, "options.detailed must be a share"),
        ({"yes_no": -0.1}, "options.yes_no must be a share"),
        ({"drawings": float("nan")}, "options.drawings must be a share"),
        ({"questions": 0}, "options.questions must be at least 1"),
        ({"world": {"grid": 5}}, "world.grid must be 2, 3 or 4"),
        ({"world": {"image_size": 47}}, "a multiple of it"),
        ({"world": {"objects": "tini"}}, "world.objects must be tiny or all"),
        ({"world": {"sides": 3}}, "world has no field 'sides'"),
        ({"descrbe": 0.1}, "no option 'descrbe'. Did you mean 'describe'"),
        ({"seed": 3}, "no option 'seed'"),
    ],
    ids=str,
)
def test_impossible_options_are_one_line(options, message):
    with pytest.raises(UserError, match=r"^config\.here: ") as error:
        make_source("emoji", "und", options, where="config.here")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_order_of_kinds_changes_nothing():
    kinds = {"counting": 2.0, "colors": 1.0, "position": 3.0}
    backwards = dict(reversed(kinds.items()))
    one, two = (EmojiSource("gen", kinds=k) for k in (kinds, backwards))
    assert [one[i].prompt for i in range(20)] == [two[i].prompt for i in range(20)]


def test_extremes_hold_what_is_rare_alone():
    rare = EmojiSource("text", detailed=0.01, describe=1.0, chat=True, drawings=0.01)
    parts = rare.extremes()
    assert len(parts) == 4  # detailed or not, drawings or not, always described
    drawing = [all(part[i].asks_to_draw for i in range(20)) for part in parts]
    assert sorted(drawing) == [False, False, True, True]
    assert len(EmojiSource("text").extremes()) == 1  # plain text: no share changes its length
