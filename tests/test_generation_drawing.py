"""Pictures in the layouts of the official scorers, whole after any number of kills."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from dummies_drawing import Killed, Painter, paint
from PIL import Image

from janus_jax import files
from janus_jax.errors import UserError
from janus_jax.evaluation.generation import (
    draw,
    geneval_prompts,
    grid,
    grid_crops,
    make_prompts,
    prompt_set,
    read_run,
    seed_of,
)

ROOT = Path(__file__).resolve().parent.parent


def texts(*lines):
    return make_prompts("mine", [("", line, "") for line in lines])


def dpg(*keys):
    return make_prompts("dpg", [(key, f"a long text about {key}", "") for key in keys])


def pixels(path):
    return np.asarray(Image.open(path))


def contents(directory):
    return {
        str(p.relative_to(directory)): p.read_bytes()
        for p in sorted(directory.rglob("*"))
        if p.is_file()
    }


def pictures(directory):
    found = contents(directory)
    return {n: c for n, c in found.items() if n.endswith(".png") and Path(n).name[0] != "."}


def test_geneval_folders_hold_the_source_lines_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(
        files, "sync", lambda path: None
    )  # 1,106 files; that they reach the disk is not the point
    done = draw(Painter(), geneval_prompts(), tmp_path, samples=1, batch=100)
    assert (done.layout, done.pictures, done.drawn) == ("geneval", 553, 553)
    source = ROOT / "janus_jax/evaluation/generation/assets/geneval_evaluation_metadata.jsonl"
    lines = source.read_bytes().splitlines()
    folders = sorted(p for p in tmp_path.iterdir() if p.is_dir())
    assert [p.name for p in folders] == [f"{i:05d}" for i in range(553)]
    assert [(p / "metadata.jsonl").read_bytes() for p in folders] == lines
    for folder in folders:
        assert [p.name for p in (folder / "samples").iterdir()] == ["0000.png"]
    last = json.loads(lines[-1])["prompt"]
    wanted = paint(last, seed=seed_of(0, 0, 0), cfg_weight=5.0, temperature=1.0)
    assert np.array_equal(pixels(folders[-1] / "samples/0000.png"), wanted)


def test_four_samples_are_four_pictures_with_the_papers_settings(tmp_path):
    prompts = geneval_prompts().spread(3)
    painter = Painter()
    draw(painter, prompts, tmp_path)
    names = sorted(p.name for p in tmp_path.rglob("*.png"))
    assert names == sorted(["0000.png", "0001.png", "0002.png", "0003.png"] * 3)
    assert len({p.read_bytes() for p in tmp_path.rglob("*.png")}) == 12
    assert {(c["cfg_weight"], c["temperature"]) for c in painter.calls} == {(5.0, 1.0)}
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00000", "00184", "00368", "run.json"]


def test_official_evaluators_read_our_names():
    """The patterns by which GenEval and T2I-CompBench find pictures and their prompts."""
    assert re.match(r"\d+\.png", "0003.png") and "00368".isdigit()
    name = "a red book and a blue cup_000013.png"
    assert (name.split("_")[0], int(name.split("_")[-1].split(".")[0])) == (
        "a red book and a blue cup",
        13,
    )


def test_dpg_grids_are_the_samples_in_the_order_of_the_official_crops(tmp_path):
    prompts = dpg("0", "COCOval1", "whoops9")
    draw(Painter(6), prompts, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "0.png",
        "COCOval1.png",
        "run.json",
        "whoops9.png",
    ]
    for prompt in prompts.prompts:
        picture = Image.open(tmp_path / f"{prompt.key}.png")
        assert picture.size == (12, 12)
        boxes = [(0, 0, 6, 6), (6, 0, 12, 6), (0, 6, 6, 12), (6, 6, 12, 12)]
        ours = grid_crops(np.asarray(picture))
        for i, box in enumerate(boxes):
            settings = {"seed": seed_of(0, 0, i), "cfg_weight": 5.0, "temperature": 1.0}
            wanted = paint(prompt.text, 6, **settings)
            assert np.array_equal(np.asarray(picture.crop(box)), wanted)
            assert np.array_equal(ours[i], wanted)


def test_grids_need_squares():
    with pytest.raises(UserError, match="square pictures"):
        grid([np.zeros((2, 3, 3), np.uint8)] * 4)
    with pytest.raises(UserError, match="square pictures"):
        grid([np.zeros((2, 2, 3), np.uint8)] * 3 + [np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(UserError, match="not 3x2"):
        grid_crops(np.zeros((2, 3, 3), np.uint8))
    picture = np.zeros((3, 5, 3), np.uint8)
    assert grid_crops(picture, 1)[0] is picture


def test_compbench_names_count_through_the_whole_set(tmp_path):
    path = tmp_path / "color_val.txt"
    path.write_text("a green bench and a red car\tcolor\n\na blue bird\n")
    draw(Painter(), prompt_set(path), tmp_path / "out", samples=2, layout="compbench")
    names = sorted(p.name for p in (tmp_path / "out" / "samples").iterdir())
    assert names == [
        "a blue bird_000002.png",
        "a blue bird_000003.png",
        "a green bench and a red car_000000.png",
        "a green bench and a red car_000001.png",
    ]


@pytest.mark.parametrize("text", ["a/b", "snake_case", "a\\b", ".hidden", "x" * 241, "a\x1b[2Jb"])
def test_compbench_refuses_prompts_that_are_no_names(tmp_path, text):
    with pytest.raises(UserError, match="T2I-CompBench's layout: the prompt") as caught:
        draw(Painter(), texts(text), tmp_path / "out", layout="compbench")
    assert "\x1b" not in str(caught.value) and not (tmp_path / "out").exists()
    draw(Painter(), texts(text), tmp_path / "out", samples=1)
    assert read_run(tmp_path / "out")["prompts"] == {"00000": text}


def test_long_prompts_are_drawn_whole(tmp_path):
    painter = Painter()
    prompts = prompt_set("dpg").spread(40)
    draw(painter, prompts, tmp_path)
    assert {text for text, _ in painter.drawn} == {p.text for p in prompts.prompts}
    assert max(len(p.text.split()) for p in prompts.prompts) > 64


def test_pictures_depend_on_prompt_and_sample_but_not_on_batches(tmp_path):
    prompts = texts("a", "b", "a", "c", "a")
    for batch in (1, 2, 7):
        draw(Painter(), prompts, tmp_path / str(batch), samples=3, batch=batch)
    one, two, seven = (contents(tmp_path / str(batch)) for batch in (1, 2, 7))
    assert one == two == seven
    pictures = [content for name, content in one.items() if name.endswith(".png")]
    assert len(set(pictures)) == 15  # equal prompts, too, are different pictures


def test_seeds_of_a_part_of_a_set_are_those_of_the_whole(tmp_path):
    prompts = texts("a", "b", "a", "c")
    draw(Painter(), prompts, tmp_path / "whole", samples=1)
    part = prompts.spread(2)
    assert [p.number for p in part.prompts] == [0, 2]
    draw(Painter(), part, tmp_path / "part", samples=1)
    assert pixels(tmp_path / "part/00002_0.png").tolist() == (
        pixels(tmp_path / "whole/00002_0.png").tolist()
    )
    done = draw(Painter(), prompts, tmp_path / "part", samples=1)  # the rest of the set
    assert done.drawn == 2
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_seeds_do_not_change_between_versions():
    assert [seed_of(0, 0, 0), seed_of(0, 0, 1), seed_of(7, 1, 3)] == [
        2968811710,
        3831201730,
        1916955614,
    ]


@pytest.mark.parametrize("kind", ["geneval", "dpg", "compbench", "folder"])
def test_killed_at_thirty_moments_nothing_is_lost_halved_or_drawn_twice(
    tmp_path, kind, monkeypatch
):
    prompts = {
        "geneval": geneval_prompts().spread(6),
        "dpg": dpg(*"abcdef"),
    }.get(kind, texts(*"abcdef"))
    draw(Painter(), prompts, tmp_path / "whole", layout=kind, batch=3)
    whole = contents(tmp_path / "whole")
    monkeypatch.setattr(
        files, "sync", lambda path: None
    )  # kills are of the process, not of the machine
    rng = random.Random(kind)
    renamed = Path.replace
    place, kept, kills = tmp_path / "0", {}, 0
    while kills < 30:
        moment = {"left": rng.randrange(12), "before": rng.random() < 0.5}

        def replace(self, target, moment=moment):
            """Dies before or after a file gets its name; the temporary one stays on disk."""
            moment["left"] -= 1
            if moment["left"] < 0 and moment["before"]:
                raise Killed
            found = renamed(self, target)
            if moment["left"] < 0:
                raise Killed
            return found

        painter = Painter(stop_after=rng.randrange(24) if rng.random() < 0.3 else None)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
            try:
                draw(painter, prompts, place, layout=kind, batch=3)
            except Killed:
                kills += 1
        finished = pictures(place)
        assert finished.items() <= whole.items() and kept.items() <= finished.items()
        kept = finished
        if len(kept) == len(pictures(tmp_path / "whole")):
            place, kept = tmp_path / str(kills), {}
    again = Painter()
    done = draw(again, prompts, place, layout=kind, batch=3)
    assert done.drawn == len(again.drawn) == 24 - (4 if kind == "dpg" else 1) * len(kept)
    everything = contents(place)
    leftovers = {name for name in everything if name.endswith(".tmp")}
    assert all(f".{os.getpid()}." in name for name in leftovers)  # of this process, which is alive
    assert {n: c for n, c in everything.items() if n not in leftovers} == whole
    assert draw(Painter(stop_after=0), prompts, place, layout=kind).drawn == 0


@pytest.mark.parametrize("kind", ["geneval", "dpg", "compbench", "folder"])
def test_what_killed_writers_left_is_removed(tmp_path, kind):
    prompts = {"geneval": geneval_prompts().spread(1), "dpg": dpg("a")}.get(kind, texts("a"))
    draw(Painter(), prompts, tmp_path, layout=kind)
    before = contents(tmp_path)
    for name, content in before.items():
        if not name.endswith("run.json"):
            path = tmp_path / name
            path.with_name(f".{path.name}.{2**40}.tmp").write_bytes(content[:5])
    assert len(contents(tmp_path)) > len(before)
    draw(Painter(stop_after=0), prompts, tmp_path, layout=kind)
    assert contents(tmp_path) == before


@pytest.mark.slow
@pytest.mark.subprocess
def test_sigkill_leaves_a_folder_that_goes_on(tmp_path):
    code = (
        "import sys, time; sys.path[:0] = [sys.argv[2]]\n"
        "from dummies_drawing import Painter\n"
        "from janus_jax.evaluation.generation import draw, geneval_prompts\n"
        "painter = Painter(64)\n"
        "done = draw(painter, geneval_prompts().spread(120), sys.argv[1], batch=5)\n"
        "print(done.drawn)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out"), str(ROOT / "tests")]
    kept, kills = set(), 0
    for delay in (0.1, 0.2, 0.3, 0.15, 0.25, 0.2):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        while (
            len(list(tmp_path.glob("out/*/samples/*.png"))) <= len(kept) and process.poll() is None
        ):
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        pictures = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/*/samples/[0-9]*.png")}
        assert kept <= set(pictures.items())  # none is written again
        kept = set(pictures.items())
        assert all(pixels(p).shape == (64, 64, 3) for p in pictures)
    assert kills
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 480 - len(kept)
    names = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert not [name for name in names if name.endswith(".tmp")] and len(names) == 601


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg_weight": 4.0}, "pictures with cfg_weight 5.0, not 4.0"),
        ({"temperature": 0.9}, "temperature 1.0, not 0.9"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"samples": 2}, "samples 4, not 2"),
        ({"model": "another"}, "model '', not 'another'"),
        ({"layout": "compbench"}, "layout 'folder', not 'compbench'"),
        ({"sampling": {"top_k": 5}}, "sampling {}, not {'top_k': 5}"),
        ({"prompts": texts("a", "other")}, "pictures of other prompts"),
    ],
)
def test_going_on_with_other_settings_is_refused_in_one_line(tmp_path, change, message):
    arguments = {"prompts": texts("a", "b"), "directory": tmp_path}
    draw(Painter(), **arguments)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        draw(Painter(stop_after=0), **(arguments | change))
    assert "\n" not in str(caught.value) and "choose another directory" in str(caught.value)
    assert contents(tmp_path) == before


def test_pictures_of_unknown_origin_are_refused(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "00000_0.png")
    with pytest.raises(UserError, match=r"has pictures and no run\.json"):
        draw(Painter(), texts("a"), tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run.json is not valid JSON"):
        draw(Painter(), texts("a"), tmp_path)


def test_run_json_says_how_pictures_were_drawn(tmp_path):
    prompts = geneval_prompts().spread(5)
    draw(Painter(), prompts, tmp_path, 1, 3, 0.5, 9, model="runs/a", sampling={"top_k": 7})
    run = read_run(tmp_path)
    text = {p.key: p.text for p in prompts.prompts}
    assert run == {
        "format": 1,
        "layout": "geneval",
        "prompt_set": "geneval",
        "prompt_sha256": geneval_prompts().fingerprint,
        "model": "runs/a",
        "samples": 1,
        "cfg_weight": 3.0,
        "temperature": 0.5,
        "seed": 9,
        "sampling": {"top_k": 7},
        "prompts_of_set": 553,
        "prompts_drawn": 5,
        "prompts": text,
    }


def test_progress_counts_what_is_there(tmp_path):
    seen = []
    draw(Painter(), texts("a", "b", "c"), tmp_path, 2, batch=2, progress=lambda *n: seen.append(n))
    assert seen == [(0, 6), (2, 6), (4, 6), (5, 6), (6, 6)]
    (tmp_path / "00001_1.png").unlink()
    seen.clear()
    draw(Painter(), texts("a", "b", "c"), tmp_path, 2, batch=2, progress=lambda *n: seen.append(n))
    assert seen == [(5, 6), (6, 6)]


class Wrong:
    def __init__(self, pictures):
        self.pictures = pictures

    def draw(self, prompts, **settings):
        return self.pictures


@pytest.mark.parametrize(
    "pictures",
    [
        np.zeros((1, 2, 2, 3), np.uint8),
        np.zeros((2, 2, 2, 3), np.float32),
        np.zeros((2, 2, 2), np.uint8),
        np.zeros((2, 0, 2, 3), np.uint8),
        None,
    ],
)
def test_a_predictor_that_draws_something_else_is_named(tmp_path, pictures):
    with pytest.raises(UserError, match="the predictor must draw uint8"):
        draw(Wrong(pictures), texts("a", "b"), tmp_path)
    assert not list(tmp_path.glob("*.png"))


def test_a_prompt_that_the_predictor_refuses_is_told_with_its_place(tmp_path):
    class Limited(Painter):
        def draw(self, prompts, **settings):
            if any(len(prompt) > 3 for prompt in prompts):
                raise UserError("the prompt is too long")
            return super().draw(prompts, **settings)

    with pytest.raises(UserError, match="prompts 00002 to 00003: the prompt is too long"):
        draw(Limited(), texts("a", "b", "c", "long"), tmp_path, samples=1, batch=2)
    assert len(list(tmp_path.glob("*.png"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "samples must be a whole number from 1"),
        ({"batch": 1.5}, "batch must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": True}, "seed must be"),
        ({"cfg_weight": float("nan")}, "cfg_weight must be"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"sampling": {"seed": 1}}, "seed is an argument of its own"),
        ({"sampling": {"top_k": {1}}}, "sampling must be numbers and texts"),
        ({"layout": "compbensh"}, "Did you mean 'compbench'"),
        ({"layout": "geneval"}, "GenEval's layout needs lines"),
        ({"layout": "dpg", "samples": 3}, "a grid of 4 samples, not 3"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_made(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        draw(Painter(stop_after=0), texts("a"), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_buckets_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a directory of this machine, not into 'gs://bucket/out'"):
        draw(Painter(), texts("a"), "gs://bucket/out")
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"pictures in .*file cannot be a directory to write in"):
        draw(Painter(stop_after=0), texts("a"), tmp_path / "file")


def test_dpg_refuses_names_that_its_script_would_cut(tmp_path):
    with pytest.raises(UserError, match=r"'v1\.5' must have no dot"):
        draw(Painter(), dpg("v1.5"), tmp_path / "out")
