"""Data in a bucket (gs://) is the data that it is on a disk, against an emulator."""

import pickle

import pytest
from data_files import llava, picture, summary, write, write_tar

from janus_jax import gcs
from janus_jax.data import Rejected, reasons
from janus_jax.data.formats import FileSource
from janus_jax.errors import RunError, UserError

pytest.importorskip("gcsfs", reason="needs gcsfs")
pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
gcs_emulator = pytest.importorskip("gcs_emulator")

COUNT = 5


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(directory, bucket) with the same files in them."""
    root = tmp_path_factory.mktemp("files")
    for i in range(COUNT):
        write(root / "pictures" / f"{i}.png", picture(i))
    names = [f"{i}.png" for i in range(COUNT)]
    write(root / "draw.jsonl", [{"image": n, "prompt": f"draw {n}"} for n in names])
    write(root / "talk.json", [llava("<image>\nwhat?", f"it is {n}", image=n) for n in names])
    write(root / "list.csv", "image,caption\n" + "".join(f'{n},"a, {n}"\n' for n in names))
    write(root / "facts.txt", "one\n\ntwo\nlines\n\nthree\n")
    (root / "tars").mkdir()
    for part, chosen in (("a", names[:2]), ("b", names[2:])):
        members = [
            m for n in chosen for m in ((n, picture(int(n[0]))), (f"{n[0]}.txt", f"tar {n}"))
        ]
        write_tar(root / "tars" / f"{part}.tar", members)
    rows = {
        "image": [{"bytes": picture(i), "path": None} for i in range(COUNT)],
        "caption": [f"row {i}" for i in range(COUNT)],
    }
    parquet.write_table(pyarrow.table(rows), root / "t.parquet", row_group_size=2)
    with gcs_emulator.for_this_process() as bucket:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                bucket.write(f"data/{path.relative_to(root)}", path.read_bytes())
        yield root, bucket


CASES = {
    "jsonl": ("gen", "jsonl", "draw.jsonl", {"image_root": "pictures"}),
    "llava": ("und", "llava", "talk.json", {"image_root": "pictures"}),
    "csv": ("gen", "csv", "list.csv", {"image_root": "pictures"}),
    "text": ("text", "text", "facts.txt", {"record": "paragraph"}),
    "tar, a pattern": ("gen", "webdataset", "tars/*.tar", {}),
    "tar, a range": ("gen", "webdataset", "tars/{b,a}.tar", {}),
    "tar, a directory": ("gen", "webdataset", "tars", {}),
    "parquet": ("gen", "parquet", "t.parquet", {}),
}


def source(place, task, kind, path, options):
    options = {k: f"{place}/{v}" if k == "image_root" else v for k, v in options.items()}
    return FileSource(task, kind, f"{place}/{path}", **options)


@pytest.mark.parametrize("case", CASES)
def test_what_is_in_a_bucket_is_what_is_on_the_disk(both, case):
    root, bucket = both
    wanted = source(root, *CASES[case])
    for _ in range(2):  # the second time with a cached index
        found = pickle.loads(pickle.dumps(source(f"{bucket.url}/data", *CASES[case])))
        assert len(found) == len(wanted) > 2
        assert [summary(x) for x in found] == [summary(x) for x in wanted]
        assert found.describe(1).startswith("gs://bucket/data/")
        assert (found.blocks is None) == (wanted.blocks is None)
    # Another size or generation of an object is another index, and another set of data.
    assert found.fingerprint == source(f"{bucket.url}/data", *CASES[case]).fingerprint


def test_an_object_that_changed_is_read_anew(both):
    _, bucket = both
    bucket.write("new/x.jsonl", b'{"text": "old"}\n')
    address = f"{bucket.url}/new/x.jsonl"
    assert [e.text for e in FileSource("text", "jsonl", address)] == ["old"]
    bucket.write("new/x.jsonl", b'{"text": "new"}\n{"text": "more"}\n')
    assert [e.text for e in FileSource("text", "jsonl", address)] == ["new", "more"]


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "x/../../secret.png"])
def test_no_picture_outside_of_its_root_is_read(both, name):
    _, bucket = both
    bucket.write("secret.png", picture(9))
    bucket.write("out/d.jsonl", b'{"image": "%s", "prompt": "x"}\n' % name.encode())
    of = FileSource("gen", "jsonl", f"{bucket.url}/out/d.jsonl", image_root=f"{bucket.url}/data")
    assert isinstance(of[0], Rejected) and of[0].reason == reasons.PATH_ESCAPE


def test_pictures_are_looked_for_in_several_places(both):
    root, bucket = both
    bucket.write("more/only.png", picture(7))
    bucket.write(
        "more/m.jsonl", b'{"image": "only.png", "prompt": "x"}\n{"image": "1.png", "prompt": "y"}\n'
    )
    roots = [f"{bucket.url}/more", str(root / "pictures"), f"{bucket.url}/data"]
    for places in (roots, roots[1:] + roots[:1]):
        of = FileSource("gen", "jsonl", f"{bucket.url}/more/m.jsonl", image_root=places)
        assert [int(of[i].picture()[0, 0, 0]) for i in range(2)] == [7, 1]


def test_a_picture_that_is_not_there_is_its_records_fault(both):
    _, bucket = both
    bucket.write("gone/d.jsonl", b'{"image": "none.png", "prompt": "x"}\n')
    (example,) = FileSource("gen", "jsonl", f"{bucket.url}/gone/d.jsonl")
    with pytest.raises(UserError, match="cannot read the picture"):
        example.picture()


def test_a_store_that_does_not_answer_is_no_bad_record(both, monkeypatch):
    _, bucket = both
    of = FileSource(
        "gen", "jsonl", f"{bucket.url}/data/draw.jsonl", image_root=f"{bucket.url}/data/pictures"
    )
    example = of[0]

    def fails(*args, **options):
        raise ConnectionError("the network is down")

    monkeypatch.setattr(gcs.filesystem(), "cat_file", fails)
    for read in (example.picture, lambda: of[1]):
        with pytest.raises(
            RunError, match=r"cannot read gs://.*the network is down; run the same command"
        ):
            read()


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        ("webdataset", "data/nothing/*.tar", "there is no such object"),
        ("webdataset", "data/none.tar", "there is no such object"),
        ("webdataset", "data/pictures", r"no object in it ends in \.tar"),
        ("imagefolder", "data/pictures", "read from a disk: copy it there"),
        ("array_record", "data/x.array_record", "read from a disk: copy it there"),
        ("jsonl", "data/facts.txt", "holds neither one JSON object a line"),
    ],
)
def test_what_cannot_be_read_is_one_line(both, kind, path, message):
    _, bucket = both
    with pytest.raises(UserError, match=message) as error:
        len(FileSource("gen", kind, f"{bucket.url}/{path}"))
    assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_one_line(both):
    with pytest.raises(UserError, match="there is no bucket nowhere-at-all"):
        FileSource("gen", "jsonl", "gs://nowhere-at-all/x.jsonl")
