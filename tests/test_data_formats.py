"""Formats by name: what they take, what is drawn at random, and one line for what cannot be."""

import base64
import pickle
import threading

import numpy as np
import pytest
from data_files import picture, shades, write, write_tar
from dummies_data import PROCESSOR

from janus_jax.data import SOURCES, Rejected, SequenceEncoder, Understanding, make_source, reasons
from janus_jax.data.formats import FORMATS, FileSource
from janus_jax.data.layouts import read_class_names
from janus_jax.data.layouts.captions import first_sentence
from janus_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def rows(tmp_path):
    """A JSONL file of rows with a picture."""

    def write_rows(*rows, name="a.jsonl"):
        write(tmp_path / "10.png", picture(10))
        return write(tmp_path / name, [{"image": "10.png", **row} for row in rows])

    return write_rows


def prompts(source):
    return [source[i].prompt for i in range(len(source))]


def test_the_source_is_found_by_its_name(rows):
    path = rows({"caption": "a cat"})
    assert SOURCES.get("files") is FileSource
    source = make_source("files", "gen", {"format": "jsonl", "path": path}, seed=3)
    assert prompts(source) == ["a cat"]


def test_one_caption_is_drawn_by_seed_and_index_alone(rows):
    captions = [f"caption {i}" for i in range(5)]
    path = rows(*[{"captions": captions}] * 200)
    source = FileSource("gen", "jsonl", path, seed=1)
    found = prompts(source)
    assert [source[i].prompt for i in reversed(range(200))] == found[::-1]
    assert prompts(pickle.loads(pickle.dumps(source))) == found
    assert prompts(FileSource("gen", "jsonl", path, seed=2)) != found
    counts = [found.count(caption) for caption in captions]
    assert min(counts) > 20


def test_the_first_sentence_only_with_a_probability(rows):
    long = "A cat sits. It is red."
    path = rows(*[{"caption": long}] * 400)
    share = lambda p: np.mean(
        [c == "A cat sits." for c in prompts(FileSource("gen", "jsonl", path, first_sentence=p))]
    )
    assert share(0.0) == 0 and share(1.0) == 1
    assert abs(share(0.25) - 0.25) < 0.07
    assert set(prompts(FileSource("gen", "jsonl", path, first_sentence=0.5))) == {
        "A cat sits.",
        long,
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("One. Two.", "One."),
        ("Mr. Cat sleeps. Then he eats.", "Mr. Cat sleeps."),
        ("A sign, e.g. 'stop'. Red.", "A sign, e.g. 'stop'."),
        ('He says "go!" Then he goes.', 'He says "go!"'),
        ("It weighs 3.5 kg. Heavy.", "It weighs 3.5 kg."),
        ("no end", "no end"),
        ("猫。犬。", "猫。"),
        ("Line one\nline two. End", "Line one\nline two."),
    ],
)
def test_a_sentence_ends_where_a_reader_would_say_so(text, wanted):
    assert first_sentence(text) == wanted


def test_prompts_are_templates_of_fields_and_one_of_several_is_drawn(rows):
    path = rows(
        {"caption": "cat", "style": {"name": "oil"}}, {"caption": "dog", "style": {"name": "ink"}}
    )
    source = FileSource("gen", "jsonl", path, prompt="a {caption} in {style.name}")
    assert prompts(source) == ["a cat in oil", "a dog in ink"]
    path = rows(*[{"caption": "cat"}] * 40)
    source = FileSource("und", "jsonl", path, prompt=["What?", "Say what you see."])
    assert {source[i].turns[0] for i in range(40)} == {
        ("What?", "cat"),
        ("Say what you see.", "cat"),
    }


def test_the_fields_may_be_named(rows):
    path = rows({"picture2": "10.png", "caption": "no", "meta": {"alt": "a cat"}, "b": "a dog"})
    source = FileSource("gen", "jsonl", path, image_field="picture2", caption_field="meta.alt")
    assert prompts(source) == ["a cat"] and shades(source[0]) == [10]
    both = [
        FileSource("gen", "jsonl", path, caption_field=["meta.alt", "b"], seed=s) for s in range(20)
    ]
    assert {s[0].prompt for s in both} == {"a cat", "a dog"}


