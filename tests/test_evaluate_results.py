"""Numbers of a run: their names, what may stand beside the paper's, what a directory refuses, and the page."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from benchmark_files import tsv_rows, write_layout, write_tsv
from dummies_answering import Answerer

from janus_jax.errors import UserError
from janus_jax.evaluation import results
from janus_jax.evaluation.asking import make_task
from janus_jax.evaluation.benchmark import Benchmark
from janus_jax.evaluation.drawn_numbers import dpg_numbers, geneval_numbers
from janus_jax.evaluation.failures import MOST
from janus_jax.evaluation.generation import DpgScores, GenEvalScores
from janus_jax.evaluation.generation.geneval import TaskScore
from janus_jax.evaluation.number_tables import (
    as_markdown,
    as_text,
    read_scores,
    runs_grid,
)
from janus_jax.evaluation.results import Number
from janus_jax.evaluation.running import Named, run
from janus_jax.evaluation.settings import model_settings
from janus_jax.evaluation.tables import Grid
from janus_jax.evaluation.understanding import get_protocol, open_benchmark, vlmevalkit_tsv

MODEL = {"checkpoint": "models/dummy", "fingerprint": "1"}
HOSTILE = '<script>alert("x")</script>\x1b[31m\u202e"><img src=x onerror=1>'


def task_of(tmp_path, benchmark="pope", protocol="paper", limit=None, rows=None):
    rules = get_protocol(protocol, benchmark)
    folder = tmp_path / f"{benchmark}{len(rows or [])}"
    folder.mkdir(exist_ok=True)
    path = write_tsv(folder / "table.tsv", rows or tsv_rows(benchmark))
    return make_task(open_benchmark(benchmark, path, split=rules.split), rules, limit)


@pytest.fixture
def whole(monkeypatch):
    """Twelve questions are a whole benchmark, and tables of them the known ones."""
    monkeypatch.setattr(vlmevalkit_tsv, "md5_warning", lambda path, facts: "")
    monkeypatch.setattr(results, "LEAST", {})


def test_a_whole_run_stands_beside_the_paper(tmp_path, whole):
    task = task_of(tmp_path)
    outcome = run(Answerer(), [task], tmp_path / "out", MODEL, paper_model="Janus-Pro-1B")
    head, *others = outcome.numbers
    value = outcome.results[0].scores.tables["pope"]["random"]["f1"]
    assert (head.metric, head.value, head.paper) == ("F1 random", value, 86.2)
    assert head.difference == pytest.approx(value - 86.2) and head.headline
    assert [n.metric for n in others] == [
        *("F1 overall", "F1 mean of 3", "accuracy random", "accuracy overall")
    ]
    assert all(n.paper is None and not n.headline for n in others)
    stored = read_scores(tmp_path / "out")
    assert stored["numbers"] == list(outcome.numbers) and stored["complete"] is True


@pytest.mark.parametrize(
    ("protocol", "limit", "metric"),
    [
        ("paper", 8, "F1 random (8 of 12)"),
        ("vlmevalkit", None, "F1 overall (protocol vlmevalkit)"),
        ("lmms-eval", 6, "F1 overall (6 of 12, protocol lmms-eval)"),
    ],
)
def test_a_part_or_another_protocol_never_has_the_papers_name(
    tmp_path, whole, protocol, limit, metric
):
    task = task_of(tmp_path, protocol=protocol, limit=limit)
    outcome = run(Answerer(), [task], tmp_path / "out", MODEL, paper_model="Janus-Pro-1B")
    assert outcome.numbers[0].metric == metric
    assert all(n.paper is None and n.difference is None for n in outcome.numbers)
    assert all("(" in n.metric for n in outcome.numbers)
    assert "86.2" not in (tmp_path / "out" / "table.md").read_text()


def test_a_file_that_is_too_small_for_the_benchmark_is_a_part_of_it(tmp_path):
    outcome = run(
        Answerer(), [task_of(tmp_path)], tmp_path / "out", MODEL, paper_model="Janus-Pro-1B"
    )
    assert outcome.numbers[0].metric == "F1 random (4 of at least 2910)"
    assert outcome.numbers[1].metric == "F1 overall (12 of at least 5000)"
    assert outcome.numbers[0].paper is None


def test_a_number_without_some_pictures_never_has_the_papers_name(tmp_path, whole):
    rows = tsv_rows("pope")
    rows[5]["image"] = rows[5]["image"][:60]
    out, task = tmp_path / "out", task_of(tmp_path, rows=rows)
    outcome = run(Answerer(), [task], out, MODEL, paper_model="Janus-Pro-1B")
    assert outcome.numbers[0].metric == "F1 random (1 of 12 pictures unreadable)"
    assert all(n.paper is None and "unreadable" in n.metric for n in outcome.numbers)
    (warning,) = (w for w in outcome.results[0].warnings if "pictures" in w)
    assert "1 of 12 questions counts as wrong" in warning and "popular/6: " in warning
    assert "table.tsv, row 6" in warning


def test_a_number_of_another_file_never_has_the_papers_name(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "LEAST", {})
    outcome = run(
        Answerer(), [task_of(tmp_path)], tmp_path / "out", MODEL, paper_model="Janus-Pro-1B"
    )
    assert outcome.numbers[0].metric == "F1 random (another file)"
    assert all(n.paper is None for n in outcome.numbers)


def test_the_average_of_figure_1_needs_its_four_benchmarks_whole(tmp_path, whole):
    names = ("pope", "mme", "gqa", "mmmu")
    tasks = [task_of(tmp_path, name) for name in names]
    full = run(Answerer(), tasks, tmp_path / "full", MODEL, paper_model="Janus-Pro-7B")
    average = full.numbers[-1]
    heads = {n.benchmark: n.value for n in full.numbers if n.headline}
    wanted = (heads["pope"] + heads["mme"] / 20 + heads["gqa"] + heads["mmmu"]) / 4
    assert average.benchmark == "average" and average.value == pytest.approx(wanted)
    assert average.paper == pytest.approx((87.4 + 1567.1 / 20 + 62.0 + 41.0) / 4)
    tasks[2] = task_of(tmp_path, "gqa", limit=5)
    part = run(Answerer(), tasks, tmp_path / "part", MODEL, paper_model="Janus-Pro-7B")
    assert "average" not in {n.benchmark for n in part.numbers}


def test_mmvet_is_handed_over_ungraded_or_graded_by_a_named_judge(tmp_path, whole):
    task, said = task_of(tmp_path, "mmvet"), []
    ungraded = run(Answerer(), [task], tmp_path / "a", MODEL)
    assert ungraded.numbers == [] and "not graded" in ungraded.results[0].warnings[-1]
    handed = json.loads((tmp_path / "a" / "mmvet_paper.json").read_text())
    assert len(handed) == 12 and set(handed.values()) <= {"Yes", "No"}

    def complete(prompt, number):
        said.append(prompt)
        return "0.5"

    how = dict(complete=complete, judge_name="a friend", paper_model="Janus-Pro-1B")
    graded = run(Answerer(), [task], tmp_path / "a", MODEL, **how)
    assert graded.asked == 0 and len(said) == 12
    (number,) = graded.numbers
    assert (number.metric, number.value, number.paper) == ("score (judged by a friend)", 50.0, None)
    run(Answerer(), [task], tmp_path / "a", MODEL, **how)
    assert len(said) == 12  # what a judge said is kept


def test_what_a_judge_does_not_grade_is_no_score_of_zero(tmp_path, whole):
    task, out, grades = task_of(tmp_path, "mmvet"), tmp_path / "out", iter(["0.5"] * 9)

    def complete(prompt, number):
        if (said := next(grades, "")) == "":
            raise OSError("gone")
        return said

    how = dict(complete=complete, judge_name="a friend", paper_model="Janus-Pro-1B")
    (part,) = run(Answerer(), [task], out, MODEL, **how).numbers
    assert part.metric == "score (9 of 12 graded, judged by a friend)" and part.value == 50.0
    how["judge_name"] = "a foe"
    none = run(Answerer(), [task], out, MODEL, **how)
    (number,) = none.numbers
    assert (number.metric, number.value) == ("score (not graded)", None)
    assert none.results[0].scores is None and "gone" in none.results[0].warnings[-2]
    assert "| score (not graded) | paper | - |" in (out / "table.md").read_text()
    assert read_scores(out)["numbers"] == [number]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (dict(model=dict(MODEL, fingerprint="2")), "another model: fingerprint"),
        (dict(model=dict(MODEL, adapter="x")), "another model: adapter"),
        (dict(data={"paper/pope": {"data": "2", "files": ["POPE.tsv"]}}), "POPE.tsv has changed"),
        (dict(data={"paper/pope": {"data": "1", "files": ["P.tsv"]}}), "benchmarks: paper/pope"),
        (dict(protocol="vlmevalkit"), "set of benchmarks: vlmevalkit/pope"),
    ],
)
def test_answers_of_something_else_are_refused_in_a_line(tmp_path, change, part):
    out = tmp_path / "out"
    data = {"paper/pope": {"data": "1", "files": ["POPE.tsv"]}}
    run(Answerer(), [task_of(tmp_path)], out, MODEL, data=data)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    task = task_of(tmp_path, protocol=change.get("protocol", "paper"))
    with pytest.raises(UserError, match="choose another --out") as error:
        run(Answerer(), [task], out, change.get("model", MODEL), data=change.get("data", data))
    assert part in str(error.value) and "\n" not in str(error.value)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_answers_without_their_settings_are_refused(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(UserError, match=r"has answers and no run\.json"):
        run(Answerer(), [task_of(tmp_path)], tmp_path, MODEL)
    (tmp_path / "run.json").write_text('{"format": 1, "layout": "geneval"}')
    with pytest.raises(UserError, match="damaged"):
        run(Answerer(), [task_of(tmp_path)], tmp_path, MODEL)


def test_a_model_is_known_by_its_files_and_step(tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "w").write_bytes(bytes(3 * 2**20))
    one = model_settings(str(tmp_path), {})
    (tmp_path / "params" / "w").write_bytes(bytes(3 * 2**20 - 1) + b"1")
    assert model_settings(str(tmp_path), {})["fingerprint"] != one["fingerprint"]
    step = tmp_path / "checkpoints" / "stage3" / "10"
    step.mkdir(parents=True)
    (step / "checksums.json").write_text("{}")
    found = model_settings(str(tmp_path), {"stage": "stage3", "step": 10})
    (tmp_path / "metrics.jsonl").write_text("{}")  # a run that goes on writes these
    assert model_settings(str(tmp_path), {"stage": "stage3", "step": 10}) == found
    assert (found["stage"], found["step"]) == ("stage3", 10)


class _Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.sources = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attrs)


def test_nothing_on_the_page_is_markup_or_control_characters(tmp_path):
    rows = tsv_rows("seed")
    for row in rows:
        row["question"] = row["A"] = HOSTILE
        row["category"] = HOSTILE
    rows[0]["image"] = "!" * 100
    task = task_of(tmp_path, "seed", rows=rows)
    model = dict(MODEL, checkpoint=HOSTILE)
    run(Answerer(lambda text: HOSTILE), [task], tmp_path / "out", model, paper_model="Janus")
    html = (tmp_path / "out" / "index.html").read_text()
    page = _Page(html)
    assert "script" not in page.tags and html.count("alert(") > 12
    assert "\x1b" not in html and "\u202e" not in html
    assert page.sources and all(
        s.startswith(("data:image/png;", "data:image/jpeg;")) for s in page.sources
    )
    markdown = (tmp_path / "out" / "table.md").read_text()
    assert "\x1b" not in markdown and "\u202e" not in markdown


def test_the_page_has_few_failures_of_all_categories(tmp_path):
    rows = [dict(r, index=f"{r['index']}/{n}") for n in range(20) for r in tsv_rows("pope")]
    task = task_of(tmp_path, rows=rows)
    run(Answerer(lambda text: "perhaps"), [task, task_of(tmp_path, "mme")], tmp_path / "out", MODEL)
    html = (tmp_path / "out" / "index.html").read_text()
    shown = re.findall(r'class="failure"><p class="soft">(paper/\w+) · (\w+)', html)
    assert len(shown) == MOST and ("paper/mme", "code_reasoning") in shown
    assert {kind for name, kind in shown if name == "paper/pope"} == {
        "random",
        "popular",
        "adversarial",
    }
    assert len(html) < 400_000


def test_benchmarks_of_the_registry_are_run_once_and_give_their_means(tmp_path):
    class Some(Benchmark):
        name, needs, runs = "mine/some", "answer", 0

        def run(self, predictor):
            Some.runs += 1
            return {
                "t": {"a": {"share": 1, "count": 2}, "mean": {"share": 0.5}},
                "groups": {"g": {"mean": {"share": 0.1}}},
            }

    named = [Named({"name": "mine/some", "sizes": (1, 2)}, Some())]
    for _ in range(2):
        outcome = run(Answerer(), [], tmp_path / "out", MODEL, named=named)
        assert [(n.metric, n.value) for n in outcome.numbers] == [("t, mean share", 0.5)]
    assert Some.runs == 1 and "mine/some" in (tmp_path / "out" / "table.md").read_text()
    assert "groups, g" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(UserError, match="mine/some"):
        other = [Named({"name": "mine/some", "sizes": (1, 3)}, Some())]
        run(Answerer(), [], tmp_path / "out", MODEL, named=other)


def test_tables_of_text_and_markdown_hold_any_name():
    grid = Grid(["a|b", "x"], [["<i>\n", "\x1b[31m"], ["c" * 500, 1]])
    assert "\x1b" not in as_text(grid) and max(map(len, as_text(grid).split("\n"))) < 200
    lines = as_markdown(grid).strip().split("\n")
    assert len(lines) == 4 and lines[0] == "| a\\|b | x |" and "<i>" not in lines[2]


def test_runs_stand_side_by_side_and_other_measures_have_rows_of_their_own():
    number = Number("pope", "F1 random", 80.0, "paper")
    part = dataclasses.replace(number, metric="F1 random (8 of 12)", value=90.0)
    grid = runs_grid({"one": [number], "two": [dataclasses.replace(number, value=81.0), part]})
    assert grid.rows == [
        ["pope", "F1 random", "paper", "-", "80.00", "81.00", "87.00", "86.20", "87.40"],
        ["pope", "F1 random (8 of 12)", "paper", "-", "-", "90.00", "-", "-", "-"],
    ]


def test_scores_of_drawings_carry_what_is_missing_and_who_judged():
    tasks = {"counting": TaskScore(1, 2)}
    whole = GenEvalScores(0.5, tasks, 0.5, 0.5, 2, 1, "")
    official = geneval_numbers(whole, "Janus-Pro-7B")
    assert [(n.metric, n.paper) for n in official] == [("overall", 0.80), ("counting", 0.59)]
    proxy = geneval_numbers(whole, "Janus-Pro-7B", "judged by X")
    assert (proxy[0].metric, proxy[0].paper) == ("overall (judged by X)", None)
    part = DpgScores(50.0, {"global": 40.0}, {}, {}, (), "3 of 1065 prompts")
    found = dpg_numbers(part, "Janus-Pro-1B")
    assert (found[1].metric, found[1].paper) == ("global (3 of 1065 prompts)", None)


def test_a_directory_without_scores_or_with_damaged_ones_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no scores\.json"):
        read_scores(tmp_path)
    for content in (
        '{"stage1": {"mean": 1}}',
        '{"format": 1, "numbers": 3, "model": {}}',
        "[]",
        "{",
    ):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(UserError):
            read_scores(tmp_path)
    number = {"benchmark": "pope", "metric": "x", "value": "y"}
    (tmp_path / "scores.json").write_text(
        json.dumps({"format": 1, "numbers": [number], "model": {}})
    )
    with pytest.raises(UserError):
        read_scores(tmp_path)


def test_one_benchmark_under_two_protocols_shares_no_answer(tmp_path):
    (path,), _ = write_layout("gqa", "tsv", tmp_path / "gqa")
    tasks = [
        make_task(open_benchmark("gqa", path), get_protocol(name, "gqa"))
        for name in ("paper", "vlmevalkit")
    ]
    predictor = Answerer()
    run(predictor, tasks, tmp_path / "out", MODEL)
    assert len(predictor.asked) == 24
    assert [t for t, _ in predictor.templates] == ["deepseek", "deepseek_old"]
    with pytest.raises(UserError, match="twice"):
        run(predictor, [tasks[0], tasks[0]], tmp_path / "other", MODEL)
