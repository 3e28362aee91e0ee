"""Records lie where they should, in damaged and odd files too, and an index is made once."""

import csv
import io
import itertools
import json
import os
import pickle
import random
import tarfile
import threading

import numpy as np
import pytest
from data_files import link, picture, write, write_tar
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_jax.data import Rejected, reasons
from janus_jax.data.containers import index_cache, lines
from janus_jax.data.containers.base import Joined, PositionedFile
from janus_jax.data.containers.folder import Pictures
from janus_jax.data.containers.json_lines import JsonLines
from janus_jax.data.containers.table import Table
from janus_jax.data.containers.tar import Tar
from janus_jax.data.containers.text import TextFile
from janus_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "janus_jax" / "indices"


@pytest.fixture
def small_chunks(monkeypatch):
    """So that every boundary between two chunks is in the middle of something."""
    monkeypatch.setattr(lines, "_CHUNK", 7)


def test_a_file_is_closed_at_the_end_of_a_program(tmp_path, monkeypatch):
    """Modules may be gone by then."""
    path = tmp_path / "a"
    path.write_text("abc")
    file = PositionedFile(path)
    assert file.read(1, 2) == b"bc"
    number = file._descriptor.number
    monkeypatch.setattr("janus_jax.data.containers.base.os", None)
    file._descriptor.__del__()
    with pytest.raises(OSError):
        os.fstat(number)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECTS = st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=6)
TRICKY = [{"a\\": '"[],{}\\"'}, {"\\\\": ["\\", {"x": "]"}]}, {}, {"é": '\\\\"'}]


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("chunk", [3, 64])
def test_elements_of_an_array_are_found(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(lines, "_CHUNK", chunk)

    @settings(max_examples=15, deadline=None, database=None)
    @given(OBJECTS, st.booleans())
    def check(values, ascii):
        values = [*values, *TRICKY]
        path = tmp_path / "a.json"
        path.write_text(
            json.dumps(values, indent=indent, ensure_ascii=ascii), "utf-8", "surrogatepass"
        )
        assert _loaded(path) == values

    check()


def _loaded(path):
    start, _ = lines.content_start(path)
    offsets = lines.array_offsets(path, start).astype(int)
    data = path.read_bytes()
    pairs = itertools.pairwise(offsets)
    return [json.loads(data[a : b - 1].decode("utf-8", "surrogatepass")) for a, b in pairs]


def test_lines_are_found_whatever_ends_them(tmp_path, monkeypatch):
    values = [{"a": i, "b": "x" * i} for i in range(30)]
    ends = ["\n", "\r\n", "\n\n", "\n \t\r\n\n"]
    text = "".join(json.dumps(v) + ends[i % 4] for i, v in enumerate(values))
    for chunk in (1, 3, 7, 64, 2**22):
        monkeypatch.setattr(lines, "_CHUNK", chunk)
        for content in (text, "\n\n" + text.rstrip(), "\ufeff" + text):
            path = tmp_path / f"{chunk}.jsonl"
            write(path, content)
            found = JsonLines(path)
            assert [found[i] for i in range(len(found))] == values


def test_paragraphs_stand_between_blank_lines(tmp_path, small_chunks):
    path = write(tmp_path / "a.txt", "\n one\ntwo\n\n \nthree\r\n\r\nfour")
    found = TextFile(path, "paragraph")
    assert [found[i]["text"].split() for i in range(len(found))] == [
        ["one", "two"],
        ["three"],
        ["four"],
    ]
    assert [r["text"].strip() for r in map(TextFile(path, "line").__getitem__, range(4))] == [
        "one", "two", "three", "four",
    ]  # fmt: skip
    assert TextFile(path)[0]["text"].startswith("\n one")
    assert len(TextFile(path)) == 1


def test_rows_of_a_table_are_those_that_csv_reads(tmp_path):
    rng = random.Random(0)
    fields = ['a "quote"', "two\nlines", "x,y", "tab\there", "", "é\u2028x", "end\r\n", "{}[]"]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        rows = [[rng.choice(fields) for _ in range(3)] for _ in range(200)]
        file = io.StringIO(newline="")
        csv.writer(file, delimiter=delimiter).writerows([["a", "b", "c"], *rows])
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"\xef\xbb\xbf" + file.getvalue().encode())
        table = Table(path)
        assert [list(table[i].values()) for i in range(len(table))] == rows
        assert table.columns == ["a", "b", "c"]


