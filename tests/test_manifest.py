"""A manifest of files: what it may say, what is one line, and how it becomes the data of a run."""

import subprocess
import sys
from pathlib import Path

import pytest
from dummies_data import DummySource
from smoke import tiny

from janus_jax.configs import janus_pro_1b
from janus_jax.data import SOURCES
from janus_jax.data.manifest import read_manifest
from janus_jax.errors import UserError, nearest
from janus_jax.run import batches, build
from janus_jax.run.claim import differences, jsonable
from janus_jax.run.manifest_config import with_manifest

FORMATS = ("llava", "captions", "jsonl_text")
GOOD = """
sources:
  - {name: talk, task: understanding, format: llava, path: talk.json, image_root: pictures}
  - {name: facts, task: text, format: jsonl_text, path: [a.jsonl, /data/b.jsonl], weight: 3}
  - {name: more, task: text, format: jsonl_text, path: "gs://bucket/*.jsonl", stages: [stage2]}
  - {name: drawn, task: generation, format: captions, path: shards/*.tar, min_rating: 4}
"""


def fake_files(task, format, path, image_root="", min_rating=0, prompt="", system="", seed=0):
    """Stands in for the source of files."""
    if format not in FORMATS:
        raise UserError(f"no format {format!r}.{nearest(format, FORMATS)}")
    return DummySource({"pictures": "gen", "pairs": "gen"}.get(task, task), seed)


@pytest.fixture(autouse=True)
def files(monkeypatch):
    found = SOURCES.get
    monkeypatch.setattr(SOURCES, "get", lambda name: fake_files if name == "files" else found(name))


def manifest(tmp_path, text=GOOD):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    return str(path)


def test_paths_are_those_beside_the_manifest(tmp_path, monkeypatch):
    path = manifest(tmp_path)
    monkeypatch.chdir(tmp_path.parent)
    found = {s.name: s for s in read_manifest(Path(path).relative_to(tmp_path.parent))}
    assert found["talk"].options == {
        "format": "llava",
        "path": f"{tmp_path}/talk.json",
        "image_root": f"{tmp_path}/pictures",
    }
    assert found["facts"].options["path"] == [f"{tmp_path}/a.jsonl", "/data/b.jsonl"]
    assert found["more"].options["path"] == "gs://bucket/*.jsonl"
    assert (found["facts"].task, found["facts"].weight) == ("text", 3.0)
    assert found["drawn"].entry("pictures") == {
        "name": "files",
        "task": "pictures",
        "weight": 1.0,
        "options": {"format": "captions", "path": f"{tmp_path}/shards/*.tar", "min_rating": 4},
    }


def test_order_epochs_and_names_of_classes(tmp_path):
    text = (
        "sources:\n"
        "  - {name: a, task: text, format: jsonl_text, path: a, epochs: 2.5, shuffle: false}\n"
        "  - {name: b, task: text, format: jsonl_text, path: b, class_names: names.txt}\n"
        "  - {name: c, task: text, format: jsonl_text, path: b, class_names: [cat, dog]}\n"
    )
    a, b, c = read_manifest(manifest(tmp_path, text))
    assert (a.entry()["epochs"], a.entry()["shuffle"]) == (2.5, False)
    assert "epochs" not in b.entry() and "shuffle" not in a.options
    assert b.options["class_names"] == f"{tmp_path}/names.txt"
    assert c.options["class_names"] == ["cat", "dog"]


def test_a_stage_takes_the_sources_of_its_tasks(tmp_path):
    config = tiny(data__manifest=manifest(tmp_path))
    before = config.to_json_best_effort()
    new = with_manifest(config)
    assert config.to_json_best_effort() == before
    labels = {name: list(new.stages[name].sources) for name in new.stage_order}
    assert labels == {
        "stage0_siglip": ["drawn"],
        "stage0_lm": ["facts"],
        "stage1": ["drawn", "talk"],
        "stage2": ["drawn", "facts", "more", "talk"],
    }
    assert new.stages.stage0_siglip.sources.drawn.task == "pairs"
    assert new.stages.stage2.sources.drawn.options.min_rating == 4
    assert new.stages.stage3 == config.stages.stage3  # not in the order
    assert with_manifest(new).to_json_best_effort() == new.to_json_best_effort()
    assert [s.label for s in build(config).stages[2].sources] == ["drawn", "talk"]
    # Table 2's configs, too.
    assert (
        with_manifest(
            janus_pro_1b.get_config().copy_and_resolve_references()
        ).stages.stage1.sources.und.name
        == "emoji"
    )
    paper = janus_pro_1b.get_config()
    paper.data.manifest = manifest(tmp_path)
    assert list(with_manifest(paper).stages.stage1.sources) == ["drawn", "talk"]


def test_a_config_may_hold_the_same_structure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny(stage_order=("stage0_lm",))
    config.data.sources = (dict(name="a", task="text", format="jsonl_text", path="a.jsonl"),)
    (source,) = build(config).stages[0].sources
    assert source.options == {"format": "jsonl_text", "path": str(tmp_path / "a.jsonl")}
    config.data.manifest = manifest(tmp_path)
    with pytest.raises(UserError, match="both a manifest and sources"):
        build(config)


