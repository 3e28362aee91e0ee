"""Answerers whose scores are known in closed form, under every protocol; quirks of each benchmark's numbers."""

import random

import pytest
from benchmark_files import LAYOUTS, write_layout

from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import _tables
from janus_jax.evaluation.understanding import (
    BENCHMARK_FACTS,
    PROTOCOLS,
    Item,
    get_protocol,
    open_benchmark,
    score_answers,
)
from janus_jax.evaluation.understanding.parsers import MISSING, NO_PICTURE, READ, UNREAD

CHOICES = ("mmbench", "seed", "mmmu")
YES_NO = ("pope", "mme")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    """Name -> its twelve items."""
    folder = tmp_path_factory.mktemp("benchmarks")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name, layout in LAYOUTS:
            if layout == "tsv":
                paths, root = write_layout(name, layout, folder / name)
                found[name] = list(open_benchmark(name, paths, root))
    return found


def scored(items, name, answer, protocol="paper", **options):
    """`answer`: item -> text, or a text for all."""
    say = answer if callable(answer) else lambda item: answer
    answers = {item.index: say(item) for item in items[name]}
    grade = lambda question, truth, answer: float(answer == truth)
    return score_answers(items[name], answers, get_protocol(protocol, name), grade=grade, **options)


def truth(item):
    """What a perfect model says: of several true answers the text that the official rule compares with."""
    return item.answer


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BENCHMARK_FACTS)
def test_a_perfect_model(items, name, protocol):
    scores = scored(items, name, truth, protocol)
    whole = 400.0 if name == "mme" else 100.0  # two subtasks of perception
    assert scores.headline == pytest.approx(whole)
    assert all(verdict.right for verdict in scores.verdicts)
    assert _tables(name, scores.tables) == scores.tables  # what a Benchmark may return


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BENCHMARK_FACTS)
def test_no_answers_and_empty_ones(items, name, protocol):
    nothing = score_answers(items[name], {}, get_protocol(protocol, name), grade=lambda *_: 1.0)
    assert nothing.headline == 0.0 and nothing.counts == {MISSING: 12}
    none = score_answers(
        items[name],
        {item.index: truth(item) for item in items[name]},
        get_protocol(protocol, name),
        grade=lambda *_: 1.0,
        unreadable={item.index for item in items[name]},
    )
    assert none.headline == 0.0 and none.counts == {NO_PICTURE: 12}
    if name != "mmvet" and (name, protocol) != ("mmmu", "lmms-eval"):  # which draws a letter
        empty = scored(items, name, "", protocol)
        assert empty.headline == 0.0 and empty.counts == {UNREAD: 12}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_always_yes(items, protocol):
    scores = scored(items, "pope", "Yes", protocol)
    for row in scores.tables["pope"].values():
        half = {"precision": 50.0, "recall": 100.0, "accuracy": 50.0, "yes": 100.0}
        assert {column: row[column] for column in half} == half
        assert row["f1"] == pytest.approx(200 / 3)
    mme = scored(items, "mme", "Yes", protocol).tables["mme"]
    assert mme["OCR"] == {"score": 50.0, "acc": 50.0, "acc_plus": 0.0, "count": 4, "pairs": 2}
    assert mme["perception"] == {"score": 100.0, "subtasks": 2}
    assert mme["cognition"] == {"score": 50.0, "subtasks": 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_always_a(items, protocol):
    """A is right in one rotation of each question of MMBench, so in none of all its rotations."""
    scores = scored(items, "mmbench", "A", protocol)
    assert scores.tables["mmbench"] == {
        "vanilla_0": {"accuracy": pytest.approx(100 / 3), "count": 3},
        "vanilla_all": {"accuracy": 25.0, "count": 12},
        "circular": {"accuracy": 0.0, "count": 3},
    }
    assert scored(items, "seed", "A", protocol).headline == 25.0
    # Of the open questions of MMMU, VLMEvalKit's first option is the true answer; all others have B.
    expected = 0.0 if protocol == "lmms-eval" else 100 * 2 / 12
    assert scored(items, "mmmu", "A", protocol).headline == pytest.approx(expected)


def test_a_random_answerer_is_near_chance():
    draw = random.Random(0)
    made = [
        Item(str(i), "q", draw.choice("ABCD"), options=dict(zip("ABCD", "wxyz", strict=True)))
        for i in range(4000)
    ]
    answers = {item.index: draw.choice("ABCD") for item in made}
    for protocol in PROTOCOLS:
        scores = score_answers(made, answers, get_protocol(protocol, "seed"))
        assert abs(scores.headline - 25) < 3
    drawn = score_answers(made, dict.fromkeys(answers, "?"), get_protocol("lmms-eval", "mmmu"))
    assert abs(drawn.headline - 25) < 3 and drawn.counts == {"drawn at random": 4000}


def test_pope_counts_a_question_in_each_of_its_subsets():
    apart = [
        Item(f"{subset}/1", "q", "Yes", groups=(subset,), category=subset)
        for subset in ("random", "popular", "adversarial")
    ] + [Item("random/2", "q", "No", groups=("random",))]
    together = [
        Item("0", "q", "Yes", groups=("random", "popular", "adversarial")),
        Item("1", "q", "No", groups=("random",)),
    ]
    for yes, no in (("Yes", "Yes"), ("No", "No"), ("?", "Yes"), ("Yes", "?")):
        say = lambda item: yes if item.answer == "Yes" else no  # noqa: B023
        tables = [
            score_answers(
                made, {i.index: say(i) for i in made}, get_protocol("paper", "pope")
            ).tables
            for made in (apart, together)
        ]
        assert tables[0] == tables[1]


def test_unread_answers_lower_recall_but_not_in_lmms_eval():
    made = [Item(str(i), "q", "Yes", groups=("random",)) for i in range(4)]
    answers = {"0": "yes", "1": "no", "2": "perhaps", "3": "perhaps"}
    kit = score_answers(made, answers, get_protocol("vlmevalkit", "pope")).tables["pope"]["overall"]
    lmms = score_answers(made, answers, get_protocol("lmms-eval", "pope")).tables["pope"]["overall"]
    assert (kit["recall"], lmms["recall"]) == (25.0, 50.0)
    assert kit["accuracy"] == lmms["accuracy"] == 25.0


def test_conventions_are_beside_the_headline(items):
    wrong_in_random = lambda item: "no" if item.category == "random" else item.answer
    scores = scored(items, "pope", wrong_in_random)
    assert scores.headline == 0.0
    assert scores.beside["F1 mean of 3"] == pytest.approx(200 / 3)
    assert scores.beside["F1 overall"] == pytest.approx(80.0)  # recall 4/6, precision 1
    assert scores.beside["accuracy overall"] == pytest.approx(100 * 10 / 12)


def test_one_wrong_rotation_costs_the_question_alone_in_circular(items):
    say = lambda item: "Z" if item.index == "3000002" else item.answer
    scores = scored(items, "mmbench", say, "vlmevalkit")
    assert scores.headline == pytest.approx(200 / 3)
    assert scores.beside["vanilla_0"] == 100.0
    assert scores.beside["vanilla_all"] == pytest.approx(1100 / 12)
    assert scores.tables["mmbench_category"]["ocr"]["circular"] == 50.0
    assert scores.tables["mmbench_l2"]["logic_reasoning"]["vanilla_all"] == pytest.approx(87.5)
    assert scores.tables["mmbench_category"]["object_localization"]["circular"] == 100.0


def test_mme_pairs_by_picture_and_says_what_is_missing(items):
    say = lambda item: "No" if item.picture_key == "OCR/0001.png" else item.answer
    scores = scored(items, "mme", say)
    assert scores.tables["mme"]["OCR"] == {
        **{"score": 125.0, "acc": 75.0, "acc_plus": 50.0, "count": 4, "pairs": 2}
    }
    assert "mme: perception is the sum of 2 of its 10 subtasks" in scores.warnings
    less = {"mme": items["mme"][:3]}
    scores = scored(less, "mme", truth)
    assert scores.tables["mme"]["OCR"]["acc_plus"] == 100.0
    assert any("1 questions of 'OCR' are not two about one picture" in w for w in scores.warnings)


def test_mmmu_by_subject_and_discipline(items):
    say = lambda item: item.answer if item.category == "Math" else "I do not know at all"
    scores = scored(items, "mmmu", say)
    assert scores.headline == pytest.approx(100 / 3)
    assert scores.tables["mmmu"]["Math"] == {"accuracy": 100.0, "count": 4}
    assert scores.tables["mmmu_discipline"]["Science"]["accuracy"] == 100.0
    assert scores.tables["mmmu_discipline"]["Art and Design"]["accuracy"] == 0.0


def test_mmvet_by_ability(items):
    grades = {"v1_0": 0.5, "v1_1": 1.0}
    made = items["mmvet"]
    scores = score_answers(
        made,
        {index: index for index in grades},
        get_protocol("paper", "mmvet"),
        grade=lambda question, truth, answer: grades[answer],
    )
    assert scores.headline == pytest.approx(150 / 12)
    table = scores.tables["mmvet"]
    assert list(table) == ["rec", "ocr", "know", "gen", "math", "total"]
    assert table["ocr"] == {"score": 12.5, "count": 4}
    assert table["rec"] == {"score": 12.5, "count": 8}
    assert scores.tables["mmvet_combination"]["ocr_math"] == {"score": 12.5, "count": 4}
    with pytest.raises(UserError, match="graded by a language model: give a judge"):
        score_answers(made, {}, get_protocol("paper", "mmvet"))
    with pytest.raises(UserError, match="gave 7"):
        score_answers(made, {"v1_0": "x"}, get_protocol("paper", "mmvet"), grade=lambda *_: 7)


def test_an_answer_is_cut_at_the_stop_text(items):
    stopped = lambda item: f"{item.answer} ASSISTANT: B C D"
    assert scored(items, "seed", stopped, "lmms-eval").headline == 100.0
    assert scored(items, "mmbench", stopped, "lmms-eval").headline == 100.0
    assert scored(items, "mmbench", stopped, "paper").headline == 0.0


def test_what_cannot_be_scored_is_said():
    item = Item("1", "q", "", options={"A": "x"})
    with pytest.raises(UserError, match="'1' has no true answer"):
        score_answers([item], {}, get_protocol("paper", "seed"))
    item = Item("1", "q", "A", options={"A": "x"})
    with pytest.raises(UserError, match="an answer to 'q1', which is none of its questions"):
        score_answers([item], {"q1": "A"}, get_protocol("paper", "seed"))
    with pytest.raises(UserError, match="no question to score"):
        score_answers([], {}, get_protocol("paper", "seed"))
    pope = score_answers([Item("1", "q", "Yes")], {"1": "yes"}, get_protocol("paper", "pope"))
    assert pope.headline is None and "give no pope / random / f1" in pope.warnings[0]
    assert pope.counts == {READ: 1}
