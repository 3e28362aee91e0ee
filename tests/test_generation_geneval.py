"""GenEval: perfect pictures score 1, each kind of error lowers its own task, files are added up as published."""

import json
import math

import numpy as np
import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation.generation import (
    COLORS,
    GENEVAL_TASKS,
    Objects,
    Thresholds,
    geneval_prompts,
    judge,
    make_objects,
    read_results,
    relations,
    replay,
    score_results,
)
from janus_jax.evaluation.generation.geneval import result_line

PROMPTS = [prompt.metadata for prompt in geneval_prompts().prompts]
PLACES = {"left of": (-60, 0), "right of": (60, 0), "above": (0, -60), "below": (0, 60)}


def box(x=100.0, y=100.0, side=20.0, score=0.95):
    return [x, y, x + side, y + side, score]


def perfect(metadata):
    """(details, colors) that fulfil a prompt exactly."""
    details, colors = {}, {}
    for number, entry in enumerate(metadata["include"]):
        x, y = 100 + 200 * number, 100
        if "position" in entry:
            dx, dy = PLACES[entry["position"][0]]
            x, y = 100 + dx, 100 + dy
        details[entry["class"]] = [box(x + 30 * i, y) for i in range(entry["count"])]
        if "color" in entry:
            colors[entry["class"]] = [entry["color"]] * entry["count"]
    return details, colors


def scored(tmp_path, change=lambda metadata, details, colors: None):
    """Scores of one picture a prompt, perfect but for a change, through the file."""
    path = tmp_path / "detections.jsonl"
    with path.open("w") as file:
        for i, metadata in enumerate(PROMPTS):
            details, colors = perfect(metadata)
            change(metadata, details, colors)
            objects = make_objects(details, colors, "test")
            file.write(
                json.dumps(result_line(f"{i:05d}/samples/0000.png", metadata, objects)) + "\n"
            )
    results = read_results(path)
    assert [r.correct for r in replay(results)] == [r.correct for r in results]
    return score_results(results)


def test_perfect_detections_are_right_in_all_six_tasks(tmp_path):
    scores = scored(tmp_path)
    assert list(scores.tasks) == list(GENEVAL_TASKS)
    assert all(task.share == 1 for task in scores.tasks.values()) and scores.overall == 1
    assert [scores.tasks[t].count for t in GENEVAL_TASKS] == [80, 99, 80, 94, 100, 100]
    assert scores.incomplete == "1 to 1 pictures a prompt, not 4"


def lose_last(metadata, details, colors):
    del details[metadata["include"][-1]["class"]]
    colors.clear()


def one_more(metadata, details, colors):
    details[metadata["include"][0]["class"]].append(box(300, 300))


def one_less(metadata, details, colors):
    details[metadata["include"][0]["class"]].pop()


def unsure(metadata, details, colors):
    for found in details.values():
        for each in found:
            each[4] = 0.85


def recolor(metadata, details, colors):
    for name, found in colors.items():
        colors[name] = [COLORS[(COLORS.index(c) + 1) % len(COLORS)] for c in found]


def swap_colors(metadata, details, colors):
    first, second = (entry["class"] for entry in metadata["include"])
    colors[first], colors[second] = colors[second], colors[first]


def swap_places(metadata, details, colors):
    first, second = (entry["class"] for entry in metadata["include"])
    details[first], details[second] = details[second], details[first]


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ("single_object", lose_last),
        ("two_object", lose_last),
        ("counting", one_more),
        ("counting", one_less),
        ("counting", unsure),  # 0.85 is enough in all other tasks
        ("colors", recolor),
        ("position", swap_places),
        ("color_attr", swap_colors),
    ],
)
def test_one_kind_of_error_lowers_its_task_alone(tmp_path, task, error):
    def change(metadata, details, colors):
        if metadata["tag"] == task or error is unsure:
            error(metadata, details, colors)

    scores = scored(tmp_path, change)
    assert {name: t.share for name, t in scores.tasks.items()} == {
        name: float(name != task) for name in GENEVAL_TASKS
    }
    assert scores.overall == pytest.approx(5 / 6)


def test_surplus_objects_matter_in_counting_alone(tmp_path):
    def change(metadata, details, colors):
        for name in list(details):
            details[name].append(box(400, 400, score=0.94))
            if name in colors:
                colors[name].append("red")

    scores = scored(tmp_path, change)
    assert scores.tasks["counting"].share == 0
    assert {t.share for name, t in scores.tasks.items() if name != "counting"} == {1.0}


def entry(name, count=1, **fields):
    return {"class": name, "count": count, **fields}


def conditions(*include, exclude=(), tag="two_object"):
    return {"tag": tag, "prompt": "p", "include": list(include), "exclude": list(exclude)}


def objects(colors=None, **details):
    return make_objects(details, colors, "test")


