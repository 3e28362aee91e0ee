"""The world of emoji scenes: the same on every machine, nothing held out in training, true words."""

import re
import zlib

import numpy as np
import pytest

from janus_jax import emoji as es
from janus_jax.data import PairEncoder, PictureEncoder, SequenceEncoder
from janus_jax.emoji.source import EmojiSource
from janus_jax.processing import Processor, ProcessorConfig, build_word_tokenizer

WORLD = es.World()
PINNED = 4120511122  # checksum of what is held out
EVERY_TASK = (*es.SCENE_KINDS, "mixed", "dense")
CONFIG = ProcessorConfig(
    und_image_size=16, gen_image_size=16, num_image_tokens=4, num_codes=4, cfg_weight=1.0
)
COUNT = {"two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def processor():
    return Processor(CONFIG, build_word_tokenizer(es.vocabulary(WORLD)))


def scenes(task, count, held_out=False, seed=5):
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        yield es.random_scene(rng, WORLD, task, held_out), rng


class Encoded:
    """The arrays of a source's examples."""

    def __init__(self, task, processor, **options):
        self._examples = EmojiSource(task, **options)
        encoders = {"pictures": PictureEncoder, "pairs": lambda p: PairEncoder(p, 64)}
        self._encode = encoders.get(task, SequenceEncoder)(processor)

    def __getitem__(self, index):
        return self._encode(self._examples[index])


def pairs(names):
    names = set(names)
    return {(a, b) for a in names for b in names if a < b}


def tints(scene):
    return {(p.name, p.tint) for p in scene.placements if p.tint}


def test_split_sizes_and_that_the_split_never_changes():
    assert len(WORLD.names) == 32 and len(es.TINTS) == 5
    assert len(WORLD.held_out_pairs) == 49  # of 32 * 31 / 2 = 496
    assert len(WORLD.held_out_tints) == 16  # of 32 * 5 = 160
    assert all(a < b for a, b in WORLD.held_out_pairs)
    # Every tint is held out for about as many objects, no object loses two.
    counts = [sum(t == tint for _, t in WORLD.held_out_tints) for tint in es.TINTS]
    assert min(counts) >= 3 and len({n for n, _ in WORLD.held_out_tints}) == 16
    # Another machine must hold out the same ones.
    digest = zlib.crc32(repr([sorted(WORLD.held_out_pairs), sorted(WORLD.held_out_tints)]).encode())
    assert digest == PINNED


@pytest.mark.parametrize("task", EVERY_TASK)
def test_training_scenes_never_show_what_is_held_out(task):
    seen = set()
    for scene, _ in scenes(task, 3000):
        assert pairs(p.name for p in scene.placements).isdisjoint(WORLD.held_out_pairs)
        assert tints(scene).isdisjoint(WORLD.held_out_tints)
        seen |= tints(scene)
    if task in ("colors", "color_attr", "mixed", "dense"):
        assert len(seen) == 160 - 16  # nothing else is missing


def test_held_out_scenes_show_only_what_is_held_out():
    for task in ("two_object", "position", "color_attr"):
        seen = set()
        for scene, _ in scenes(task, 600, held_out=True):
            seen |= pairs(p.name for p in scene.placements)
            assert tints(scene).isdisjoint(WORLD.held_out_tints)
        assert seen == WORLD.held_out_pairs
    seen = set().union(*(tints(s) for s, _ in scenes("colors", 600, held_out=True)))
    assert seen == WORLD.held_out_tints


@pytest.mark.parametrize("task", EVERY_TASK)
def test_scenes_are_well_formed(task):
    size = {"counting": {2, 3, 4}, "single_object": {1}, "colors": {1}}
    size |= {"mixed": {1, 2, 3, 4}, "dense": set(range(2, 7))}
    for scene, _ in scenes(task, 300):
        cells = [(p.row, p.column) for p in scene.placements]
        assert len(set(cells)) == len(cells) and {*sum(cells, ())} <= set(range(WORLD.grid))
        assert len(cells) in size.get(task, {2})
        names, colours = [p.name for p in scene.placements], [p.tint for p in scene.placements]
        assert scene.background in es.BACKGROUNDS and set(names) <= set(WORLD.names)
        if task == "counting":
            assert len(set(names)) == 1
        if task in ("two_object", "position", "color_attr"):
            assert len(set(names)) == 2
        if task in ("single_object", "two_object", "counting", "position"):
            assert set(colours) == {None}
        if task in ("colors", "color_attr"):
            assert None not in colours and len(set(colours)) == len(colours)
        assert (scene.relation is not None) == (task == "position")


def test_relations_by_hand():
    # (row, column): row 0 is the top.
    assert es.relation_between((1, 0), (1, 2)) == "left of"
    assert es.relation_between((1, 2), (1, 0)) == "right of"
    assert es.relation_between((0, 1), (2, 1)) == "above"
    assert es.relation_between((2, 1), (0, 1)) == "below"
    assert es.relation_between((2, 0), (1, 2)) == "left of"  # two across, one down
    assert es.relation_between((0, 0), (1, 1)) is None
    assert es.relation_between((1, 1), (1, 1)) is None
    for name, (down, right) in es.RELATIONS.items():
        assert es.relation_between((1 + down, 1 + right), (1, 1)) == name
        assert es.relation_between((1 - down, 1 - right), (1, 1)) == es.OPPOSITE[name]


def test_relations_of_drawn_scenes():
    seen = set()
    for scene, _ in scenes("position", 300):
        a, b = scene.placements
        down, right = a.row - b.row, a.column - b.column
        wanted = {
            "left of": right < 0 and abs(right) > abs(down),
            "right of": right > 0 and abs(right) > abs(down),
            "above": down < 0 and abs(down) > abs(right),
            "below": down > 0 and abs(down) > abs(right),
        }
        assert [name for name, holds in wanted.items() if holds] == [scene.relation]
        seen.add(scene.relation)
    assert seen == set(es.RELATIONS)


def test_places_by_thirds():
    row = ("top", "", "bottom")
    column = ("left", "", "right")
    for r in range(3):
        for c in range(3):
            assert es.place(r, c, 3) == (f"{row[r]} {column[c]}".strip() or "centre")
    assert [es.place(r, 1, 4) for r in range(4)] == ["top", "centre", "centre", "bottom"]


def test_pictures_show_each_sprite_in_its_cell_and_the_background_elsewhere():
    scene = next(s for s, _ in scenes("two_object", 1))
    picture = es.render(scene, WORLD)
    assert picture.shape == (48, 48, 3) and picture.dtype == np.uint8
    used = {(p.row, p.column): p for p in scene.placements}
    for row in range(3):
        for column in range(3):
            cell = picture[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].astype(float)
            background = np.array(es.BACKGROUNDS[scene.background], float)
            if (row, column) not in used:
                assert (cell == background).all()
                continue
            sprite = WORLD.sprite(used[row, column].name, used[row, column].tint)
            wanted = sprite[..., 3:] * sprite[..., :3] + (1 - sprite[..., 3:]) * background
            np.testing.assert_allclose(cell, wanted, atol=1.0)
            assert np.abs(cell - background).max() > 30


def test_every_sprite_differs_from_every_other():
    keys = [(n, t) for n in WORLD.names for t in (None, *es.TINTS)]
    flat = np.stack([(s := WORLD.sprite(*k))[..., :3] * s[..., 3:] for k in keys])
    flat = flat.reshape(len(keys), -1) / 255.0
    square = np.square(flat).sum(-1)
    distance = square[:, None] + square - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    assert distance.min() / flat.shape[1] > 1e-4


def parse_caption(text):
    """A caption back into (number or None, [(tint, name)], relation, background), on its own."""
    text = re.sub(r"^a (photo|picture) of ", "", text)
    background = re.search(r" on an? (\w+) background$", text)
    text = text[: background.start()] if background else text
    relation = next((r for r in es.RELATIONS if re.search(rf" (to the )?{r} ", text)), None)
    split = rf" (?:to the )?{relation} " if relation else " (?:and|with) "
    things, number = [], None
    for part in re.split(split, text):
        first, *words = part.split()
        if first in COUNT:
            number = COUNT[first]
        else:
            assert first == "one" or first == ("an" if words[0][0] in "aeiou" else "a"), text
        if len(words) == 4 and words[1:3] == ["that", "is"]:
            words = [words[3], words[0]]
        things.append((words[0] if len(words) == 2 else None, words[-1]))
    return number, things, relation, background and background[1]


@pytest.mark.parametrize("task", (*es.SCENE_KINDS, "mixed"))
def test_captions_are_true(task):
    texts = set()
    for scene, rng in scenes(task, 400):
        text = es.caption(scene, rng)
        number, things, relation, background = parse_caption(text)
        truth = [(p.tint, p.name) for p in scene.placements]
        if task == "counting":
            assert number == len(truth) and things == [(None, es.plural(truth[0][1]))], text
        else:
            assert number is None and sorted(things, key=str) == sorted(truth, key=str), text
        if task == "position":
            a, b = (next(p for p in scene.placements if p.name == n) for _, n in things)
            assert es.relation_between((a.row, a.column), (b.row, b.column)) == relation, text
        else:
            assert relation is None
        assert background in (None, scene.background)
        texts.add(text)
        assert "background" not in es.caption(scene, rng, background=0.0)
    assert len(texts) > 80  # many wordings


def right_answer(question, scene):
    """The answer from the cells alone."""
    text, by_name = question.text, {p.name: p for p in scene.placements}
    plurals = {es.plural(p.name): p.name for p in scene.placements}
    words = text.rstrip("?").split()
    if question.kind == "background":
        return scene.background
    if question.kind == "how_many":
        names = [p.name for p in scene.placements]
        return ["zero", "one", "two", "three", "four"][names.count(plurals[words[2]])]
    if question.kind == "yes_no":
        return "yes" if words[-1] in by_name else "no"
    if question.kind == "colour":
        return by_name[words[-1]].tint
    if question.kind == "where":
        p = by_name[words[-1]]
        name = f"{['top', '', 'bottom'][p.row]} {['left', '', 'right'][p.column]}".strip()
        return name or "centre"
    if question.kind == "relation":
        other = by_name[words[-1]]
        down, right = es.RELATIONS[" ".join(words[2:-2])]
        found = [
            p.name
            for p in scene.placements
            if p is not other
            and (down * (p.row - other.row) > 0 or right * (p.column - other.column) > 0)
        ]
        assert len(found) == 1
        return es.article(found[0])
    if scene.kind == "counting":
        return f"{['two', 'three', 'four'][len(scene.placements) - 2]} {next(iter(plurals))}"
    ordered = sorted(scene.placements, key=lambda p: 3 * p.row + p.column)
    return " and ".join(es.article(f"{p.tint or ''} {p.name}".strip()) for p in ordered)


@pytest.mark.parametrize("kind", es.QUESTION_KINDS)
def test_answers_are_right(kind):
    answers = set()
    for task in dict.fromkeys(es.SCENES_OF_QUESTION[kind]):
        for scene, rng in scenes(task, 250):
            asked = es.question(scene, kind, rng, WORLD)
            assert asked.kind == kind and asked.text.endswith("?")
            assert asked.answer == right_answer(asked, scene), (asked, scene)
            answers.add(asked.answer)
    least = {"yes_no": 2, "how_many": 4, "colour": 5, "where": 9, "relation": 32}
    least["background"] = len(es.BACKGROUNDS)
    assert len(answers) >= least.get(kind, 100)


def test_yes_and_no_are_equally_likely():
    asked = [es.question(s, "yes_no", rng, WORLD) for s, rng in scenes("two_object", 1000)]
    assert 0.45 < np.mean([a.answer == "yes" for a in asked]) < 0.55


def cells_of(scene, grid=3):
    """The words of every cell, in reading order."""
    cells = [[scene.background]] * grid**2
    for p in scene.placements:
        cells[grid * p.row + p.column] = [*filter(None, [p.tint]), p.name]
    return cells


def test_pictures_in_words_and_descriptions_list_every_cell():
    orders = set()
    for scene, rng in scenes("mixed", 200):
        words = es.picture_in_words(scene, WORLD)
        assert words.split() == [word for cell in cells_of(scene) for word in cell]
        described = es.description(scene, WORLD)
        for p in scene.placements:
            thing = es.article(" ".join(filter(None, [p.tint, p.name])))
            assert f"{thing} {es.place(p.row, p.column, 3)}" in described
        assert described.endswith(f" {scene.background} background.")
        text = es.fact(scene, rng, WORLD)
        orders.add(text.startswith("there is"))
        assert text in (f"{described} picture: {words}.", f"picture: {words}. {described}")
    assert orders == {True, False}


def test_drawings_in_words_have_one_word_for_each_code():
    tinted = 0
    for scene, _ in scenes("color_attr", 100):
        words = np.array(es.drawing_in_words(scene, WORLD).split()).reshape(6, 6)
        for i, cell in enumerate(cells_of(scene)):
            row, column = divmod(i, 3)
            shown = words[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert shown.tolist() == [(cell * 2)[:2]] * 2
            tinted += len(cell) == 2
    assert tinted == 200


@pytest.mark.parametrize("world", [WORLD, es.World(96, 4, "all")], ids=["tiny", "all"])
def test_every_word_is_in_the_vocabulary(world):
    tokenizer = build_word_tokenizer(es.vocabulary(world))
    texts = [*es.DESCRIBE, *es.DESCRIBE_IN_DETAIL]
    for name in world.names:  # each in every form
        texts += [es.plural(name), *(es.article(es.thing(name, t)) for t in (None, *es.TINTS))]
    rng = np.random.default_rng(0)
    for i in range(3000 if world is WORLD else 300):
        task = (*es.SCENE_KINDS, "mixed")[i % 7]
        scene = es.random_scene(rng, world, task, held_out=world is WORLD and i % 2 == 0)
        texts += [f(scene, rng, world) for f in (es.fact, lambda s, r, _: es.caption(s, r))]
        texts.append(es.description(scene, world))
        for kind in es.QUESTION_KINDS:
            if scene.kind in es.SCENES_OF_QUESTION[kind]:
                asked = es.question(scene, kind, rng, world)
                texts += [asked.text, asked.answer]
    assert tokenizer.unknown_words(" ".join(texts)) == []
    if world is WORLD:
        # Lower case and one space between words, so that answers survive a round trip.
        for text in texts[:2000]:
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_records_depend_on_index_seed_and_stream_alone(processor):
    make = lambda kind, seed=3: Encoded(kind, processor, seed=seed)
    for kind in ("und", "text", "gen", "pictures", "pairs"):
        mix_source = make(kind)
        first = [mix_source[i] for i in (7, 2, 7)]
        again = make(kind)[7]
        for name, array in again.items():
            np.testing.assert_array_equal(array, first[0][name])
            np.testing.assert_array_equal(array, first[2][name])
        for other in (make(kind)[8], make(kind, seed=4)[7]):
            assert any(not np.array_equal(a, other[name]) for name, a in again.items()), kind
    # The same index of two kinds is not the same scene.
    drawn = [make("pictures")[i]["image"] for i in range(10)]
    same = [np.array_equal(a, make("gen")[i]["gen_images"][0]) for i, a in enumerate(drawn)]
    assert sum(same) < 3


@pytest.fixture(scope="module")
def records(processor):
    """Kind -> the ids of some thousands of training records."""
    draw, every = dict.fromkeys(es.SCENE_KINDS, 1.0), dict.fromkeys((*es.SCENE_KINDS, "mixed"), 1.0)
    choices = {
        "und": [
            dict(kinds=draw),
            dict(kinds=draw, detailed=0.5, describe=0.5, questions=5, yes_no=0.5),
        ],
        "text": [
            dict(kinds=every),
            dict(kinds=every, detailed=0.3, questions=5, yes_no=0.5, chat=True),
        ],
        "gen": [dict(kinds=draw), dict(kinds=draw, detailed=1.0)],
        "pairs": [dict(kinds=every)],
    }
    feature = {"pairs": "text"}
    return {
        kind: [
            Encoded(kind, processor, seed=11, **options)[i][feature.get(kind, "tokens")]
            for options in choices[kind]
            for i in range(2000)
        ]
        for kind in choices
    }


@pytest.mark.parametrize("kind", ["und", "text", "gen", "pairs"])
def test_records_hold_no_unknown_ids_and_no_held_out_tints(kind, records, processor):
    tokenizer = processor.tokenizer
    unknown = tokenizer.require_id("<unk>")
    bad = {(tokenizer.token_id(t), tokenizer.token_id(n)) for n, t in WORLD.held_out_tints}
    for ids in records[kind]:
        assert unknown not in ids
        assert bad.isdisjoint(zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True))


@pytest.mark.parametrize("kind", ["und", "text", "gen", "pairs"])
def test_records_never_name_a_held_out_pair(kind, records, processor):
    names = {processor.tokenizer.token_id(n): n for n in WORLD.names}
    found = [
        pairs(names[i] for i in ids.tolist() if i in names) & WORLD.held_out_pairs
        for ids in records[kind]
    ]
    assert sum(map(bool, found)) == 0


def test_no_question_about_a_training_scene_makes_a_held_out_pair():
    # "Is there a cat?" about a dog, always answered with no, would teach that the pair is impossible.
    bad = 0
    for task in dict.fromkeys(es.SCENES_OF_QUESTION["yes_no"]):
        for scene, rng in scenes(task, 250):
            asked = es.question(scene, "yes_no", rng, WORLD).text.rstrip("?").split()[-1]
            names = {p.name for p in scene.placements} | {asked}
            bad += not pairs(names).isdisjoint(WORLD.held_out_pairs)
    assert bad == 0


def test_no_conversation_asks_for_both_objects_of_a_held_out_pair():
    # In the large world most names have several words, such as "panda face".
    world = es.World(96, 4, "all")
    processor = Processor(CONFIG, build_word_tokenizer(es.vocabulary(world)))
    tasks = dict.fromkeys(es.SCENES_OF_QUESTION["yes_no"], 1.0)
    options = dict(describe=0.0, questions=6, yes_no=1.0, chat=True, drawings=0.0)
    where = dict(image_size=96, grid=4, objects="all")
    source = Encoded("text", processor, kinds=tasks, world=where, seed=11, **options)
    tokenizer, of_several_words = processor.tokenizer, 0
    names = {tokenizer.decode(tokenizer.encode(name)): name for name in world.names}
    for i in range(300):
        text = tokenizer.decode(source[i]["tokens"].tolist())
        asked = {names[name] for name in re.findall(r"is there an? (.*?) ?\?", text)}
        assert pairs(asked).isdisjoint(world.held_out_pairs), text
        of_several_words += sum(" " in name for name in asked)
    assert of_several_words > 300
