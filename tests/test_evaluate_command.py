"""`janus-evaluate`: what is wrong with its flags in one line, and the whole command on the smallest model."""

import json
import sys

import pytest
from benchmark_files import write_layout
from dummies_answering import Answerer
from smoke_model import write_smoke_model

from janus_jax.cli import evaluate, evaluate_model, evaluate_run
from janus_jax.config import JANUS_1_3B, JANUS_PRO_1B, JANUS_PRO_7B, JANUS_TINY
from janus_jax.evaluation.generation import geneval_prompts


@pytest.fixture
def files(tmp_path):
    return {name: write_layout(name, "tsv", tmp_path / name)[0][0] for name in ("pope", "mme")}


def call(monkeypatch, capsys, *argv):
    """(exit code, standard output, standard error) of the command."""
    monkeypatch.setattr(sys, "argv", ["janus-evaluate", *map(str, argv)])
    code = 0
    try:
        evaluate.command()
    except SystemExit as ended:
        code = ended.code or 0
    return code, *capsys.readouterr()


RUN = ("run", "--checkpoint", "/no/such/model", "--quiet")
BAD = [
    (("rnu",), "Did you mean 'run'?"),
    (("run", "--data", "pope={pope}"), "give --checkpoint"),
    (RUN, "nothing to ask"),
    ((*RUN, "--data", "poep={pope}"), "Did you mean 'pope'?"),
    ((*RUN, "--data", "pope={pope}", "--data", "pope={pope}"), "is there twice"),
    ((*RUN, "--data", "pope={pope}", "--out", "s3://x/y"), "object stores"),
    ((*RUN, "--data", "pope={pope}", "--out", "{pope}"), "cannot be a directory"),
    ((*RUN, "--data", "pope"), "write it as pope=PATH"),
    ((*RUN, "--data", "{pope}"), "write it as NAME=PATH, such as pope=/"),
    ((*RUN, "--data", "pope=/no/such.tsv"), "/no/such.tsv"),
    (
        (*RUN, "--data", "pope={pope}", "--judge", "nonsense"),
        "self (the checkpoint itself), ADDRESS#M",
    ),
    ((*RUN, "--data", "pope={pope}", "--judge", "localhost:80/v1#x"), "such as http://localhost"),
    ((*RUN, "--data", "mme={pope}"), "is no mme"),
    ((*RUN, "--data", "pope={pope}", "--protocol", "papre"), "Did you mean 'paper'?"),
    ((*RUN, "--data", "pope={pope}", "--protocol", ","), "--protocol is empty"),
    ((*RUN, "--data", "pope={pope}", "--limit", "0"), "--limit must be at least 1"),
    ((*RUN, "--data", "pope={pope}", "--batch_size", "0"), "--batch_size must be"),
    ((*RUN, "--data", "pope={pope}", "--images", "/no/such"), "is no directory"),
    ((*RUN, "--data", "pope={pope}"), "/no/such/model"),
    ((*RUN, "--benchmark", "emoji/questoins"), "Did you mean 'emoji/questions'?"),
    ((*RUN, "--benchmark", "{{"), "is no JSON"),
    ((*RUN, "--benchmark", '{{"name": "emoji/questions", "prompts": 1}}'), "no option 'prompts'"),
    (("draw", "--checkpoint", "models/x", "--out", "y"), "give --prompts"),
    (("draw", "--checkpoint", "models/x", "--out", "y", "--prompts", "genevl"), "'geneval'?"),
    (("detect", "--pictures", "x", "--out", "y.jsonl"), "--detector is missing"),
    (
        ("judge", "--pictures", "x", "--out", "y", "--questions", "z", "--judge", "self"),
        "--checkpoint",
    ),
    (
        ("judge", "--pictures", "x", "--out", "y", "--questions", "z", "--judge", "gpt-4o"),
        "or module:function",
    ),
    (("score", "geneva", "x"), "Did you mean 'geneval'?"),
    (("score", "geneval", "/no/such.jsonl"), "/no/such.jsonl"),
    (("score", "geneval", "{pope}", "--model", "Janus-Pro"), "Did you mean 'Janus-Pro-"),
    (("score", "dpg"), "--questions"),
    (("table", "/no/such"), "has no scores.json"),
    (("table",), "DIR"),
]