def test_a_column_without_a_name_is_left_out(tmp_path):
    """What `DataFrame.to_csv` writes, and a spreadsheet with a margin."""
    table = Table(write(tmp_path / "a.csv", ",image,caption,\n0,1.png,a cat,\n1,2.png,a dog,x\n"))
    assert table[0] == {"image": "1.png", "caption": "a cat"}
    assert table[1] == {"image": "2.png", "caption": "a dog"}


def test_one_column_may_have_any_name_if_the_delimiter_is_given(tmp_path):
    path = write(tmp_path / "a.csv", "a;b\n1;2\n")
    assert Table(path, ";")[0] == {"a": "1", "b": "2"}
    assert Table(path, ",")[0] == {"a;b": "1;2"}


def test_a_field_may_be_as_long_as_a_picture(tmp_path):
    path = write(tmp_path / "a.csv", "image,text\n" + "A" * 300_000 + ",x\n")
    assert len(Table(path)[0]["image"]) == 300_000


def test_bad_lines_and_rows_are_rejected_each_for_its_reason(tmp_path):
    data = (
        b'{"a": 1}\n{"a": \n"text"\n\xff{}\n'
        + b"[" * 100_000
        + b"\n"
        + b'{"a": '
        + b"9" * 5000
        + b"}\n"
    )
    found = JsonLines(write(tmp_path / "a.jsonl", data))
    wanted = [None, *[reasons.WRONG_JSON] * 2, reasons.NOT_UTF8, *[reasons.WRONG_JSON] * 2]
    assert [getattr(found[i], "reason", None) for i in range(len(found))] == wanted
    table = Table(write(tmp_path / "a.csv", b'a,b\n1,2\n1\n"x"y,2\n\xff,2\n3,4\n'))
    wanted = [None, reasons.WRONG_TABLE, reasons.WRONG_TABLE, reasons.NOT_UTF8, None]
    assert [getattr(table[i], "reason", None) for i in range(len(table))] == wanted
    assert "record 3" in table.describe(2)


def test_keys_of_an_archive_are_those_of_webdataset(tmp_path):
    path = write_tar(
        tmp_path / "0.tar",
        [
            ("__info__/a.json", {}),
            ("d.0/b.seg.PNG", picture(1)),
            ("d.0/b.txt", "one"),
            ("d.0/c.txt", "two"),
            ("README", "no suffix"),
            (".hidden.txt", "no key"),
            ("__meta__", "x"),
            ("d.0/b.txt", "three: another run of the key"),
        ],
    )
    found = Tar(path)
    keys = [(found[i]["__key__"], found[i]["txt"]) for i in range(len(found))]
    assert keys == [("d.0/b", "one"), ("d.0/c", "two"), ("d.0/b", "three: another run of the key")]
    assert found[0]["image"].read() == picture(1)
    assert found.describe(1).endswith("sample d.0/c")


def test_keys_are_those_that_the_library_of_webdataset_finds(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    names = ["a.jpg", "a.TXT", "b/a.0.jpg", "b/a.0.txt", "b.c/d.txt", "__x__/y.txt", "e", "f.g.h.i"]
    path = write_tar(tmp_path / "0.tar", [(name, name) for name in names])
    theirs = [
        {k: v for k, v in sample.items() if not k.startswith("__") or k == "__key__"}
        for sample in webdataset.WebDataset(path, shardshuffle=False)
    ]
    ours = Tar(path)
    assert [ours[i]["__key__"] for i in range(len(ours))] == [s["__key__"] for s in theirs]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("a.txt", "1"), ("a.TXT", "2")], reasons.TWO_MEMBERS),
        ([link("a.jpg", "/etc/passwd"), ("a.txt", "1")], reasons.ARCHIVE_ESCAPE),
        ([("../../a.jpg", "1")], reasons.ARCHIVE_ESCAPE),
        ([("/a.jpg", "1")], reasons.ARCHIVE_ESCAPE),
        ([("a.json", "{")], reasons.WRONG_JSON),
        ([("a.json", "[]")], reasons.WRONG_JSON),
    ],
)
def test_bad_samples_are_rejected_and_others_are_not(tmp_path, members, reason):
    found = Tar(write_tar(tmp_path / "0.tar", [*members, ("z.txt", "good")]))
    assert [getattr(found[i], "reason", None) for i in range(2)] == [reason, None]