def test_another_content_is_another_run(tmp_path):
    def fields(text):
        return jsonable(with_manifest(tiny(data__manifest=manifest(tmp_path, text))))

    one = fields(GOOD)
    assert differences(one, fields(GOOD)) == []
    changes = differences(one, fields(GOOD.replace("weight: 3", "weight: 2")))
    assert [c.path for c in changes] == [
        f"stages.{s}.sources.facts.weight" for s in ("stage0_lm", "stage2")
    ]


def test_batches_come_from_the_manifest(tmp_path):
    words = "sources: [{name: facts, task: text, format: jsonl_text, path: a}]"
    config = tiny(stage_order=("stage0_lm",), data__manifest=manifest(tmp_path, words))
    config.builtin_tokenizer.name = "dummy/words"
    from dummies_data import TOKENIZER

    from janus_jax.data import TOKENIZERS

    TOKENIZERS.register("dummy/words", lambda objects="": TOKENIZER)
    experiment = build(config)
    iterator = batches(experiment, experiment.stages[0])
    assert next(iterator)["tokens"].any()
    assert list(iterator.ledger.totals()) == ["facts"]
    iterator.close()


SOURCE = "{name: a, task: text, format: jsonl_text, path: a}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"m\.yaml: a manifest has the key sources"),
        ("sorces: []", r"no key 'sorces'\. Did you mean 'sources'"),
        ("sources: []", "sources must be a list"),
        ("sources: [a]", "source 1 must have the keys name, task, format, path"),
        ("sources: [\n", r"m\.yaml, line 2: no YAML"),
        ("sources:\n - {name: a, name: b}", r"line 2: no YAML: the key 'name' is there twice"),
        ("sources: !!python/object:os.system []", "no YAML"),
        ("sources: [{task: text}]", "source 1: name must be a word"),
        ("sources: [{name: a.b}]", "source 1: name must be a word .* not 'a.b'"),
        (f"sources: [{SOURCE}, {SOURCE}]", "source a: two sources have this name"),
        (SOURCE, "no key 'name'"),
        ("task: txt", r"source a: task must be one of .*, not 'txt'\. Did you mean 'text'"),
        ("task: [text]", "source a: task must be one of"),
        ("pth: b", r"source a: no key 'pth'. Did you mean 'path'"),
        ("wieght: 2", r"source a: no key 'wieght'\. Did you mean 'weight'"),
        ("image_rot: x", r"source a: .* no option 'image_rot'\. Did you mean 'image_root'"),
        ("format: captoins", r"source a: no format 'captoins'\. Did you mean 'captions'"),
        ("format: 3", "source a: format must be a name, not 3"),
        ("path: ''", "source a: path must be a path"),
        ("weight: -1", "source a: weight must be a finite number >= 0, not -1"),
        ("weight: .nan", "source a: weight must be"),
        ("weight: 0", "every source of the task text has the weight 0"),
        ("epochs: 0", "source a: epochs must be a finite number above 0, not 0"),
        ("epoch: 2", r"source a: no key 'epoch'\. Did you mean 'epochs'"),
        ("shuffle: no way", "source a: shuffle must be true or false"),
        ("stages: stage1", "source a: stages must be a list"),
        ("stages: [stag2]", r"source a: stages: no stage 'stag2'\. Did you mean 'stage2'"),
        ("stages: [stage2]", "no source with the task text, and stage0_lm has a ratio for it"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_source(text, message, tmp_path):
    if text and "sources" not in text and "sorces" not in text and text != SOURCE:
        fields = dict(part.split(": ", 1) for part in SOURCE[1:-1].split(", "))
        if text.startswith("pth"):
            del fields["path"]
        key, value = text.split(": ", 1)
        fields[key] = value
        text = "sources: [{" + ", ".join(f"{k}: {v}" for k, v in fields.items()) + "}]"
    config = tiny(stage_order=("stage0_lm", "stage2"), data__manifest=manifest(tmp_path, text))
    with pytest.raises(UserError, match=message) as error:
        with_manifest(config)
    assert "\n" not in str(error.value)


def test_a_stage_that_does_not_run_keeps_its_own_sources(tmp_path):
    path = manifest(tmp_path, f"sources: [{SOURCE}]")
    config = tiny(data__manifest=path, only_stage="stage0_lm")
    new = with_manifest(config)
    assert list(new.stages.stage0_lm.sources) == ["a"]
    assert new.stages.stage2.sources == config.stages.stage2.sources
    config.only_stage = "stage2"
    with pytest.raises(UserError, match="no source with the task understanding, and stage2"):
        with_manifest(config)
    with pytest.raises(UserError, match="stage0_siglip trains on pictures"):
        with_manifest(tiny(data__manifest=path))
    with pytest.raises(UserError, match=r"nothing\.yaml"):
        with_manifest(tiny(data__manifest=str(tmp_path / "nothing.yaml")))


@pytest.mark.subprocess
def test_the_command_says_it_before_anything_is_written(tmp_path):
    path = manifest(tmp_path, "sources: [{name: a, task: text, format: llava, pth: x}]")
    run = tmp_path / "run"
    command = [sys.executable, "train.py", "--config=janus_tiny:smoke", f"--workdir={run}"]
    done = subprocess.run(
        [*command, f"--config.data.manifest={path}"],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and not run.exists()
    assert done.stderr.strip() == f"error: {path}: source a: no key 'pth'. Did you mean 'path'?"
