"""What an inspection shows: a page that no caption can break, a summary, files, exit codes."""

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from dummies_model import random_params
from inspected import ARABIC, HOSTILE, STAGE, reads, strange_data
from PIL import Image

from janus_jax.checkpoints import save_model
from janus_jax.cli import config_flag, data_inspect
from janus_jax.data_tools.inspection import inspect, inspector, summary
from janus_jax.data_tools.inspection.mixture import first_rows
from janus_jax.data_tools.inspection.page import page
from janus_jax.data_tools.inspection.terminal import GREEN, GREY, PLAIN, sequence
from janus_jax.errors import RunError, UserError
from janus_jax.run import build


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    strange_data(root)
    return root


@pytest.fixture(scope="module")
def found(root, tmp_path_factory):
    return inspect(reads(root), tmp_path_factory.mktemp("look"), STAGE, quiet=True, rows=4)


class Page(HTMLParser):
    """What a browser would make of it: tags with their attributes, and the words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.open = [], "", []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words += data


def test_no_caption_is_markup(found):
    text = page(found)
    made = Page(text)
    assert not made.open, "every element is closed"
    allowed = (
        "html head meta title style body h1 h2 p br div table tr th td small span b i kbd bdi img"
    )
    allowed = {*allowed.split(), "svg", "rect", "text", "figure", "figcaption"}
    assert {tag for tag, _ in made.tags} <= allowed
    assert not any(name.startswith("on") for _, given in made.tags for name in given)
    assert HOSTILE.split(" \x07")[0] in made.words  # it is there, as words


def test_the_page_needs_no_other_file(found):
    made = Page(page(found))
    sources = [given["src"] for tag, given in made.tags if tag == "img"]
    assert sources and all(s.startswith("data:image/") for s in sources)
    assert not any({"href", "link", "srcset", "data"} & given.keys() for _, given in made.tags)
    assert "url(" not in page(found) and "@import" not in page(found)


def test_what_steers_is_written_out_and_other_scripts_stay(found):
    text = page(found)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert r"\x07\x1b[31m \u202eevil" in text
    assert ARABIC in text and "\U0001f600" in text
    text.encode()  # no half characters


def test_pictures_are_shown_as_the_model_sees_them(found):
    """100 x 40 pixels are padded with grey to understand, and cropped to draw."""
    sizes = found.reading.experiment.processor.config
    by_label = {s.counts.part.label: s.samples for s in found.sources}
    pixels = lambda uri: np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
    )
    shown = pixels(by_label["talk"][0].shown[0])
    assert shown.shape == (sizes.und_image_size, sizes.und_image_size, 3)
    assert (shown[0] == 127).all() and (shown[len(shown) // 2] == 90).all()
    drawn = pixels(by_label["drawn"][0].drawn)
    assert drawn.shape == (sizes.gen_image_size, sizes.gen_image_size, 3) and (drawn == 90).all()


def test_samples_pass_over_what_is_left_out(found):
    by_label = {s.counts.part.label: s.samples for s in found.sources}
    assert [sample.index for sample in by_label["drawn"]] == [0, 1, 2, 7, 8]
    assert HOSTILE in by_label["drawn"][0].said  # its words are unknown, so the tokens do not say
    assert by_label["talk"][0].said == ""


def test_colours_are_for_terminals_and_say_what_is_learnt(found):
    sample = next(s.samples[0] for s in found.sources if s.counts.part.label == "talk")
    plain, colored = sequence(sample, False), sequence(sample, True)
    assert "[[a cat<｜end▁of▁sentence｜>]]" in plain and "\x1b" not in plain
    assert f"{GREEN}a cat{PLAIN}" in colored and f"{GREY}<|User|>{PLAIN}" in colored
    assert not any("\x1b" in line or "\u202e" in line for line in summary(found, False))


def test_the_summary_names_every_source_and_what_is_wrong(found):
    lines = list(summary(found, False))
    table = next(line for line in lines if line.startswith("drawn  "))
    assert table.split()[:6] == ["drawn", "generation", "9", "9", "5", "0"]
    assert "of 1000 sequences: 375 drawn, 300 facts, 125 shards, 200 talk" in lines
    assert any(line.startswith("first 4 rows: ") for line in lines)


def test_codes_are_pictures_with_a_checkpoint(root, tmp_path):
    (tmp_path / "m.yaml").write_text(
        "sources: [{name: coded, task: generation, format: codes, path: c.jsonl, stages: [stage2]},"
        "{name: plain, task: generation, format: jsonl, path: d.jsonl, stages: [stage0_siglip, stage1],"
        f"image_root: {root}/pictures}},"
        f"{{name: talk, task: understanding, format: llava, path: {root}/talk.json, "
        f"image_root: {root}/pictures}}, {{name: facts, task: text, format: text, path: {root}/facts.txt}}]"
    )
    (tmp_path / "d.jsonl").write_text('{"image": "1.png", "caption": "a cat"}\n')
    config = reads(tmp_path)
    built = build(reads(root))
    number = built.processor.config.num_codes
    lines = [json.dumps({"prompt": "a cat", "codes": [code] * number}) for code in (1, 2)]
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    without = inspect(config, tmp_path / "look", STAGE, quiet=True, rows=4)
    assert "give --checkpoint to see the picture" in page(without)
    save_model(
        tmp_path / "model",
        built.janus_config,
        built.processor.config.to_dict(),
        built.processor.tokenizer.to_json(),
        random_params(built.janus_config),
    )
    seen = inspect(
        config, tmp_path / "look", STAGE, quiet=True, rows=4, checkpoint=str(tmp_path / "model")
    )
    coded = next(s for s in seen.sources if s.counts.part.label == "coded")
    one, other = (sample.drawn for sample in coded.samples)
    assert one.startswith("data:image/") and one != other
    assert "give --checkpoint" not in page(seen)


def run(monkeypatch, config, *argv):
    """The command in this process, with a config that was not parsed."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(config_flag, "parse", lambda argv: config)
    few = lambda reading, rows, tick: first_rows(reading, 4, tick)
    monkeypatch.setattr(inspector, "first_rows", few)
    data_inspect.main([*argv, "--quiet"])