def test_a_system_prompt_stands_where_a_record_has_none(rows):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    own = [{"role": "system", "content": "own"}, *turns]
    source = FileSource(
        "und", "messages", rows({"messages": turns}, {"messages": own}), system="given"
    )
    assert [source[i].system for i in range(2)] == ["given", "own"]


CLASS_FILES = {
    "list.txt": "tench, Tinca tinca\ngold_fish\n",
    "ids.txt": "n01440764 tench, Tinca tinca\nn01443537 gold_fish, Carassius auratus\n",
    "list.json": ["tench, Tinca tinca", "gold_fish"],
    "map.json": {"n01440764": "tench", "n01443537": "gold fish", "0": "tench", "1": "gold fish"},
    "index.json": {"0": ["n01440764", "tench"], "1": ["n01443537", "gold_fish"]},
}


@pytest.mark.parametrize("name", CLASS_FILES)
def test_ids_of_classes_become_names(tmp_path, name):
    path = write(tmp_path / "names" / name, CLASS_FILES[name])
    names = read_class_names(path)
    for ids in (["n01440764", "n01443537"], ["0", "1"]):
        if ids[0] not in names:
            continue
        for each in ids:
            write(tmp_path / ids[0] / each / "1.png", picture(1))
        source = FileSource("gen", "imagefolder", str(tmp_path / ids[0]), class_names=path)
        assert prompts(source) == ["tench", "gold fish"]


def test_ids_without_names_are_no_prompts(tmp_path):
    for name in ("n01440764", "n01443537"):
        write(tmp_path / "data" / name / "1.png", picture(1))
    with pytest.raises(UserError, match=r"its class is 'n01440764'.*give class_names"):
        len(FileSource("gen", "imagefolder", str(tmp_path / "data")))
    names = {"n01440764": "tench"}
    source = FileSource("gen", "imagefolder", str(tmp_path / "data"), class_names=names)
    assert (source[0].prompt, source[1].reason) == ("tench", reasons.NO_CLASS)


@pytest.mark.parametrize("value", [{}, [], [3], {"a": ""}, 5, "/no/such/file"])
def test_names_of_classes_that_are_none_are_one_line(tmp_path, value):
    write(tmp_path / "cat" / "1.png", picture(1))
    with pytest.raises(UserError, match=r"class_names|cannot read"):
        FileSource("gen", "imagefolder", str(tmp_path), class_names=value)


def test_codes_in_every_form(tmp_path):
    codes = np.arange(5, dtype="<u2")
    npy = write_npy(codes.astype(np.int64))
    rows = [
        {"prompt": "a", "codes": codes.tolist()},
        {"prompt": "a", "codes": base64.b64encode(codes.tobytes()).decode()},
        {"prompt": "a", "codes": base64.b64encode(npy).decode()},
    ]
    sources = [
        FileSource("gen", "codes", write(tmp_path / "a.jsonl", rows)),
        FileSource("gen", "codes", write_tar(tmp_path / "a.tar", [("0.npy", npy), ("0.txt", "a")])),
    ]
    for source in sources:
        for i in range(len(source)):
            assert source[i].codes.tolist() == list(range(5)) and source[i].prompt == "a"
    bad = [
        {"prompt": "a"},
        {"prompt": "a", "codes": []},
        {"prompt": "a", "codes": [1.5]},
        {"prompt": "a", "codes": "?"},
    ]
    source = FileSource("gen", "codes", write(tmp_path / "b.jsonl", bad))
    assert [source[i].reason for i in range(4)] == [reasons.NO_CODES] * 4


def write_npy(array):
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_texts_by_file_paragraph_and_line(tmp_path):
    write(tmp_path / "a.txt", "one\ntwo\n\nthree\n")
    write(tmp_path / "b.txt", "four")
    of = lambda **options: [
        s.text
        for s in map(FileSource("text", "text", str(tmp_path), **options).__getitem__, range(2))
    ]
    assert of() == ["one\ntwo\n\nthree", "four"]
    assert of(record="paragraph") == ["one\ntwo", "three"]
    assert of(record="line") == ["one", "two"]
    write(tmp_path / "c.txt", b"\xff")
    assert FileSource("text", "text", str(tmp_path / "c.txt"))[0].reason == reasons.NOT_UTF8


