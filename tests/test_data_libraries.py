"""Files that the libraries of other people wrote, each test where its library is installed."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from data_files import picture, shades, write

from janus_jax.data import Rejected, reasons
from janus_jax.data.formats import FileSource
from janus_jax.errors import UserError

IMAGE = "<image_placeholder>"
SHADES = (10, 20, 30, 40, 50)
PROMPTS = [f"a cat of {shade}" for shade in SHADES]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def library(name):
    return pytest.importorskip(name, reason=f"needs {name}")


def check_drawn(source):
    for each in (source, pickle.loads(pickle.dumps(source))):
        assert [each[i].prompt for i in range(len(each))] == PROMPTS
        assert [shades(each[i]) for i in range(len(each))] == [[s] for s in SHADES]


class TestParquet:
    @pytest.fixture
    def pq(self):
        library("pyarrow")
        return library("pyarrow.parquet")

    @pytest.fixture
    def table(self, pq):
        import pyarrow

        columns = {
            "image": [{"bytes": picture(s), "path": None} for s in SHADES],
            "caption": PROMPTS,
            "label": [0, 1, 1, 0, -1],
        }
        features = {"label": {"names": ["cat", "big_dog"], "_type": "ClassLabel"}}
        info = json.dumps({"info": {"features": features}})
        return pyarrow.table(columns).replace_schema_metadata({"huggingface": info})

    def test_rows_are_read_over_row_groups(self, pq, table, tmp_path):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        source = FileSource("gen", "parquet", str(tmp_path / "a.parquet"))
        check_drawn(source)
        assert source.blocks.tolist() == [0, 2, 4]
        assert source.describe(4) == f"{tmp_path}/a.parquet, row 5"

    def test_blocks_of_several_files_follow_each_other(self, pq, table, tmp_path):
        for i in range(2):
            pq.write_table(table, tmp_path / f"{i}.parquet", row_group_size=3)
        source = FileSource("gen", "parquet", str(tmp_path / "*.parquet"))
        assert source.blocks.tolist() == [0, 3, 5, 8]
        assert source[7].prompt == PROMPTS[2]

    def test_classes_have_the_names_of_the_features(self, pq, table, tmp_path):
        pq.write_table(table.drop_columns("caption"), tmp_path / "a.parquet")
        source = FileSource("gen", "parquet", str(tmp_path / "a.parquet"))
        assert [source[i].prompt for i in range(4)] == ["cat", "big dog", "big dog", "cat"]
        assert source[4].reason == reasons.NO_CAPTION

    def test_bytes_that_are_missing_are_in_the_file_of_the_path(self, pq, tmp_path):
        import pyarrow

        write(tmp_path / "10.png", picture(10))
        rows = {
            "image": [{"bytes": None, "path": "10.png"}, {"bytes": None, "path": "../x.png"}, None]
        }
        pq.write_table(pyarrow.table(rows | {"text": ["a", "b", "c"]}), tmp_path / "a.parquet")
        source = FileSource("gen", "parquet", str(tmp_path / "a.parquet"))
        assert shades(source[0]) == [10]
        assert [source[i].reason for i in (1, 2)] == [reasons.PATH_ESCAPE, reasons.NO_PICTURE]

    def test_finevision_as_it_is_stored(self, pq, tmp_path):
        import pyarrow

        rows = {
            "images": [[{"bytes": picture(10), "path": None}], []],
            "texts": [
                [{"user": "bad?", "assistant": "x"}, {"user": "what?", "assistant": "a cat"}],
                [{"user": "hi", "assistant": "ho"}],
            ],
            "source": ["s", "s"],
            "relevance_ratings": [[1, 5], [None]],
        }
        pq.write_table(pyarrow.table(rows), tmp_path / "train-00000-of-00001.parquet")
        source = FileSource("und", "finevision", str(tmp_path), min_rating=3)
        assert list(source[0].turns) == [(f"{IMAGE}\nwhat?", "a cat")] and shades(source[0]) == [10]
        assert list(source[1].turns) == [("hi", "ho")]
        assert FileSource("und", "cauldron", str(tmp_path))[0].turns[0][1] == "x"

    def test_a_split_is_chosen_by_its_files(self, pq, table, tmp_path):
        for i, split in enumerate(("train", "train", "test")):
            (tmp_path / "data").mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / "data" / f"{split}-{i:05}-of-00003.parquet")
        sizes = {
            split: len(FileSource("gen", "parquet", str(tmp_path), split=split))
            for split in (None, "train", "test")
        }
        assert sizes == {None: 10, "train": 10, "test": 5}
        with pytest.raises(UserError, match="no files of a split 'dev'"):
            FileSource("gen", "parquet", str(tmp_path), split="dev")

    def test_a_table_beside_pictures(self, pq, tmp_path):
        import pyarrow

        write(tmp_path / "10.png", picture(10))
        rows = {"file_name": ["10.png"], "text": ["a cat"]}
        pq.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
        assert shades(FileSource("gen", "imagefolder", str(tmp_path))[0]) == [10]

    @pytest.mark.parametrize("content", [b"PAR1 and nothing", picture(1)])
    @pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
    def test_what_is_none_is_one_line(self, pq, tmp_path, name, content):
        with pytest.raises(UserError, match=rf"{name} is not a whole (Parquet|Arrow) file"):
            len(FileSource("gen", "parquet", write(tmp_path / name, content)))

    def test_a_file_without_rows_is_one_line(self, pq, table, tmp_path):
        pq.write_table(table.slice(0, 0), tmp_path / "a.parquet")
        with pytest.raises(UserError, match=r"a\.parquet holds no record"):
            len(FileSource("gen", "parquet", str(tmp_path / "a.parquet")))

    def test_arrow_files_and_streams_are_mapped(self, pq, table, tmp_path):
        import pyarrow

        for name, write_as in (
            ("a.arrow", pyarrow.ipc.new_file),
            ("b.arrow", pyarrow.ipc.new_stream),
        ):
            with write_as(str(tmp_path / name), table.schema) as writer:
                writer.write_table(table, max_chunksize=2)
            check_drawn(FileSource("gen", "arrow", str(tmp_path / name)))


def test_what_datasets_saved(tmp_path):
    datasets = library("datasets")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {"image": [{"bytes": picture(s), "path": None} for s in SHADES], "caption": PROMPTS}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.save_to_disk(str(tmp_path / "one"), num_shards=2)
    check_drawn(FileSource("gen", "arrow", str(tmp_path / "one")))
    splits = datasets.DatasetDict({"train": dataset, "test": dataset.select([3])})
    splits.save_to_disk(str(tmp_path / "splits"))
    check_drawn(FileSource("gen", "arrow", str(tmp_path / "splits")))
    assert (
        FileSource("gen", "arrow", str(tmp_path / "splits"), split="test")[0].prompt == PROMPTS[3]
    )
    dataset.to_parquet(str(tmp_path / "a.parquet"))
    check_drawn(FileSource("gen", "parquet", str(tmp_path / "a.parquet")))


class TestArrayRecord:
    @pytest.fixture
    def written(self, tmp_path):
        module = library("array_record.python.array_record_module")

        def write_records(records, name="a.array_record"):
            writer = module.ArrayRecordWriter(str(tmp_path / name), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
            return str(tmp_path / name)

        return write_records

    def test_json_and_messagepack(self, written, tmp_path):
        import msgpack

        write(tmp_path / "10.png", picture(10))
        records = [
            json.dumps({"image": "10.png", "prompt": "a cat"}).encode(),
            msgpack.packb({"image": picture(20), "prompt": "a dog"}),
        ]
        source = FileSource("gen", "array_record", written(records))
        assert [(source[i].prompt, shades(source[i])) for i in range(2)] == [
            ("a cat", [10]),
            ("a dog", [20]),
        ]

    def test_examples_of_tensorflow(self, written):
        source = FileSource("gen", "array_record", written([tf_example(picture(20), "a dog")]))
        assert (source[0].prompt, shades(source[0])) == ("a dog", [20])

    def test_numbers_of_an_example(self):
        from janus_jax.data.containers.array_record import parse_record

        long = field(
            1, field(1, entry("codes", field(3, field(1, b"\x01\x80\x01" + b"\xff" * 9 + b"\x01"))))
        )
        assert parse_record(long) == {"codes": [1, 128, -1]}

    def test_bad_records_are_rejected(self, written):
        bad = [b"\xff\xff", b"{", b"\x81", b"", tf_example(picture(20), "a dog")[:-5]]
        source = FileSource("gen", "array_record", written(bad))
        assert all(isinstance(source[i], Rejected) for i in range(len(bad)))

    def test_what_is_none_is_one_line(self, written, tmp_path):
        library("array_record.python.array_record_module")
        with pytest.raises(UserError, match=r"b\.array_record"):
            len(
                FileSource(
                    "gen", "array_record", write(tmp_path / "b.array_record", picture(1) * 9)
                )
            )


def field(number, data):
    """A field of a protocol buffer, of less than 2 MB."""
    size, varint = len(data), b""
    while size > 127:
        varint, size = varint + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + varint + bytes([size]) + data


def entry(name, feature):
    return field(1, name.encode()) + field(2, feature)


def tf_example(image, prompt):
    features = [("image", image), ("prompt", prompt.encode())]
    return field(1, b"".join(field(1, entry(n, field(1, field(1, v)))) for n, v in features))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A dataset with pictures, several captions each, and classes; TensorFlow must not be there."""
    tfds = library("tensorflow_datasets")

    class Cats(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["tabby_cat", "big_dog"]),
                "captions": tfds.features.Sequence({"text": tfds.features.Text(), "id": np.int64}),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, (shade, prompt) in enumerate(zip(SHADES, PROMPTS, strict=True)):
                captions = [{"text": prompt, "id": i}, {"text": "BM a cat", "id": i}]
                file = io.BytesIO(picture(shade))
                yield i, {"image": file, "label": i % 2, "captions": captions}

    place = tmp_path_factory.mktemp("tfds")
    builder = Cats(data_dir=str(place), file_format="array_record")
    builder.download_and_prepare()
    return builder


