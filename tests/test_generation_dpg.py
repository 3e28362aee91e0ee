"""DPG-Bench: the graph of questions, every quirk of the official script pinned, its files read, judges asked."""

import csv
import json
import re

import numpy as np
import pytest
from dummies_drawing import Painter
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.evaluation.generation import (
    PredictorJudge,
    ScoringJudge,
    dpg_prompts,
    draw,
    grid_crops,
    judge_answers,
    judged_by,
    make_prompts,
    overall_of,
    read_answers,
    read_header,
    read_picture_scores,
    read_questions,
    score_answers,
)
from janus_jax.evaluation.generation.dpg import is_yes

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
)


def row(item, number, depends="0", category="entity - whole", question=None):
    question = question or f"Is {number}, of all, there?"
    return f'{item},"a, b",,{number},"{depends}",x,y,{category} (thing {number}),"{question}"'


def questions(tmp_path, *rows, compat):
    path = tmp_path / "dpg_bench.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return read_questions(path, compat)


LOST = row("lost", 1)  # what `compat` skips
ROWS = [
    LOST,
    row("a", 1),
    row("a", 2, "1", "attribute - color"),
    row("a", 3, "1,2", "relation - spatial"),
    row("b", 1, "0", "global"),
]


def yes(*flags):
    return {number: bool(flag) for number, flag in enumerate(flags, 1)}


def test_the_file_is_read_as_it_is_distributed(tmp_path):
    found = questions(tmp_path, *ROWS, compat=False)
    assert list(found.of) == ["lost", "a", "b"]
    third = found.of["a"][2]
    assert (third.number, third.text, third.parents) == (3, "Is 3, of all, there?", (1, 2))
    assert (third.category, third.l1) == ("relation - spatial", "relation")


@pytest.mark.parametrize("compat", [False, True])
def test_everything_yes_is_100_and_everything_no_is_0(tmp_path, compat):
    asked = questions(tmp_path, *ROWS, compat=compat)
    for flag in (True, False):
        answers = {"a": [yes(flag, flag, flag)] * 4, "b": [yes(flag)] * 4}
        scores = score_answers(asked, answers)
        assert scores.overall == 100 * flag
        assert scores.l1 == {
            name: 100 * flag for name in ("global", "entity", "attribute", "relation")
        }
        assert scores.incomplete == "pictures that are not DPG-Bench's: 2"


@pytest.mark.parametrize("compat", [False, True])
def test_what_depends_on_a_no_is_no(tmp_path, compat):
    asked = questions(tmp_path, *ROWS, compat=compat)
    scores = score_answers(asked, {"a": [yes(0, 1, 1), yes(1, 0, 1), yes(1, 1, 0)]})
    assert scores.pictures == {"a": (0.0, 1 / 3, 2 / 3)}
    assert scores.overall == pytest.approx(100 / 3)


def test_quirk_skips_row_0(tmp_path):
    official = questions(tmp_path, *ROWS, compat=True)
    assert list(official.of) == ["a", "b"]
    ours = questions(tmp_path, *ROWS[1:], compat=False)
    assert len(ours.of["a"]) == 3
    official = questions(tmp_path, *ROWS[1:], compat=True)
    assert [q.number for q in official.of["a"]] == [2, 3]


def test_quirk_drops_orphans(tmp_path):
    """Without row 0, what depends on it cannot be scored, and the whole picture is left out of the mean."""
    answers = {"a": [yes(1, 1, 1)], "b": [yes(0)]}
    official = score_answers(questions(tmp_path, *ROWS[1:], compat=True), answers)
    assert (official.overall, official.dropped, list(official.pictures)) == (0.0, ("a",), ["b"])
    assert set(official.l1) == {"global"}
    ours = score_answers(questions(tmp_path, *ROWS[1:], compat=False), answers)
    assert (ours.overall, ours.dropped) == (50.0, ())


def test_quirk_drops_orphans_only_where_they_are_looked_at(tmp_path):
    """A parent that says no ends the look at the others before the missing one is met."""
    rows = [row("a", 1), row("a", 2), row("a", 3, "2,1")]
    official = questions(tmp_path, *rows, compat=True)
    assert score_answers(official, {"a": [{2: False, 3: True}]}).pictures == {"a": (0.0,)}
    with pytest.raises(UserError, match="no answers of DPG-Bench that can be scored"):
        score_answers(official, {"a": [{2: True, 3: True}]})


