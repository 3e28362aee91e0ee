"""Training from files: the shipped examples, and files that hold what the built-in source gives."""

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from data_files import write
from PIL import Image
from smoke import tiny

from examples.make import make
from janus_jax.data import SOURCES, Generation, read_example
from janus_jax.data.manifest import read_manifest
from janus_jax.emoji.source import EmojiSource
from janus_jax.run import batches, build, train
from janus_jax.run.stage_checks import check_stages
from janus_jax.run.stage_data import stage_sources

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "data"
MANIFEST = str(EXAMPLES / "manifest.yaml")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# The shipped examples


def test_the_examples_are_batches_of_every_stage():
    config = tiny(data__manifest=MANIFEST)
    config.stage_order = tuple(config.stages)
    experiment = build(config)
    check_stages(experiment, experiment.stages)
    for stage in experiment.stages:
        iterator = batches(experiment, stage)
        batch = next(iterator)
        totals = iterator.ledger.totals()
        iterator.close()
        assert len(totals) == len(stage.sources) and all(t.used for t in totals.values())
        assert not any(tally.left_out for tally in totals.values())
        assert batch["image" if not stage.packed else "tokens"].any()


def test_the_tiny_model_knows_every_word_of_the_examples():
    experiment = build(tiny(data__manifest=MANIFEST, stage_order=("stage2",)))
    tokenizer, unknown = experiment.processor.tokenizer, set()
    (nothing,) = set(tokenizer.encode_text("zebra moon"))
    count = 0
    for source in stage_sources(experiment.stages[0], 0):
        for index in range(len(source.examples)):
            example = source.examples[index]
            turns = [text for turn in getattr(example, "turns", ()) for text in turn]
            texts = [getattr(example, "prompt", ""), getattr(example, "text", ""), *turns]
            words = re.findall(r"\w+|[^\w\s]", " ".join(texts).replace("<image_placeholder>", ""))
            count += len(words)
            unknown |= {word for word in words if nothing in tokenizer.encode_text(word)}
    assert count > 300 and unknown == set()


def test_the_examples_can_be_made_again(tmp_path):
    make(tmp_path)
    files = lambda place: {p.relative_to(place) for p in place.rglob("*") if p.is_file()}
    assert files(tmp_path) == files(EXAMPLES) - {Path("README.md"), Path("manifest.yaml")}
    for name in files(tmp_path):
        new, old = tmp_path / name, EXAMPLES / name
        if name.suffix not in (".png", ".jpg"):
            assert new.read_bytes() == old.read_bytes(), name
            continue
        # Another version of a library may compress otherwise, and of JPEG round otherwise.
        difference = np.asarray(Image.open(new), int) - np.asarray(Image.open(old), int)
        assert np.abs(difference).max() <= (8 if name.suffix == ".jpg" else 0), name


def test_the_examples_are_small_and_say_their_licence():
    assert sum(p.stat().st_size for p in EXAMPLES.rglob("*") if p.is_file()) < 200_000
    assert "Apache License, Version 2.0" in (EXAMPLES / "README.md").read_text()
    formats = {source.options["format"] for source in read_manifest(MANIFEST)}
    assert formats == {"llava", "imagefolder", "jsonl"}


@pytest.mark.slow
def test_the_tiny_model_trains_on_the_examples(tmp_path):
    fields = {"stages__stage2__steps": 3, "log__log_every": 1, "stage_order": ("stage2",)}
    train(tiny(data__manifest=MANIFEST, **fields), tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == [1, 2, 3]
    for task in ("und", "text", "gen"):
        assert all(0 < record[f"loss_{task}"] < 10 for record in records)
    assert not (tmp_path / "run" / "rejected.jsonl").exists()


# Files that hold what the built-in source gives

RECORDS, STEPS = 300, 12
FIELDS = {
    "stages__stage2__steps": STEPS,
    "stages__stage2__warmup_steps": 2,
    "log__log_every": 1,
    "stage_order": ("stage2",),
}


class Undecided(EmojiSource):
    """The built-in source, but it leaves open whether a prompt is dropped, as files do."""

    def __getitem__(self, index):
        example = super().__getitem__(index)
        is_drawn = isinstance(example, Generation)
        return dataclasses.replace(example, dropout_draw=None) if is_drawn else example


SOURCES.register("dummy/undecided", Undecided)


def built_in(drop=0.0):
    """Stage 2 of the smoke config, from the first records of the built-in source.

    Texts are plain ones: words in the place of pictures have no form in files.
    """
    config = tiny(**FIELDS, stages__stage2__condition_dropout=drop)
    for source in config.stages.stage2.sources.values():
        with source.unlocked():
            source.options.size = RECORDS
            source.name = "dummy/undecided" if drop else "emoji"
    config.stages.stage2.sources.text.options.chat = False
    return config


def from_files(manifest, drop=0.0):
    return tiny(**FIELDS, stages__stage2__condition_dropout=drop, data__manifest=manifest)


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture()).save(file, "PNG")
    return file.getvalue()