BROKEN = {
    "not there": (JsonLines, "a.jsonl", None, "there is no file"),
    "empty": (JsonLines, "a.jsonl", b"", "is empty"),
    "no record": (JsonLines, "a.jsonl", b" \n\n ", "holds no record"),
    "empty array": (JsonLines, "a.json", b"[ ]", "holds no record"),
    "cut off": (JsonLines, "a.json", b'[{"a": 1}, {"a"', "ends in the middle"),
    "open string": (JsonLines, "a.json", b'[{"a": "]}]', "ends in the middle"),
    "two arrays": (JsonLines, "a.json", b"[{}][{}]", "more than one"),
    "one object over lines": (JsonLines, "a.json", b'{\n "a": [\n 1\n ]\n}\n', "neither one JSON object"),
    "compressed": (JsonLines, "a.jsonl.gz", b"\x1f\x8b\x08\0", "is compressed (gzip)"),
    "a picture": (Tar, "a.tar", picture(1), "not a whole tar"),
    "half a tar": (Tar, "a.tar", "half", "not a whole tar"),
    "damaged tar": (Tar, "a.tar", "damaged", "is damaged at byte"),
    "no samples": (Tar, "a.tar", "none", "holds no sample"),
    "names only": (Table, "a.csv", b"a,b\n", "holds no record"),
    "no names": (Table, "a.csv", b",,\n1,2,3\n", "must name the columns"),
    "semicolons": (Table, "a.csv", b"a;b\n1;2\n", 'give delimiter: ";"'),
    "tabs": (Table, "a.csv", b"a\tb\n1\t2\n", 'give delimiter: "\\t"'),
    "names alike": (Table, "a.csv", b"a,a\n1,2\n", "must name the columns"),
    "names of bytes": (Table, "a.csv", b"\xff,a\n1,2\n", "must name the columns"),
    "open quote": (Table, "a.csv", b'a,b\n1,2\n"x,2\n3,4\n', "a quote in record 2 has no end"),
    "blank": (TextFile, "a.txt", b"", "is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line_that_names_it(tmp_path, kind, name, content, message):
    path = tmp_path / name
    if isinstance(content, str):
        members = (
            [("README", "x")] if content == "none" else [(f"{i}.txt", "x" * 2000) for i in range(4)]
        )
        write_tar(path, members)
        data = bytearray(path.read_bytes())
        if content == "half":
            path.write_bytes(data[:2000])
        elif content == "damaged":
            data[2560 : 2560 + 400] = b"x" * 400
            path.write_bytes(data)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as error:
        kind(str(path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="a named pipe"):
        JsonLines(str(tmp_path / "a.jsonl"))


def test_an_index_is_made_once_and_again_for_another_file(tmp_path, monkeypatch, cache):
    path = tmp_path / "a.jsonl"
    write(path, [{"a": i} for i in range(5)])
    made = []
    real = lines.line_offsets
    monkeypatch.setattr(
        "janus_jax.data.containers.json_lines.line_offsets", lambda p: made.append(p) or real(p)
    )
    assert len(JsonLines(path)) == len(JsonLines(path)) == 5
    assert len(made) == 1
    write(path, [{"a": i} for i in range(7)])
    assert len(JsonLines(path)) == 7
    os.utime(path, ns=(1, 1))
    assert len(JsonLines(path)) == 7
    assert len(made) == 3
    [file] = cache.glob("*.index")
    data = file.read_bytes()
    for damaged in (data[:-3], data[:10], b"", data[:-3] + b"\xff" + data[-2:], b"{}\n", b"\xff\n"):
        file.write_bytes(damaged)
        assert [r["a"] for r in map(JsonLines(path).__getitem__, range(7))] == list(range(7))
    assert len(made) == 9
    assert file.read_bytes() == data


def test_without_a_cache_there_is_an_index_all_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", [{"a": 1}])
    monkeypatch.setenv("XDG_CACHE_HOME", path)  # a file, where nothing can be made
    assert JsonLines(path)[0] == {"a": 1}
    monkeypatch.setattr(index_cache, "user_cache", lambda: None)
    assert JsonLines(path)[0] == {"a": 1}


def test_a_large_index_is_mapped_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(index_cache, "_MAPPED", 0)
    path = write(tmp_path / "a.jsonl", [{"a": i} for i in range(5)])
    assert len(JsonLines(path)) == 5
    starts = JsonLines(path)._starts
    while isinstance(starts, np.ndarray) and not isinstance(starts, np.memmap):
        starts = starts.base
    assert isinstance(starts, np.memmap)
    assert JsonLines(path)[4] == {"a": 4}


def test_a_folder_is_scanned_again_when_a_picture_comes(tmp_path, monkeypatch):
    write(tmp_path / "cat" / "1.png", picture(1))
    assert len(Pictures(tmp_path)) == 1
    monkeypatch.setattr("janus_jax.data.containers.folder._walk", None)
    assert Pictures(tmp_path)[0]["class_name"] == "cat"  # from the cache
    monkeypatch.undo()
    write(tmp_path / "cat" / "2.png", picture(1))
    os.utime(tmp_path / "cat", ns=(1, 1))  # clocks of file systems are coarse
    assert len(Pictures(tmp_path)) == 2
    write(tmp_path / "dog" / "1.png", picture(1))
    os.utime(tmp_path, ns=(1, 1))
    assert [Pictures(tmp_path)[i]["class_name"] for i in range(3)] == ["cat", "cat", "dog"]


def test_folders_that_are_links_are_not_entered(tmp_path):
    write(tmp_path / "data" / "cat" / "1.png", picture(1))
    write(tmp_path / "secret" / "1.png", picture(1))
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "secret")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    found = Pictures(tmp_path / "data")
    assert [found.describe(i).split("/")[-1] for i in range(3)] == ["again", "1.png", "dog"]


def test_files_are_joined_in_their_order(tmp_path):
    paths = [write(tmp_path / f"{n}.jsonl", [{"a": (n, i)} for i in range(n)]) for n in (3, 1, 4)]
    joined = Joined(paths, JsonLines, open_at_most=1)
    wanted = [[n, i] for n in (3, 1, 4) for i in range(n)]
    for copy in (joined, pickle.loads(pickle.dumps(joined))):
        assert [copy[i]["a"] for i in range(len(copy))] == wanted
        assert copy[np.int64(7)]["a"] == [4, 3]
    assert joined.describe(3) == f"{paths[1]}, record 1"
    for index in (-1, 8):
        with pytest.raises(IndexError):
            joined[index]


def test_a_file_that_changes_while_it_is_in_use_is_not_read_at_wrong_places(tmp_path):
    paths = [write(tmp_path / f"{n}.jsonl", [{"a": i} for i in range(3)]) for n in range(2)]
    joined = Joined(paths, JsonLines, open_at_most=1)
    write(tmp_path / "0.jsonl", [{"a": 1}])
    with pytest.raises(UserError, match=r"0\.jsonl was changed while it was in use"):
        joined[0]


def test_no_file_stays_open(tmp_path):
    opened = lambda: len(os.listdir("/proc/self/fd"))
    paths = [write_tar(tmp_path / f"{n}.tar", [(f"{n}.txt", str(n))]) for n in range(20)]
    before = opened()
    joined = Joined(paths, Tar, open_at_most=3)
    assert [joined[i]["txt"] for i in range(20)] == [str(i) for i in range(20)]
    assert opened() <= before + 3
    del joined
    assert opened() == before


def test_threads_read_one_file_together(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"a": i, "b": "x" * i} for i in range(300)])
    joined, wrong = Joined([path] * 2, JsonLines, open_at_most=1), []

    def read(seed):
        for index in random.Random(seed).sample(range(600), 60):
            if joined[index]["a"] != index % 300:
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


def test_a_file_that_has_shrunk_is_a_rejected_record(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [{"a": "x" * 100}] * 3)
    found = JsonLines(path)
    os.truncate(path, 50)
    assert isinstance(found[2], Rejected) and found[2].reason == reasons.CANNOT_READ
    assert PositionedFile(path).read(0, 5) == b'{"a":'


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_are_read_in_every_dialect(tmp_path, format):
    name = f"{'d' * 60}/{'k' * 60}.txt"
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        info = tarfile.TarInfo(name)
        info.size = 2
        archive.addfile(info, io.BytesIO(b"ok"))
    assert Tar(tmp_path / "a.tar")[0] == {"__key__": name[:-4], "txt": "ok", "caption": "ok"}