@pytest.mark.parametrize(("argv", "part"), BAD)
def test_what_is_wrong_is_said_in_one_line(monkeypatch, capsys, tmp_path, files, argv, part):
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    code, _, error = call(monkeypatch, capsys, *(arg.format(**files) for arg in argv))
    assert code == 2 and error.count("\n") == 1 and error.startswith("error: ")
    assert part in error
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("word", ["run", "draw", "detect", "judge", "score", "table"])
def test_every_command_explains_itself_with_an_example(monkeypatch, capsys, word):
    code, shown, _ = call(monkeypatch, capsys, word, "--help")
    assert code == 0 and f"janus-evaluate {word}" in shown


def test_forgotten_pictures_are_told_before_the_model_is_loaded(monkeypatch, capsys, tmp_path):
    paths, _ = write_layout("pope", "json", tmp_path / "pope")
    out = tmp_path / "out"
    argv = (*RUN, "--data", f"pope={paths[0]}", "--out", out)
    code, shown, error = call(monkeypatch, capsys, *argv)
    assert code == 2 and error.count("\n") == 1 and not shown and not out.exists()
    assert "--images" in error and "COCO_val2014_000000000000.jpg" in error


def test_the_command_without_a_model_behind_it(monkeypatch, capsys, tmp_path, files):
    janus = _Loaded(JANUS_PRO_1B)
    janus.with_prompts = lambda template, system: janus
    janus.answer_batch = lambda images, questions, **settings: ["No."] * len(questions)
    monkeypatch.setattr(evaluate_model, "load", lambda flags: (janus, {"checkpoint": "x"}))
    argv = [
        "run",
        "--checkpoint",
        "x",
        "--data",
        f"pope={files['pope']}",
        "--out",
        tmp_path / "out",
    ]
    code, shown, error = call(monkeypatch, capsys, *argv, "--protocol", "paper,vlmevalkit")
    assert code == 0 and error == ""  # a bar is for a terminal
    assert "accuracy random (4 of at least 2910)" in shown and "paper, Janus-Pro-1B" in shown
    assert "F1 overall (12 of at least 5000, protocol vlmevalkit)" in shown
    assert f"page: {tmp_path}/out/index.html" in shown
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 24
    code, _, error = call(monkeypatch, capsys, *argv)
    assert code == 2 and error.count("\n") == 1 and "vlmevalkit/pope" in error


@pytest.mark.slow
def test_the_command_asks_a_model_and_goes_on_with_more(monkeypatch, capsys, tmp_path, files):
    model, out = write_smoke_model(tmp_path / "model"), tmp_path / "out"
    data = [arg for name, path in files.items() for arg in ("--data", f"{name}={path}")]
    argv = ["run", "--checkpoint", model, *data, "--out", out, "--quiet", "--batch_size", "8"]
    code, shown, _ = call(monkeypatch, capsys, *argv, "--limit", "4")
    assert code == 0 and "F1 random (4 of 12, " in shown.replace("(4 of 12)", "(4 of 12, ")
    first = (out / "predictions.jsonl").read_text()
    code, shown, _ = call(monkeypatch, capsys, *argv, "--export", "tsv")
    assert code == 0 and (out / "predictions.jsonl").read_text().startswith(first)
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 24
    scores = json.loads((out / "scores.json").read_text())
    assert scores["complete"] and scores["model"]["paper_model"] is None
    assert (out / "vlmevalkit_files" / "paper" / "out_POPE.tsv").is_file()
    code, shown, _ = call(monkeypatch, capsys, "table", out, "--markdown")
    assert code == 0 and "| pope | F1 random (4 of at least 2910) | paper |" in shown
    other = write_smoke_model(tmp_path / "other")
    argv[2] = other
    code, _, error = call(monkeypatch, capsys, *argv)
    assert code == 2 and "another model: checkpoint" in error