def record(example):
    """An example as fields that any format may have."""
    if hasattr(example, "prompt"):
        return {"image": png(example.picture), "prompt": example.prompt}
    if hasattr(example, "images"):
        (picture,) = example.images
        said = [
            {"role": role, "content": content}
            for turn in example.turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        return {"image": png(picture), "messages": said}
    return {"text": example.text}


@pytest.fixture(scope="module")
def records():
    """label -> the records of the built-in source, in its order."""
    experiment = build(built_in())
    seed = experiment.config.seed * 100  # the one that `batches` makes of it
    return {
        source.label: [record(read_example(source.examples, i)) for i in range(RECORDS)]
        for source in stage_sources(experiment.stages[0], seed)
    }


def as_parquet(place, label, rows):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(rows)
    # One row group: with several, the order would be another.
    pyarrow.parquet.write_table(table, place / f"{label}.parquet")
    return {"format": "parquet", "path": f"{label}.parquet"}


def as_tar(place, label, rows):
    from webdataset import TarWriter

    with TarWriter(str(place / f"{label}.tar")) as tar:
        for i, row in enumerate(rows):
            members = {"png": row["image"]} if "image" in row else {}
            if "messages" in row:
                members["json"] = {"messages": row["messages"]}
            else:
                members["txt"] = row.get("prompt", row.get("text"))
            tar.write({"__key__": f"{i:06}", **members})
    return {"format": "webdataset", "path": f"{label}.tar"}


@pytest.fixture(scope="module", params=[as_parquet, as_tar], ids=["parquet", "tar"])
def manifest(request, records, tmp_path_factory):
    """The records in files, under the labels and tasks of the built-in source."""
    place = tmp_path_factory.mktemp(request.param.__name__)
    words = {"und": "understanding", "text": "text", "gen": "generation"}
    sources = [
        {"name": label, "task": words[label], **request.param(place, label, rows)}
        for label, rows in records.items()
    ]
    return write(place / "m.yaml", {"sources": sources})  # JSON is YAML


def losses(run_dir):
    """Of each step: loss, those of the tasks, and norms of the gradients."""
    found = []
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        found.append({k: v for k, v in values.items() if k.startswith(("loss", "grad_norm"))})
    return found


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    run = tmp_path_factory.mktemp("built_in") / "run"
    train(built_in(), run, quiet=True)
    return losses(run)


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_batches_from_files_are_those_of_the_built_in_source(manifest, drop):
    """More than an epoch of the pictures to draw."""
    iterators = []
    for config in (built_in(drop), from_files(manifest, drop)):
        experiment = build(config)
        iterators.append(batches(experiment, experiment.stages[0]))
    for _ in range(30):
        one, other = (next(iterator) for iterator in iterators)
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    used = [i.ledger.totals() for i in iterators]
    for iterator in iterators:
        iterator.close()
    assert used[0]["gen"].used > RECORDS and not any(t.left_out for t in used[1].values())


@pytest.mark.slow
def test_losses_from_files_are_those_of_the_built_in_source(manifest, wanted, tmp_path):
    train(from_files(manifest), tmp_path / "run", quiet=True)
    found = losses(tmp_path / "run")
    assert len(found) == STEPS and len({f["loss"] for f in found}) == STEPS
    assert {"loss_und", "loss_text", "loss_gen", "grad_norm_decoder"} <= found[0].keys()
    assert found == wanted
