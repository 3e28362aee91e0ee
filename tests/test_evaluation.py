"""The judge reads pictures back, the scores follow GenEval's and POPE's rules."""

import numpy as np
import pytest

from janus_jax import emoji as es
from janus_jax.emoji import (
    HELD_OUT_TASKS,
    Judge,
    Placement,
    Scene,
    is_right,
    make_prompts,
    make_questions,
    mini_geneval,
    prove_judge,
    question_accuracy,
    score_pictures,
)
from janus_jax.evaluation import pope

WORLD = es.World()


@pytest.fixture(scope="module")
def judge():
    return Judge(WORLD)


def scene(task, *placements, background="white", relation=None):
    """Placements as (name, tint, row, column)."""
    return Scene(task, background, tuple(Placement(*p) for p in placements), relation)


def judged(judge, wanted, drawn):
    return is_right(wanted, judge.read(es.render(drawn, WORLD)), judge.look_alikes)


# The judge


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("task", es.SCENE_KINDS)
def test_the_judge_reads_scenes_exactly(judge, task, held_out):
    for i in range(8):
        drawn = es.random_scene(np.random.default_rng((i, 1)), WORLD, task, held_out)
        reading = judge.read(es.render(drawn, WORLD))
        assert reading.background == drawn.background and reading.unknown == 0
        found = {(d.name, d.tint, d.row, d.column) for d in reading.detections}
        assert found == {(p.name, p.tint, p.row, p.column) for p in drawn.placements}
        assert all(d.error < 1e-4 for d in reading.detections)