def test_quirk_replaces_split_items(tmp_path):
    rows = [LOST, row("a", 1), row("b", 1), row("a", 2)]
    official = questions(tmp_path, *rows, compat=True)
    assert [q.number for q in official.of["a"]] == [2] and list(official.of) == ["a", "b"]
    ours = questions(tmp_path, *rows, compat=False)
    assert [q.number for q in ours.of["a"]] == [1, 2]


def test_quirk_cascade_in_order(tmp_path):
    """3 depends on 2, which depends on 1; 3 stands first, so it does not see that 2 is lost."""
    rows = [LOST, row("a", 3, "2"), row("a", 2, "1"), row("a", 1)]
    answers = {"a": [{1: False, 2: True, 3: True}]}
    official = score_answers(questions(tmp_path, *rows, compat=True), answers)
    assert official.pictures == {"a": (1 / 3,)}
    ours = score_answers(questions(tmp_path, *rows, compat=False), answers)
    assert ours.pictures == {"a": (0.0,)}
    ordered = [rows[0], *reversed(rows[1:])]  # in order of the graph, the quirk does not show
    official = score_answers(questions(tmp_path, *ordered, compat=True), answers)
    assert official.pictures == {"a": (0.0,)}


def test_quirk_last_crop_categories(tmp_path):
    """The categories are of the last sample alone, and as they were answered."""
    answers = {"a": [yes(1, 1, 1), yes(1, 1, 1), yes(0, 0, 0), yes(0, 1, 1)], "b": [yes(1), yes(0)]}
    official = score_answers(questions(tmp_path, *ROWS, compat=True), answers)
    assert official.l1 == {"global": 0.0, "entity": 0.0, "attribute": 100.0, "relation": 100.0}
    assert official.l2["attribute - color"] == 100.0
    ours = score_answers(questions(tmp_path, *ROWS, compat=False), answers)
    assert ours.l1 == {"global": 50.0, "entity": 50.0, "attribute": 50.0, "relation": 50.0}
    assert official.overall == ours.overall == 50.0  # only the categories differ


def test_quirk_exact_yes():
    assert [is_yes(a, compat=True) for a in ("yes", "Yes", "yes.", " yes", "no")] == [True] + [
        False
    ] * 4
    assert [is_yes(a, compat=False) for a in ("yes", "Yes", "Yes.", " yes!", "no")] == [
        True
    ] * 4 + [False]


def test_categories_are_pooled_over_questions_and_not_over_pictures(tmp_path):
    rows = [LOST, *(row("a", i) for i in (1, 2, 3)), row("b", 1)]
    for compat in (True, False):
        asked = questions(tmp_path, *rows, compat=compat)
        scores = score_answers(asked, {"a": [yes(1, 1, 1)], "b": [yes(0)]})
        assert (scores.overall, scores.l1["entity"]) == (50.0, 75.0)


def test_a_whole_run_is_complete(tmp_path):
    keys = [prompt.key for prompt in dpg_prompts().prompts]
    asked = questions(tmp_path, *(row(key, 1) for key in keys), compat=False)
    answers = {key: [yes(1)] * 4 for key in keys}
    scores = score_answers(asked, answers)
    assert (scores.incomplete, scores.overall) == ("", 100.0)
    assert scores.table()["overall"] == {"score": 100.0, "count": 1065}
    part = dict(list(answers.items())[:7])
    assert score_answers(asked, part).incomplete == "7 of 1065 prompts"
    answers["0"] = [yes(1)]
    assert score_answers(asked, answers).incomplete == "1 to 4 samples a prompt, not 4"


def detail(picture, index, question, answer, side=384):
    x, y = index % 2 * side, index // 2 * side
    return f"out/{picture}.png, ({x}, {y}, {x + side}, {y + side}), {question}, {answer}\n"