def test_tables_with_tabs_and_other_delimiters(tmp_path):
    write(tmp_path / "10.png", picture(10))
    for kind, name, delimiter, options in (
        ("csv", "a.csv", ",", {}),
        ("csv", "a.tsv", "\t", {}),
        ("tsv", "a.txt", "\t", {}),
        ("csv", "b.csv", ";", {"delimiter": ";"}),
    ):
        path = write(tmp_path / name, f"image{delimiter}caption\n10.png{delimiter}a cat\n")
        source = FileSource("gen", kind, path, **options)
        assert prompts(source) == ["a cat"] and shades(source[0]) == [10]


def test_questions_with_one_of_several_answers(rows):
    source = FileSource("und", "jsonl", rows({"question": "what?", "answers": ["cat", "kitten"]}))
    [(question, answer)] = source[0].turns
    assert question == "<image_placeholder>\nwhat?" and answer in ("cat", "kitten")


def test_patterns_ranges_and_lists_of_files(tmp_path):
    for name in ("s-000.tar", "s-001.tar", "s-002.tar", "t.tar", "od[d].tar"):
        write_tar(tmp_path / name, [("x.png", picture(1)), ("x.txt", name)])
    root = str(tmp_path)
    of = lambda path: prompts(FileSource("gen", "webdataset", path))
    assert (
        of(f"{root}/s-*.tar")
        == of(f"{root}/s-{{000..002}}.tar")
        == ["s-000.tar", "s-001.tar", "s-002.tar"]
    )
    assert of([f"{root}/t.tar", f"{root}/s-000.tar", f"{root}/t.tar"]) == ["t.tar", "s-000.tar"]
    assert of(f"{root}/{{t,s-001}}.tar") == ["t.tar", "s-001.tar"]
    assert of(f"{root}/od[d].tar") == ["od[d].tar"]
    assert len(of(root)) == 5


def test_pictures_of_several_folders_and_their_own_roots(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "1.png", picture(10 if name == "a" else 20))
        write(tmp_path / name / "1.txt", name)
    source = FileSource("gen", "imagefolder", [str(tmp_path / "a"), str(tmp_path / "b")])
    assert [(source[i].prompt, shades(source[i])) for i in range(2)] == [("a", [10]), ("b", [20])]


def test_a_source_is_read_by_threads_and_processes(rows):
    path = rows(*[{"caption": str(i)} for i in range(50)])
    source = FileSource("gen", "jsonl", path)
    copies = [pickle.loads(pickle.dumps(source)) for _ in range(2)]  # before it is opened
    found = {}
    threads = [
        threading.Thread(target=lambda s=s: found.update({id(s): prompts(s)}))
        for s in (source, *copies)
    ]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert list(found.values()) == [[str(i) for i in range(50)]] * 3


def test_the_fingerprint_is_of_the_files_that_are_read(rows, tmp_path):
    path = rows({"caption": "a"}, {"caption": "b"})
    of = lambda **options: FileSource("gen", "jsonl", path, **options).fingerprint
    before = of()
    assert of() == before and of(seed=1) != before
    rows({"caption": "a"})
    assert of() != before


def test_what_goes_wrong_says_where(rows):
    source = FileSource("gen", "jsonl", rows({"caption": "a"}, {"caption": ""}))
    assert isinstance(source[1], Rejected) and source.describe(1).endswith("a.jsonl, record 2")
    assert str(source[1]) == reasons.EMPTY_TEXT


def test_only_pictures_that_are_opened_cost_time(tmp_path):
    write(tmp_path / "1.png", b"no picture")
    path = write(tmp_path / "a.jsonl", [{"image": "1.png", "caption": "a"}])
    example = FileSource("gen", "jsonl", path)[0]
    with pytest.raises(UserError, match="cannot read image"):
        example.picture()