def test_other_files_in_the_place_stay(root, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "index.html").write_text("old")
    config = reads(root)
    config.data.max_rejected = 1.0
    run(monkeypatch, config, "--out", str(tmp_path), "--stage", STAGE, "--limit", "3")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mine.txt", "index.html", "inspect.json", "rejected.jsonl"}
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "index.html").read_text().startswith("<!DOCTYPE html>")
    assert capsys.readouterr().out.endswith("index.html\n")


def test_too_much_that_is_bad_ends_with_one_line_and_a_page(root, tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"source drawn: 4 of the 9 .*44.4%") as error:
        run(monkeypatch, reads(root), "--out", str(tmp_path / "look"), "--stage", STAGE)
    assert "\n" not in str(error.value) and (tmp_path / "look" / "index.html").is_file()


def test_a_source_of_which_nothing_can_be_used_is_bad_input(root, tmp_path, monkeypatch):
    (tmp_path / "bad.jsonl").write_text('{"image": "broken.png", "caption": "a"}\n' * 2)
    text = (root / "m.yaml").read_text().replace(": drawn.jsonl", f": {tmp_path}/bad.jsonl")
    for name in ("shards.tar", "talk.json", "facts.txt"):
        text = text.replace(f": {name}", f": {root}/{name}")
    (tmp_path / "m.yaml").write_text(
        text.replace("image_root: pictures", f"image_root: {root}/pictures")
    )
    out = tmp_path / "look"
    with pytest.raises(UserError, match="source drawn: none of the 2 records read can be used"):
        run(monkeypatch, reads(tmp_path), "--out", str(out), "--stage", STAGE)
    numbers = json.loads((out / "inspect.json").read_text())
    assert numbers["sources"]["talk"]["used"] == 3  # the others were looked at
    assert numbers["packing"]["rows"] == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give --out"),
        (["--out", "x", "--limit", "-1"], "--limit must be"),
        (["--out", "x", "--samples", "9999"], "--samples must be"),
        (["--out", "x", "--manifst", "m.yaml"], "Did you mean '--manifest'"),
    ],
)
def test_wrong_flags_are_one_line(argv, message):
    with pytest.raises(UserError, match=message):
        data_inspect.parse_flags(argv)


def test_flags_of_the_config_are_passed_on():
    argv = ["--out", "x", "--config", "a.py:stage3", "--config.tokenizer=t", "--config.seed", "3"]
    flags, rest = data_inspect.parse_flags(argv)
    assert flags.out == "x"
    assert rest == ["--config=a.py:stage3", "--config.tokenizer=t", "--config.seed", "3"]


@pytest.mark.slow
def test_the_command_as_a_stranger_runs_it(root, tmp_path):
    command = [
        sys.executable,
        "-m",
        "janus_jax.data",
        "inspect",
        "--manifest",
        str(root / "m.yaml"),
    ]
    command += [
        "--config",
        "janus_tiny",
        "--config.data.too_long=truncate_answer",
        "--stage",
        "stage2",
    ]
    command += ["--out", str(tmp_path / "look"), "--limit", "4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: source drawn: ") and "config.data.max_rejected" in last
    assert "\x1b" not in done.stdout and "Traceback" not in done.stderr
    assert (tmp_path / "look" / "index.html").is_file()