def test_official_result_files_are_read(tmp_path):
    asked = questions(tmp_path, *ROWS, compat=True)
    given = {"a": [yes(1, 1, 1), yes(1, 0, 1)], "b": [yes(0), yes(1)]}
    lines, scores = "", ""
    for name, crops in given.items():
        for i, crop in enumerate(crops):
            for q in asked.of[name]:
                lines += detail(name, i, q.text, "yes" if crop[q.number] else "no")
    (tmp_path / "x_detail.txt").write_text(lines)
    answers = read_answers(tmp_path / "x_detail.txt", asked)
    assert answers == given
    ours = score_answers(asked, answers)
    for name, values in ours.pictures.items():
        scores += f"out/{name}.png, {', '.join(map(str, values))}, {sum(values) / len(values)}\n"
    summary = "Model: out\nL1 category scores:\n\tentity: 50.0\nDPG-Bench score: 58.3, of all\n"
    (tmp_path / "x.txt").write_text(scores + summary)
    pictures = read_picture_scores(tmp_path / "x.txt")
    assert pictures == ours.pictures
    assert overall_of(pictures) == (
        pytest.approx(ours.overall),
        "pictures that are not DPG-Bench's: 2",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "no answers of DPG-Bench"),
        (lambda text: text + "out/a.png: yes\n", "line 5 must be 'picture"),
        (lambda text: text.replace("out/b", "out/c"), "line 4: there are no questions about 'c'"),
        (lambda text: text.replace("Is 2", "Is 9"), "line 2: the question is 'Is 9, of all"),
        (lambda text: text + text.split("\n")[0], "line 5: all questions about this part"),
        (
            lambda text: "\n".join(text.split("\n")[:2]),
            "sample 0 of the picture 'a': question 3 was not",
        ),
    ],
)
def test_bad_result_files_are_told(tmp_path, change, message):
    asked = questions(tmp_path, *ROWS, compat=True)
    text = "".join(detail(name, 0, q.text, "yes") for name in ("a", "b") for q in asked.of[name])
    (tmp_path / "d.txt").write_text(change(text))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        score_answers(asked, read_answers(tmp_path / "d.txt", asked))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no scores of pictures"),
        ("a.png, 1.0, 0.0, 0.7\n", "line 1: 0.7 is not the mean"),
        ("a.png, 1.0, 1.0\na.png, 1.0, 1.0\n", "line 2: the picture 'a' is there twice"),
        ("a.png, nan, nan\n", "line 1: nan is not the mean"),
    ],
)
def test_bad_scores_of_pictures_are_told(tmp_path, text, message):
    (tmp_path / "r.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_picture_scores(tmp_path / "r.txt")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no questions"),
        ([row("a", "one")], "line 2: proposition_id and dependency must be whole numbers"),
        ([row("a", 1, "x")], "line 2: proposition_id"),
        (["a,b"], "line 2: proposition_id"),
        ([row("a", 1), row("a", 1)], "line 3: 'a' has two questions with the number 1"),
        ([row("a", 1, "2")], "question 1 of 'a' depends on 2, which is not there"),
        ([row("a", 1, "2"), row("a", 2, "1")], "questions 1, 2 of 'a' depend on each other"),
        ([row("a", 1, "1")], "questions 1 of 'a' depend on each other"),
        ([row("a", 1, question="x" * 200_000)], "is no CSV"),
    ],
)
def test_bad_questions_are_told(tmp_path, rows, message):
    with pytest.raises(UserError, match=message) as caught:
        questions(tmp_path, *rows, compat=False)
    assert "\n" not in str(caught.value)


def test_a_field_is_too_long_whatever_the_module_csv_lets_through(tmp_path):
    before = csv.field_size_limit(2**31 - 1)
    try:
        with pytest.raises(UserError, match="line 2: is no CSV: a field has more than 131,072"):
            questions(tmp_path, row("a", 1, question="x" * 200_000), compat=False)
    finally:
        csv.field_size_limit(before)


def test_other_files_are_no_questions(tmp_path):
    path = tmp_path / "dpg_bench.csv"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has no column item_id"):
        read_questions(path)
    path.write_text("item_id,proposition_id\na,1\n")
    with pytest.raises(UserError, match="has no column dependency"):
        read_questions(path)
    asked = questions(tmp_path, *ROWS, compat=False)
    with pytest.raises(UserError, match="there are no questions about the picture 'c'"):
        score_answers(asked, {"c": [yes(1)]})


# Judges


PROMPTS = make_prompts("dpg", [("a", "long a", ""), ("b", "long b", "")])


def bright(picture, question):
    """Yes to all about bright samples; P(yes) = 0.5 counts as yes."""
    return 0.5 if picture.mean() > 127.5 else 0.49


def test_any_function_can_judge(tmp_path):
    asked = questions(tmp_path, *ROWS, compat=False)
    draw(Painter(8), PROMPTS, tmp_path / "out")
    answers = judge_answers(bright, PROMPTS, asked, tmp_path / "out", tmp_path / "answers.jsonl")
    for name, crops in answers.items():
        grid = np.asarray(Image.open(tmp_path / "out" / f"{name}.png"))
        wanted = [bool(crop.mean() > 127.5) for crop in grid_crops(grid)]
        assert [set(crop.values()) for crop in crops] == [{flag} for flag in wanted]
        assert [len(crop) for crop in crops] == [len(asked.of[name])] * 4
    assert score_answers(asked, answers).incomplete == "pictures that are not DPG-Bench's: 2"
    header = read_header(tmp_path / "answers.jsonl")
    assert header["judge"] == "bright" and header["drawing"]["seed"] == 0
    assert judged_by(header) == "judged by bright, not by the benchmark's own"
    assert judged_by({}) == "the official scorer's"


