"""configs/manifests/table2.yaml: with files of the right form at its paths, every stage of the paper has data."""

from pathlib import Path

import pytest
from data_files import chat, llava, openai, picture, said, write, write_tar
from dummies_data import PROCESSOR

from janus_jax.configs import janus_pro_1b, janus_pro_7b
from janus_jax.data import TASKS, Rejected, SequenceEncoder, make_source
from janus_jax.data.formats import FileSource
from janus_jax.data.manifest import read_manifest
from janus_jax.run.manifest_config import with_manifest

FILE = Path(__file__).resolve().parent.parent / "configs" / "manifests" / "table2.yaml"
TABLE_2 = {"stage1": (1, 0, 3), "stage2": (2, 3, 5), "stage3": (5, 1, 4)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def captioned_tar(path, caption):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tar(path, [("0.jpg", picture(3, "JPEG")), ("0.txt", caption)])


@pytest.fixture
def manifest(tmp_path):
    """The manifest with another /data, in which each source has a file of its form."""
    data = tmp_path / "data"
    stored = {"bytes": picture(1), "path": None}
    # Stage 1
    captioner = data / "sharegpt4v" / "share-captioner_coco_lcs_sam_1246k_1107.json"
    write(captioner, [llava("<image>\nwhat?", "a cat", image="coco/1.jpg")])
    write(data / "sharegpt4v" / "pictures" / "coco" / "1.jpg", picture(1, "JPEG"))
    write(data / "imagenet" / "train" / "n02123045" / "n02123045_1.JPEG", picture(1, "JPEG"))
    write(data / "imagenet" / "LOC_synset_mapping.txt", "n02123045 tabby, tabby cat\n")
    # Stage 2
    captioned_tar(data / "captions" / "00000.tar", "A cat. It sleeps on a wall.")
    asked = [{"user": "what?", "assistant": "a cat", "source": "PDF"}]
    parquet(
        data / "docmatix" / "data" / "train-00000-of-00002.parquet",
        [{"images": [stored, stored], "texts": asked}],
    )
    for name in ("chartqa", "dvqa", "tabmwp"):
        rows = [{"images": [stored], "texts": asked}]
        parquet(data / "the_cauldron" / name / "train-00000-of-00001-x.parquet", rows)
    parquet(
        data / "fineweb_edu" / "sample" / "10BT" / "000_00000.parquet",
        [{"text": "a fact", "id": "1", "score": 3.0}],
    )
    drawn = {"img_path": "./000/a.jpg", "prompt": "cat --v 5", "Task2": {"Caption": "a cat"}}
    write(data / "journeydb" / "train_anno.jsonl", [drawn])
    write(data / "journeydb" / "train" / "000" / "a.jpg", picture(1, "JPEG"))
    captioned_tar(data / "blip3o_long_caption" / "sa_000000.tar", "A long caption. Of a cat.")
    # Stage 3
    parquet(
        data / "llava_onevision" / "textcaps" / "train-00000-of-00001.parquet",
        [
            {"id": "1", "image": stored, "conversations": said("<image>\nwhat?", "a cat")},
            {"id": "2", "image": None, "conversations": said("hi", "ho")},
        ],
    )
    ratings = {"relevance_ratings": [4], "formatting_ratings": [1]}
    parquet(
        data / "finevision" / "aokvqa" / "train-00000-of-00001.parquet",
        [{"images": [stored], "texts": [{"user": "what?", "assistant": "a cat"}], **ratings}],
    )
    write(data / "chat" / "a.jsonl", [chat("hi", "ho"), {"messages": openai("a?", "b", "c?", "d")}])
    record = {"input_prompt": "a cat", "output_image": "text_to_image/1.png", "input_image": []}
    write(data / "sharegpt4o_image" / "text_to_image.json", [record])
    write(data / "sharegpt4o_image" / "text_to_image" / "1.png", picture(1))
    captioned_tar(data / "blip3o_60k" / "0.tar", "a cat")
    return write(tmp_path / "table2.yaml", FILE.read_text().replace("/data/", f"{data}/"))


def test_every_source_reads_files_of_its_form(manifest):
    sources = read_manifest(manifest)
    words = SequenceEncoder(PROCESSOR, condition_dropout=0.0)
    for entry in sources:
        source = make_source("files", entry.task, entry.options, where=entry.where)
        assert isinstance(source, FileSource) and len(source)
        for index in range(len(source)):
            example = source[index]
            assert not isinstance(example, Rejected), (entry.name, example)
            assert not isinstance(words(example), Rejected), entry.name
    drawn = {s.name: s for s in sources if s.task == "gen"}
    prompts = {
        name: make_source("files", "gen", entry.options)[0].prompt for name, entry in drawn.items()
    }
    assert prompts["imagenet"] == "tabby" and prompts["journeydb"] == "a cat"


@pytest.mark.parametrize("configs", [janus_pro_1b, janus_pro_7b], ids=["1B", "7B"])
def test_every_stage_has_every_task_that_it_needs(manifest, configs):
    config = configs.get_config()
    config.data.manifest = manifest
    stages = with_manifest(config).stages
    read = set()
    for name, ratio in TABLE_2.items():
        assert tuple(stages[name].ratio) == ratio
        tasks = {source.task for source in stages[name].sources.values()}
        assert tasks == {task for task, share in zip(TASKS, ratio, strict=True) if share}
        assert all(source.name == "files" for source in stages[name].sources.values())
        read |= set(stages[name].sources)
    assert read == {source.name for source in read_manifest(manifest)}


def test_real_and_synthetic_pictures_are_alike_in_stage_2(manifest):
    weights = {s.name: s.weight for s in read_manifest(manifest) if s.task == "gen"}
    assert weights["real_pictures"] == weights["journeydb"] + weights["blip3o_long_captions"]


def test_names_of_classes_are_looked_for_beside_the_manifest(tmp_path, monkeypatch):
    write(tmp_path / "data" / "n02123045" / "1.png", picture(1))
    write(tmp_path / "names.txt", "n02123045 tabby, tabby cat\n")
    text = "sources: [{name: a, task: generation, format: imagefolder, path: data, class_names: N}]"
    monkeypatch.chdir(tmp_path.parent)
    for names, prompt in (("names.txt", "tabby"), ("{n02123045: cat}", "cat")):
        manifest = write(tmp_path / "m.yaml", text.replace("N", names))
        (source,) = read_manifest(manifest)
        assert make_source("files", "gen", source.options)[0].prompt == prompt