def test_official_results_are_added_up_and_shown_in_a_table(monkeypatch, capsys, tmp_path):
    lines = []
    for prompt in geneval_prompts().prompts:
        for sample in range(4):
            fields = {"metadata": prompt.metadata, "correct": sample < 3}
            lines.append(json.dumps(fields | {"filename": f"{prompt.key}/samples/{sample:04}.png"}))
    results, out = tmp_path / "results.jsonl", tmp_path / "out"
    results.write_text("\n".join(lines))
    argv = ("score", "geneval", results, "--model", "Janus-Pro-7B", "--out", out)
    code, shown, _ = call(monkeypatch, capsys, *argv)
    row = shown.splitlines()[2].split()
    assert (
        code == 0 and row[:2] == ["geneval", "overall"] and row[-3:] == ["0.750", "0.800", "-0.050"]
    )
    results.write_text("\n".join([json.dumps({"header": {"detector": "mine"}}), *lines[:-1]]))
    code, shown, _ = call(monkeypatch, capsys, *argv[:5], "--out", tmp_path / "proxy")
    assert "overall (3 to 4 pictures a prompt, not 4, judged by mine)" in shown
    code, shown, _ = call(monkeypatch, capsys, "table", out, tmp_path / "proxy")
    rows = [line.split() for line in shown.splitlines() if "overall" in line]
    assert rows[0][-5:] == ["0.750", "-", "0.610", "0.730", "0.800"] and rows[1][-3:] == ["-"] * 3


class _Loaded:
    def __init__(self, config, template="deepseek"):
        self.config = config.replace(scan_layers=False)
        self.processor = type("P", (), {"config": type("C", (), {"template": template})})


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (_Loaded(JANUS_PRO_7B), "Janus-Pro-7B"),
        (_Loaded(JANUS_PRO_1B.replace(name="mine")), "Janus-Pro-1B"),
        (_Loaded(JANUS_1_3B), "Janus"),
        (_Loaded(JANUS_PRO_1B, "deepseek_old"), "Janus"),
        (_Loaded(JANUS_TINY), None),
    ],
)
def test_the_papers_models_are_known_by_their_architecture(model, wanted):
    assert evaluate_model.paper_model(model) == wanted


def test_a_run_directory_knows_the_options_of_its_benchmarks(tmp_path):
    entry = {"name": "emoji/questions", "questions": 7, "world": {"grid": 2, "image_size": 48}}
    (tmp_path / "config.json").write_text(json.dumps({"eval": {"benchmarks": [entry]}}))
    flags = evaluate_run.parse_flags(
        [
            "--checkpoint",
            str(tmp_path),
            "--benchmark",
            "emoji/questions,emoji/geneval",
            "--cfg_weight=2",
        ]
    )
    questions, geneval = evaluate_run.named_benchmarks(flags)
    assert questions.benchmark.questions == 7 and questions.benchmark.world["grid"] == 2
    assert geneval.entry == {"name": "emoji/geneval"} and geneval.sampling == {"cfg_weight": 2.0}


def test_a_judge_is_a_function_or_the_model_itself(tmp_path, monkeypatch):
    complete, name = evaluate_run.make_complete("self", Answerer(lambda text: f"said {text}"))
    assert complete("x", 1) == "said x" and name == "the model itself"
    (tmp_path / "a_judge.py").write_text("def ask(prompt, number):\n    return str(number)\n")
    monkeypatch.syspath_prepend(tmp_path)
    complete, name = evaluate_run.make_complete("a_judge:ask", None)
    assert complete("x", 3) == "3" and name == "a_judge:ask"
