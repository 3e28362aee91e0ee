"""A prepared directory is a source: what was written comes back."""

import json

import numpy as np
import pytest
from data_files import picture, shades, write

from janus_jax.data import Generation, Rejected, Text, Understanding
from janus_jax.data.containers.prepared import write_prepared_index
from janus_jax.data.formats import FileSource
from janus_jax.data.layouts import record_of
from janus_jax.errors import UserError

IMAGE = "<image_placeholder>"
TURNS = [(f"{IMAGE}{IMAGE} a?", "b"), ("c?", "d")]
EXAMPLES = {
    "gen": [
        (Generation(prompt="a cat", codes=np.array([0, 16383, 65535])), ()),
        (
            Generation(prompt="a dog", picture=np.zeros((4, 4, 3), np.uint8), weight=0.5),
            [picture(10)],
        ),
    ],
    "und": [
        (Understanding(images=[None, None], turns=TURNS), [picture(20), picture(30)]),
        (Text(turns=[("hi", "ho")], system=""), ()),
    ],
    "text": [(Text(text="a fact"), ()), (Text(turns=[("hi", "ho")], system="be brief"), ())],
}


@pytest.fixture
def prepared(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")

    def make(task, records):
        for name, part in (("0.array_record", records[:1]), ("1.array_record", records[1:])):
            writer = module.ArrayRecordWriter(str(tmp_path / name), "group_size:1")
            for record in part:
                writer.write(record)
            writer.close()
        write_prepared_index(str(tmp_path), task, {"0.array_record": 1, "1.array_record": 1})
        return str(tmp_path)

    return make


def values(example):
    fields = {n: getattr(example, n, None) for n in ("prompt", "text", "system", "weight")}
    turns = [tuple(turn) for turn in getattr(example, "turns", ())]
    codes = getattr(example, "codes", None)
    return type(example), fields, turns, None if codes is None else codes.tolist()


@pytest.mark.parametrize("task", EXAMPLES)
def test_examples_come_back(prepared, task):
    path = prepared(task, [record_of(*each) for each in EXAMPLES[task]])
    source = FileSource(task, "prepared", path)
    assert [values(source[i]) for i in range(2)] == [values(e) for e, _ in EXAMPLES[task]]
    if task == "gen":
        assert shades(source[1]) == [10]
    if task == "und":
        assert shades(source[0]) == [20, 30]


def test_a_damaged_record_is_rejected(prepared):
    source = FileSource("gen", "prepared", prepared("gen", [b"\x81", b"\x80"]))
    assert all(isinstance(source[i], Rejected) for i in range(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is no prepared directory"),
        ({"version": 9}, "was prepared in version 9"),
        ({"task": "und"}, "was prepared for task 'und', not 'gen'"),
        ({"files": [{"name": "no.array_record"}]}, r"there is no file .*no\.array_record"),
        ({"files": []}, "holds no record"),
        ({"files": 3}, "make no sense"),
        ("[]", "damaged"),
    ],
)
def test_what_is_none_is_one_line(prepared, tmp_path, change, message):
    path = prepared("gen", [record_of(*each) for each in EXAMPLES["gen"]])
    index = tmp_path / "prepared.json"
    if change is None:
        index.unlink()
    elif isinstance(change, str):
        write(index, change)
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(UserError, match=message):
        len(FileSource("gen", "prepared", path))