def test_a_killed_judge_goes_on(tmp_path):
    asked = questions(tmp_path, *ROWS, compat=False)
    draw(Painter(8), PROMPTS, tmp_path / "out")
    out = tmp_path / "answers.jsonl"
    whole = judge_answers(bright, PROMPTS, asked, tmp_path / "out", out)
    lines = out.read_bytes()
    count = lines.count(b"\n")
    for end in range(0, len(lines), 7):
        out.write_bytes(lines[:end])
        seen = []
        judge = lambda p, q, seen=seen: (seen.append(q), bright(p, q))[1]
        judge.name = "bright"
        assert judge_answers(judge, PROMPTS, asked, tmp_path / "out", out) == whole
        assert out.read_bytes() == lines
        done = max(lines[:end].count(b"\n") - 1, 0)
        assert len(seen) == sum(4 * len(asked.of[k]) for k in "ab"[done:]) and count == 3


def test_answers_of_another_judge_or_other_pictures_are_refused(tmp_path):
    asked = questions(tmp_path, *ROWS, compat=False)
    draw(Painter(8), PROMPTS, tmp_path / "out")
    out = tmp_path / "answers.jsonl"
    judge_answers(bright, PROMPTS, asked, tmp_path / "out", out)
    before = out.read_bytes()
    draw(Painter(8), PROMPTS, tmp_path / "other", seed=1)
    for judge, pictures, text in (
        (lambda p, q: 1.0, "out", "was made by"),
        (bright, "other", "choose another file"),
    ):
        with pytest.raises(UserError, match=text):
            judge_answers(judge, PROMPTS, asked, tmp_path / pictures, out)
    assert out.read_bytes() == before
    for text in ("my notes\n", "my notes", '{"header": 1}\n', "[]\n"):
        out.write_text(text)
        with pytest.raises(UserError, match="was made by"):
            judge_answers(bright, PROMPTS, asked, tmp_path / "out", out)
        assert out.read_text() == text


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan"), "yes", None])
def test_a_judge_that_returns_no_probability_is_named(tmp_path, value):
    asked = questions(tmp_path, *ROWS, compat=False)
    draw(Painter(8), PROMPTS, tmp_path / "out")

    def odd(picture, question):
        return value

    with pytest.raises(UserError, match=r"the judge .*odd must return the probability of yes"):
        judge_answers(odd, PROMPTS, asked, tmp_path / "out", tmp_path / "a.jsonl")
    assert [*map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())][1:] == []


def test_missing_pictures_are_told_before_the_first_question(tmp_path):
    asked = questions(tmp_path, *ROWS, compat=False)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"has no picture a\.png: draw it first"):
        judge_answers(bright, PROMPTS, asked, tmp_path / "out", tmp_path / "a.jsonl")
    strange = make_prompts("mine", [("z", "z", "")])
    with pytest.raises(UserError, match="none of the prompts of mine has questions"):
        judge_answers(bright, strange, asked, tmp_path / "out", tmp_path / "a.jsonl")


class Answerer:
    def __init__(self):
        self.asked = []

    def answer(self, images, questions, **sampling):
        self.asked += questions
        return ["Yes." if image.mean() > 127 else "No" for image in images]


def test_a_model_that_answers_is_a_judge(tmp_path):
    model = Answerer()
    judge = PredictorJudge(model, "Janus-Pro-1B")
    pictures = [np.full((2, 2, 3), value, np.uint8) for value in (0, 255)]
    assert judge.batch(pictures, ["Is it {}?", "b?"]) == [0.0, 1.0]
    assert model.asked == ["Is it {}? Answer with yes or no.", "b? Answer with yes or no."]
    assert judge(pictures[1], "c?") == 1.0 and judge.name.startswith("Janus-Pro-1B: ")
    with pytest.raises(UserError, match=r"must have \{\} for the question"):
        PredictorJudge(model, "x", "yes or no?")


def test_log_probabilities_are_a_judge():
    def log_probs(pictures, questions, answers):
        assert questions == ["q", "r"] * 2 and answers == ["Yes", "Yes", "No", "No"]
        return np.log([0.3, 0.02, 0.1, 0.06])

    judge = ScoringJudge(log_probs, "Janus")
    assert judge.batch([None, None], ["q", "r"]) == pytest.approx([0.75, 0.25])
    certain = ScoringJudge(lambda p, q, a: [0.0, -1e6], "x")
    assert certain(None, "q") == pytest.approx(1.0)