def test_thresholds_are_exclusive_and_sixteen_of_a_class_are_kept():
    asked = conditions(entry("cat"))
    assert judge(objects(cat=[box(score=0.3)]), asked).correct is False
    assert judge(objects(cat=[box(score=0.31)]), asked).correct is True
    counting = conditions(entry("cat"), tag="counting")
    assert judge(objects(cat=[box(score=0.9)]), counting).correct is False
    many = objects(cat=[box(score=0.95)] * 20)
    assert judge(many, conditions(exclude=[entry("cat", 17)], tag="counting")).correct is True
    assert judge(many, conditions(exclude=[entry("cat", 16)], tag="counting")).correct is False
    assert judge(many, conditions(entry("cat", 17), tag="counting")).correct is False
    assert judge(many, counting, Thresholds(per_class=0)).correct is False


def test_include_is_and_exclude_is_or():
    both = conditions(entry("cat"), entry("dog"))
    assert judge(objects(cat=[box()]), both).correct is False
    assert judge(objects(cat=[box()], dog=[box()]), both).correct is True
    none = conditions(exclude=[entry("cat"), entry("dog")])
    assert judge(objects(), none).correct is True
    assert judge(objects(cat=[box()]), none).correct is False
    assert judge(objects(dog=[box()]), none).correct is False


def test_only_the_surest_are_looked_at_for_colour_and_position():
    asked = conditions(entry("cat", color="red"), tag="colors")
    two = {"cat": [box(score=0.5), box(score=0.8)]}
    assert judge(make_objects(two, {"cat": ["blue", "red"]}, ""), asked).correct is True
    assert judge(make_objects(two, {"cat": ["red", "blue"]}, ""), asked).correct is False
    place = conditions(entry("cat"), entry("dog", position=["right of", 0]), tag="position")
    dogs = [box(300, 100, score=0.6), box(0, 100, score=0.9)]
    assert judge(objects(cat=[box()], dog=dogs), place).correct is False
    dogs[0][4] = 0.99
    assert judge(objects(cat=[box()], dog=dogs), place).correct is True


def test_what_refers_to_a_missing_object_is_wrong():
    place = conditions(entry("cat", color="red"), entry("dog", position=["right of", 0]))
    found = judge(objects({"cat": ["blue"]}, cat=[box()], dog=[box(300)]), place)
    assert found.correct is False and len(found.reasons) == 2
    assert found.reasons == ("0 of 1 cat red: blue", "nothing that dog could be right of")


@pytest.mark.parametrize(
    ("a", "found"),
    [
        ((300, 100), {"right of"}),
        ((0, 100), {"left of"}),
        ((100, 0), {"above"}),
        ((100, 300), {"below"}),
        ((300, 300), {"right of", "below"}),
        ((0, 0), {"left of", "above"}),
        ((300, 180), {"right of"}),  # 80 of 215 down: less than half
        ((100, 100), set()),
        ((103, 100), set()),  # within a tenth of both sizes
        ((104, 100), set()),  # exactly a tenth of both
        ((107, 100), set()),  # beyond, but by less than half of the distance
        ((109, 100), {"right of"}),
    ],
)
def test_relations_are_by_centres_less_a_tenth_of_both_sizes(a, found):
    assert relations(np.array(box(*a)), np.array(box())) == found


def test_colours_that_are_not_known_leave_the_official_verdict(tmp_path):
    asked = conditions(entry("cat", color="red"), tag="colors")
    line = {"filename": "a", "metadata": json.dumps(asked), "details": json.dumps({"cat": [box()]})}
    lines = [
        line | {"filename": "right", "correct": True},
        line | {"filename": "wrong", "correct": False, "reason": "blue"},
        line
        | {"filename": "none", "correct": True, "details": "{}"},  # no cat, whatever the colours
    ]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    assert [r.correct for r in replay(read_results(path))] == [True, False, False]
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match="of 1 pictures it is not known whether they are right"):
        score_results(replay(read_results(path)))


def official_line(i, metadata, correct):
    """A line as pandas writes it from the official script."""
    return json.dumps(
        {
            "filename": f"out/{i:05d}/samples/{i % 4:05d}.png",
            "tag": metadata["tag"],
            "prompt": metadata["prompt"],
            "correct": correct,
            "reason": "" if correct else "expected bench>=1, found 0",
            "metadata": json.dumps(metadata),
            "details": "{}",
        },
        separators=(",", ":"),
    ).replace("/", "\\/")