def test_every_sprite_in_every_tint_is_read_as_itself(judge):
    keys = [(n, t) for n in WORLD.names for t in (None, *es.TINTS)]
    backgrounds = list(es.BACKGROUNDS)
    wrong = []
    for i in range(0, len(keys), 9):
        part = keys[i : i + 9]
        placements = [(*key, *divmod(j, 3)) for j, key in enumerate(part)]
        drawn = scene("dense", *placements, background=backgrounds[i // 9 % len(backgrounds)])
        found = [(d.name, d.tint) for d in judge.read(es.render(drawn, WORLD)).detections]
        wrong += [pair for pair in zip(part, found, strict=True) if pair[0] != pair[1]]
    assert wrong == []


@pytest.mark.heavy
def test_true_scenes_are_right_and_shuffled_ones_are_not():
    found = prove_judge(WORLD, per_task=25)
    assert set(found) == {"true", "shuffled"}
    assert found["true"]["mean"]["plain"] >= 0.99 and found["true"]["mean"]["strict"] >= 0.99
    assert found["shuffled"]["mean"]["plain"] <= 0.08
    assert all(found["true"][task]["count"] == 25 for task in es.SCENE_KINDS)


def test_reconstructions_are_judged_on_both_splits():
    calls = []

    def grey(pictures):
        calls.append(pictures.shape)
        return np.full_like(pictures, 127)

    found = prove_judge(WORLD, grey, per_task=3)
    assert calls == [(3, 48, 48, 3)] * (6 + len(HELD_OUT_TASKS))
    assert found["reconstructed"]["mean"] == {"plain": 0.0, "strict": 0.0}
    assert set(found["reconstructed_held_out"]) == {*HELD_OUT_TASKS, "mean"}
    same = prove_judge(WORLD, lambda pictures: pictures, per_task=3)
    assert same["reconstructed"]["mean"]["strict"] == 1.0
    assert same["reconstructed_held_out"]["mean"]["strict"] == 1.0


def test_noise_is_unknown_and_a_little_blur_is_not(judge):
    drawn = scene("two_object", ("dog", None, 0, 0), ("pizza", None, 2, 1), background="cyan")
    picture = es.render(drawn, WORLD)
    noisy = picture.copy()
    noisy[16:32, 16:32] = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    reading = judge.read(noisy)
    assert reading.unknown == 1 and {d.name for d in reading.detections} == {"dog", "pizza"}
    assert is_right(drawn, reading) == (True, False)
    soft = picture.astype(float) + np.random.default_rng(1).normal(0, 12, picture.shape)
    reading = judge.read(soft.clip(0, 255).astype(np.uint8))
    assert reading.unknown == 0 and is_right(drawn, reading) == (True, True)
    empty = judge.read(np.full((48, 48, 3), es.BACKGROUNDS["pink"], np.uint8))
    assert (empty.background, empty.detections, empty.unknown) == ("pink", (), 0)


def test_look_alikes_are_tints_that_an_object_has_by_nature(judge):
    assert ("star", "yellow") in judge.look_alikes and ("ladybug", "red") in judge.look_alikes
    assert ("star", "blue") not in judge.look_alikes and ("frog", "red") not in judge.look_alikes
    assert 5 <= len(judge.look_alikes) <= 16
    wanted = scene("colors", ("star", "yellow", 1, 1))
    assert judged(judge, wanted, scene("", ("star", None, 0, 2))) == (True, True)
    assert judged(judge, wanted, scene("", ("star", "yellow", 0, 2))) == (True, True)
    assert judged(judge, wanted, scene("", ("star", "blue", 0, 2))) == (False, False)
    # Without the list, natural colours are no tint.
    natural = judge.read(es.render(scene("", ("star", None, 0, 2)), WORLD))
    assert is_right(wanted, natural) == (False, False)
    wanted = scene("colors", ("frog", "red", 1, 1))
    assert judged(judge, wanted, scene("", ("frog", None, 0, 2))) == (False, False)


# GenEval's rules on pictures made by hand


def test_one_object(judge):
    wanted = scene("single_object", ("cat", None, 0, 0))
    assert judged(judge, wanted, scene("", ("cat", None, 2, 2), background="grey")) == (True, True)
    assert judged(judge, wanted, scene("", ("cat", "blue", 1, 0))) == (True, True)
    assert judged(judge, wanted, scene("", ("dog", None, 0, 0))) == (False, False)
    extra = scene("", ("cat", None, 0, 0), ("dog", None, 1, 1))
    assert judged(judge, wanted, extra) == (True, False)


def test_two_objects(judge):
    wanted = scene("two_object", ("cat", None, 0, 0), ("key", None, 0, 1))
    both = (("key", None, 1, 1), ("cat", None, 2, 0))
    assert judged(judge, wanted, scene("", *both)) == (True, True)
    assert judged(judge, wanted, scene("", *both, ("cat", None, 0, 0))) == (True, False)
    assert judged(judge, wanted, scene("", both[0])) == (False, False)
    assert judged(judge, wanted, scene("", both[0], ("dog", None, 2, 0))) == (False, False)


def test_counting_wants_the_exact_number(judge):
    apples = [("apple", None, i // 3, i % 3) for i in range(5)]
    wanted = scene("counting", *apples[:3])
    for count in range(6):
        right = count == 3
        assert judged(judge, wanted, scene("", *apples[:count])) == (right, right)
    # Others do not count, but the strict score sees them.
    assert judged(judge, wanted, scene("", *apples[:3], ("dog", None, 2, 2))) == (True, False)
    assert judged(judge, wanted, scene("", *apples[:2], ("dog", None, 2, 2))) == (False, False)


@pytest.mark.parametrize("relation", es.RELATIONS)
def test_position_wants_the_relation(judge, relation):
    down, right = es.RELATIONS[relation]
    cat, dog = ("cat", None, 1 + down, 1 + right), ("dog", None, 1, 1)
    wanted = scene("position", cat, dog, relation=relation)
    assert judged(judge, wanted, scene("", dog, cat)) == (True, True)
    other_way = (("cat", None, 1 - down, 1 - right), dog)
    assert judged(judge, wanted, scene("", *other_way)) == (False, False)
    # A turn by 90 degrees and a diagonal are wrong; one of two cats in place is enough.
    turned = (("cat", None, 1 + right, 1 + down), dog)
    assert judged(judge, wanted, scene("", *turned)) == (False, False)
    assert judged(judge, wanted, scene("", ("cat", None, 0, 0), dog)) == (False, False)
    assert judged(judge, wanted, scene("", cat, dog, other_way[0])) == (True, False)
    assert judged(judge, wanted, scene("", cat)) == (False, False)


def test_colours_belong_to_their_objects(judge):
    wanted = scene("color_attr", ("car", "red", 0, 0), ("bus", "blue", 0, 1))
    assert judged(judge, wanted, scene("", ("bus", "blue", 2, 2), ("car", "red", 2, 1)))[1]
    swapped = scene("", ("car", "blue", 0, 0), ("bus", "red", 0, 1))
    assert judged(judge, wanted, swapped) == (False, False)
    assert judged(judge, wanted, scene("", ("car", "red", 0, 0))) == (False, False)
    one = scene("colors", ("car", "red", 0, 0))
    assert judged(judge, one, scene("", ("car", "green", 0, 0))) == (False, False)
    assert judged(judge, one, scene("", ("car", "red", 1, 2))) == (True, True)


# mini-GenEval


class Artist:
    """Draws the true scenes of the prompts it expects, and a wrong object every `miss`-th time."""

    def __init__(self, tasks, count, held_out=False, seed=1_000_003, miss=0):
        self.prompts = [p for t in tasks for p in make_prompts(WORLD, t, count, held_out, seed)]
        self.miss = miss

    def __call__(self, texts):
        assert list(texts) == [p.text for p in self.prompts]
        pictures = [es.render(p.scene, WORLD) for p in self.prompts]
        if self.miss:
            for i in range(0, len(pictures), self.miss):
                pictures[i] = np.full((48, 48, 3), 255, np.uint8)
        return np.stack(pictures)


def test_a_perfect_artist_scores_one():
    scores = mini_geneval(Artist(es.SCENE_KINDS, 10), WORLD, 10)
    assert scores["mean"] == {"plain": 1.0, "strict": 1.0}
    assert {t: scores[t]["count"] for t in es.SCENE_KINDS} == dict.fromkeys(es.SCENE_KINDS, 10)
    combined = [t for t in es.SCENE_KINDS if t in HELD_OUT_TASKS]
    held_out = mini_geneval(Artist(combined, 10, held_out=True), WORLD, 10, held_out=True)
    assert held_out["mean"] == {"plain": 1.0, "strict": 1.0}
    assert set(held_out) == {*HELD_OUT_TASKS, "mean"}


def test_the_score_is_the_share_of_right_pictures_and_the_mean_over_kinds():
    tasks = ("colors", "counting")
    scores = mini_geneval(Artist(tasks, 10, miss=4), WORLD, 10, tasks=tasks)
    # Of 20 pictures 0, 4, 8 | 12, 16 are empty.
    assert scores["colors"] == {"plain": 0.7, "strict": 0.7, "count": 10}
    assert scores["counting"] == {"plain": 0.8, "strict": 0.8, "count": 10}
    assert scores["mean"] == pytest.approx({"plain": 0.75, "strict": 0.75})


def test_several_pictures_a_prompt(judge):
    prompts = make_prompts(WORLD, "colors", 3)
    pictures = [es.render(p.scene, WORLD) for p in prompts for _ in range(2)]
    pictures[5] = np.full((48, 48, 3), 255, np.uint8)
    score = score_pictures(judge, prompts, pictures)
    assert score == {"plain": pytest.approx(5 / 6), "strict": pytest.approx(5 / 6), "count": 6}


def test_prompts_are_fixed_and_without_backgrounds():
    for task in es.SCENE_KINDS:
        prompts = make_prompts(WORLD, task, 20)
        assert prompts == make_prompts(WORLD, task, 20) and prompts[:5] == make_prompts(
            WORLD, task, 5
        )
        assert prompts != make_prompts(WORLD, task, 20, seed=1)
        assert not any("background" in p.text for p in prompts)
        assert {p.task for p in prompts} == {task}
    for prompt in make_prompts(WORLD, "two_object", 20, held_out=True):
        assert WORLD.is_held_out_pair(*(p.name for p in prompt.scene.placements))


# Questions


def oracle(pictures, texts):
    """The true answers, spelled a little differently; each batch is one kind."""
    for kind in es.QUESTION_KINDS:
        for held_out in (False, True):
            known, questions = make_questions(WORLD, kind, len(texts), held_out)
            if [q.text for q in questions] == list(texts) and np.array_equal(known, pictures):
                return [f" {q.answer.upper()}. " for q in questions]
    raise AssertionError(texts)


@pytest.mark.parametrize("held_out", [False, True])
def test_an_oracle_answers_everything(held_out):
    scores = question_accuracy(oracle, WORLD, 30, held_out)
    assert set(scores) == {*es.QUESTION_KINDS, "mean"}
    assert all(scores[k]["accuracy"] == 1.0 and scores[k]["count"] == 30 for k in es.QUESTION_KINDS)
    assert scores["mean"]["accuracy"] == 1.0 and scores["mean"]["majority"] < 0.5
    assert scores["yes_no"]["precision"] == scores["yes_no"]["recall"] == 1.0


def test_always_the_commonest_answer_scores_the_majority():
    def parrot(pictures, texts):
        answers = [a.strip(" .").lower() for a in oracle(pictures, texts)]
        return [max(answers, key=answers.count)] * len(texts)

    scores = question_accuracy(parrot, WORLD, 30)
    for kind in es.QUESTION_KINDS:
        assert scores[kind]["accuracy"] == scores[kind]["majority"] < 0.8


def test_questions_come_with_their_pictures(judge):
    pictures, questions = make_questions(WORLD, "background", 20)
    assert pictures.shape == (20, 48, 48, 3)
    assert [judge.read(p).background for p in pictures] == [q.answer for q in questions]
    pictures, questions = make_questions(WORLD, "colour", 20, held_out=True)
    for picture, asked in zip(pictures, questions, strict=True):
        tints = {d.name: d.tint for d in judge.read(picture).detections}
        assert tints[asked.text.rstrip("?").split()[-1]] == asked.answer


def test_pope_by_hand():
    #         hit    false alarm  miss   correct no  neither
    said = ["yes", "yes", "yes", "no", "no", "no", "maybe"]
    true = ["yes", "yes", "no", "yes", "no", "no", "yes"]
    scores = pope(said, true)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 4)
    assert scores["f1"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert pope(["no", "no"], ["yes", "no"]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