def test_an_example_is_encoded_like_one_that_was_made_by_hand(rows):
    turns = [{"from": "human", "value": "w1 w2\n<image>"}, {"from": "gpt", "value": "w3"}]
    read = FileSource("und", "llava", rows({"conversations": turns}))[0]
    made = Understanding(images=[np.full((4, 4, 3), 10, np.uint8)], turns=[("w1 w2", "w3")])
    encode = SequenceEncoder(PROCESSOR)
    found, wanted = encode(read), encode(made)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


BAD = {
    "format": (dict(format="llavva"), "no format 'llavva'.*Did you mean 'llava'"),
    "no text": (dict(format=3), "no format 3"),
    "option": (
        dict(min_ratings=3, format="cauldron", task="und"),
        "no option 'min_ratings'. Did you mean 'min_rating'",
    ),
    "option of another": (
        dict(min_rating=3, format="llava", task="und"),
        "format 'llava' has no option 'min_rating'",
    ),
    "task": (dict(format="text"), "format 'text' has no examples of task 'gen'"),
    "no path": (dict(path=None), "needs a path"),
    "no file": (dict(path="{root}/none-*.jsonl"), "there is no such file"),
    "no file in it": (dict(path="{root}/empty"), "no file in this directory ends in"),
    "bucket": (dict(path="gs://b/a.jsonl"), "give the name of a bucket"),
    "path": (dict(path=[]), "path must be a name"),
    "image_root": (dict(image_root="{root}/none"), "image_root .* is no directory"),
    "share": (dict(first_sentence=2), "first_sentence must be a probability"),
    "rating": (
        dict(format="cauldron", task="und", min_rating="high"),
        "min_rating must be a number",
    ),
    "layout": (dict(layout="caption"), "no layout 'caption'.*Did you mean 'captions'"),
    "split": (dict(format="messages", split="train"), "only directories of Parquet or Arrow"),
    "record": (dict(format="text", task="text", record="page"), "record must be one of"),
    "delimiter": (dict(format="csv", delimiter=", "), "delimiter must be one character"),
    "prompt": (dict(prompt=5), "prompt must be a text"),
    "system": (dict(system=["a"]), "system must be a text"),
    "field": (dict(caption_field="captoin"), "no field 'captoin' .* Did you mean 'caption'"),
    "template": (dict(prompt="a {stile}"), "no field 'stile' .* Did you mean 'style'"),
    "kinds": (dict(format="messages", path=["{root}/a.jsonl", "{root}/b.csv"]), "different kinds"),
    "folder": (dict(format="imagefolder"), "is a file: a folder is needed"),
    "no pictures": (dict(format="imagefolder", path="{root}/empty"), "holds no pictures"),
    "splits": (dict(format="imagefolder", path="{root}/splits"), "give the path of one of them"),
    "tfds": (dict(format="tfds", path=None), "needs a name"),
    "tfds twice": (dict(format="tfds:a", name="b"), "says the name already"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_one_line(rows, tmp_path, arguments, message):
    path = rows({"caption": "a", "style": "b"})
    write(tmp_path / "b.csv", "a\n1\n")
    (tmp_path / "empty").mkdir()
    write(tmp_path / "splits" / "train" / "cat" / "1.png", picture(1))
    arguments = dict(task="gen", format="jsonl", path=path) | arguments
    fill = lambda v: v.replace("{root}", str(tmp_path)) if isinstance(v, str) else v
    arguments = {
        k: [fill(e) for e in v] if isinstance(v, list) else fill(v) for k, v in arguments.items()
    }
    with pytest.raises(UserError, match=message) as error:
        len(FileSource(**arguments))
    assert "\n" not in str(error.value)


def test_the_names_of_a_manifest_are_there():
    assert {
        "llava",
        "messages",
        "webdataset",
        "cauldron",
        "docmatix",
        "finevision",
        "parquet",
        "arrow",
    } <= {*FORMATS}
    assert {"csv", "tsv", "imagefolder", "text", "jsonl", "array_record", "tfds", "codes"} <= {
        *FORMATS
    }