def test_the_overall_score_is_the_mean_of_tasks_and_not_of_pictures(tmp_path):
    """One prompt of each task with four pictures, but ten prompts of the last."""
    chosen = [next(m for m in PROMPTS if m["tag"] == tag) for tag in GENEVAL_TASKS[:5]]
    chosen += [m for m in PROMPTS if m["tag"] == "color_attr"][:10]
    rows = [m for m in chosen for _ in range(4)]
    verdicts = [True, True, True, False] * 5 + [False] * 39 + [True]
    path = tmp_path / "results.jsonl"
    lines = [official_line(i, m, v) for i, (m, v) in enumerate(zip(rows, verdicts, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    scores = score_results(read_results(path))
    assert [scores.tasks[tag].share for tag in GENEVAL_TASKS] == [0.75] * 5 + [1 / 40]
    assert scores.overall == pytest.approx((5 * 0.75 + 1 / 40) / 6)
    assert scores.images == pytest.approx(16 / 60) and scores.prompts == pytest.approx(6 / 15)
    assert (scores.image_count, scores.prompt_count) == (60, 15)
    assert scores.incomplete == "15 of 553 prompts"
    table = scores.table()
    assert list(table)[-1] == "mean" and table["counting"] == {"share": 0.75, "count": 4}
    assert math.isclose(table["mean"]["share"], scores.overall)


def test_a_whole_run_is_complete(tmp_path):
    path = tmp_path / "results.jsonl"
    rows = [m for m in PROMPTS for _ in range(4)]
    lines = [official_line(i, m, i % 3 == 0) for i, m in enumerate(rows)]
    path.write_text("\n".join(lines))
    scores = score_results(read_results(path))
    assert scores.incomplete == "" and (scores.image_count, scores.prompt_count) == (2212, 553)
    path.write_text("\n".join(lines[:-1]))
    assert score_results(read_results(path)).incomplete == "3 to 4 pictures a prompt, not 4"
    other = PROMPTS[0] | {"prompt": "a photo of another bench"}
    path.write_text(
        "\n".join([*lines[:-4], *(official_line(i, other, True) for i in (9998, 9999))])
    )
    assert score_results(read_results(path)).incomplete == "prompts that are not GenEval's: 1"
    only = [line for line, m in zip(lines, rows, strict=True) if m["tag"] != "counting"]
    path.write_text("\n".join(only))
    assert score_results(read_results(path)).incomplete == "no pictures of counting"


GOOD = json.loads(official_line(0, PROMPTS[0], True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no results"),
        (b"\n\n", "has no results"),
        (b"{", "line 1 is no JSON: '{'; the writer was killed"),
        (b"[]", 'line 1: must be an object with a "filename"'),
        (b"[" * 100_000, "line 1 is no JSON"),
        (GOOD | {"filename": None}, "line 1: must be an object"),
        (GOOD | {"metadata": "{"}, "line 1, metadata: is no JSON"),
        (GOOD | {"metadata": {"tag": "x"}}, "line 1: these are no conditions of GenEval"),
        (GOOD | {"metadata": PROMPTS[0] | {"include": [{"class": "x"}]}}, "no conditions"),
        (GOOD | {"metadata": PROMPTS[0] | {"include": [entry("x", 0)]}}, "no conditions"),
        (
            GOOD | {"metadata": PROMPTS[0] | {"include": [entry("x", color="mauve")]}},
            "no conditions",
        ),
        (
            GOOD | {"metadata": PROMPTS[0] | {"include": [entry("x", position=["above", 0])]}},
            "no cond",
        ),
        (
            GOOD
            | {
                "metadata": PROMPTS[-1]
                | {"include": [entry("x"), entry("y", position=["above", 0.0])]}
            },
            "no",
        ),
        (GOOD | {"tag": "colors"}, "the tag 'colors' is not that of its metadata"),
        (GOOD | {"correct": "yes"}, '"correct" must be true or false'),
        (GOOD | {"details": {"cat": [[1, 2, 3]]}}, "detections must be"),
        (GOOD | {"details": {"cat": [box(score=float("nan"))]}}, "detections must be"),
        (GOOD | {"details": {"cat": [box()]}, "colors": {"cat": []}}, "for each box"),
        (GOOD | {"details": {"cat": [box()]}, "colors": {"cat": ["mauve"]}}, "for each box"),
        (GOOD | {"details": {}, "colors": {"cat": ["red"]}}, "for each box"),
        (
            json.dumps(GOOD).encode() * 1 + b"\n" + json.dumps(GOOD).encode(),
            "line 2.* is there twice",
        ),
    ],
)
def test_bad_lines_are_told_with_their_number(tmp_path, content, message):
    path = tmp_path / "results.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=message) as caught:
        read_results(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_results_without_detections_are_not_replayed(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != "details"}))
    assert score_results(read_results(path)).overall == 1
    with pytest.raises(UserError, match='has no "details"'):
        replay(read_results(path))
    with pytest.raises(UserError, match="there are no results"):
        score_results([])


def test_boxes_keep_their_colours_when_they_are_sorted():
    found = Objects(
        {"cat": np.array([box(score=0.4), box(score=0.9)], np.float32)}, {"cat": ["red", "blue"]}
    )
    asked = conditions(entry("cat", 2, color="red"), tag="colors")
    assert judge(found, asked).reasons == ("1 of 2 cat red: blue, red",)