class TestTfds:
    def test_one_of_the_captions_is_drawn_and_pictures_stay_encoded(self, built):
        source = FileSource("gen", "tfds", str(built.data_path))
        order = [shades(source[i])[0] for i in range(5)]
        assert sorted(order) == list(SHADES)  # they are shuffled when they are written
        assert {source[i].prompt for i in range(5)} <= {*PROMPTS, "BM a cat"}
        assert isinstance(source[0].picture.data, bytes)
        copy = pickle.loads(pickle.dumps(source))
        assert [copy[i].prompt for i in range(5)] == [source[i].prompt for i in range(5)]
        assert "tensorflow" not in sys.modules

    def test_classes_have_their_names(self, built):
        source = FileSource(
            "gen", "tfds", str(built.data_path), layout="classes", split="train[:4]"
        )
        assert {source[i].prompt for i in range(4)} <= {"tabby cat", "big dog"} and len(source) == 4

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (dict(format="tfds:no_such_data_set"), "there is no dataset tfds:no_such_data_set"),
            (dict(format="tfds:mnist"), "none is prepared"),
            (dict(format="tfds", path="/nowhere"), "there is no dataset tfds:/nowhere"),
        ],
    )
    def test_what_is_not_there_is_one_line(self, built, tmp_path, arguments, message):
        if "path" not in arguments:
            arguments = {**arguments, "path": str(tmp_path)}
        with pytest.raises(UserError, match=message) as error:
            len(FileSource("gen", **arguments))
        assert "\n" not in str(error.value)

    def test_a_split_that_is_not_there_names_the_nearest(self, built):
        with pytest.raises(UserError, match="Did you mean 'train'"):
            len(FileSource("gen", "tfds", str(built.data_path), split="trian"))


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("pyarrow", ("parquet", "a.parquet"), "parquet"),
        ("pyarrow", ("arrow", "a.arrow"), "parquet"),
        ("array_record.python", ("array_record", "a.array_record"), "array_record"),
        ("tensorflow_datasets", ("tfds:mnist", None), "tfds"),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(
    tmp_path, monkeypatch, package, arguments, extra
):
    for name in [n for n in sys.modules if n == package or n.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    kind, name = arguments
    path = name and write(tmp_path / name, b"x")
    with pytest.raises(UserError, match=rf'pip install "janus-jax\[{extra}\]"'):
        len(FileSource("gen", kind, path))
