"""Benchmarks in every format they are distributed in give the same items; damaged files one clear line."""

import base64
import dataclasses
import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from benchmark_files import (
    LAYOUTS,
    MMBENCH,
    POPE,
    SHADES,
    base64_png,
    parquet_files,
    png,
    tsv_rows,
    write_layout,
    write_parquet,
    write_tsv,
)

from janus_jax.errors import UserError
from janus_jax.evaluation.understanding import BENCHMARK_FACTS, open_benchmark
from janus_jax.evaluation.understanding.literals import parse_list, quoted_texts
from janus_jax.evaluation.understanding.vlmevalkit_tsv import _md5

# What files say in their own way, or one of them alone.
MORE = {"fields", "pictures", "picture_key"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def opened(name, layout, folder, **options):
    paths, root = write_layout(name, layout, folder)
    return open_benchmark(name, paths, root, **options)


def plain(item):
    fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item) if f.name not in MORE}
    pixels = [picture().tolist() for picture in item.pictures]
    return fields | {"options": dict(item.options), "pixels": pixels}


@pytest.mark.parametrize("name", sorted({name for name, _ in LAYOUTS}))
def test_every_layout_gives_the_same_items(tmp_path, name):
    layouts = [layout for other, layout in LAYOUTS if other == name]
    split = "image" if name == "seed" else None
    found = {layout: opened(name, layout, tmp_path / layout, split=split) for layout in layouts}
    first = [plain(item) for item in found["tsv"]]
    assert len(first) == 12
    assert all(pixels for item in first for pixels in [item["pixels"]])
    for layout in layouts[1:]:
        assert {i["index"]: i for i in map(plain, found[layout])} == {i["index"]: i for i in first}
        assert len(found[layout]) == 12


def test_what_an_item_of_each_benchmark_holds(tmp_path):
    found = {
        name: opened(name, "tsv", tmp_path / name) for name, layout in LAYOUTS if layout == "tsv"
    }
    pope, mme, bench = found["pope"][5], found["mme"][3], found["mmbench"].find("1000001")
    assert (pope.index, pope.answer, pope.groups) == ("popular/6", "No", ("popular",))
    assert (mme.picture_key, mme.groups, mme.category) == ("OCR/0002.png", ("perception",), "OCR")
    assert (bench.hint, bench.answer, bench.split) == ("A story\nwith\ttabs.", "A", "dev")
    assert list(bench.options) == list("ABCD") and bench.options["A"] == "thing 1 of 1"
    assert found["seed"][8].category == "Text Understanding"
    assert found["gqa"][2].answer == "T-shirt"
    several = found["mmmu"].find("validation_Art_Theory_6")
    assert several.answers == ("24", "twenty-four") and not several.options
    assert several.groups == ("Art and Design",) and several.split == "validation"
    assert found["mmmu"].find("validation_Energy_and_Power_5").options["C"] == 'He said "no"'
    assert len(found["mmmu"].find("validation_Energy_and_Power_5").pictures) == 2
    assert found["mmvet"][2].groups == ("rec", "know", "gen")
    assert found["mmvet"][2].fields["category"] == "rec,know,gen"


def test_a_split_is_chosen_and_a_wrong_one_named(tmp_path):
    paths, _ = write_layout("mmmu", "parquet", tmp_path)
    assert len(open_benchmark("mmmu", paths, split="validation")) == 9
    with pytest.raises(UserError, match=r"dev \(3\), validation \(9\)\. Did you mean 'validation'"):
        open_benchmark("mmmu", paths, split="validatoin")
    assert len(opened("pope", "tsv", tmp_path / "pope", split="test")) == 12  # it has no splits


def test_two_splits_may_use_one_index(tmp_path):
    rows = tsv_rows("mmbench")
    other = [dict(row, split="test", answer="") for row in rows]
    path = write_tsv(tmp_path / "m.tsv", [*rows, *other])
    items = open_benchmark("mmbench", path, split="dev")
    assert len(items) == 12 and all(item.answer for item in items)
    with pytest.raises(UserError, match=r"row 13: its index '0' is also that of .*row 1;"):
        open_benchmark("mmbench", path)


def test_a_short_image_is_the_index_of_another_row(tmp_path):
    rows = tsv_rows("pope")
    rows[3]["image"] = "random/1"
    rows[0]["image"], rows[1]["image"] = base64_png(7), "nowhere"
    rows[2]["image"] = None
    items = open_benchmark("pope", write_tsv(tmp_path / "p.tsv", rows))
    assert items[3].pictures[0]()[0, 0, 0] == 7
    assert items[2].pictures == ()
    with pytest.raises(UserError, match="row 2: its picture should be in the row 'nowhere'"):
        items[1].pictures[0]()
    assert items[1].question == POPE[1]["question"]  # the item is there


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (base64_png(3)[:-7], "row 1: the picture is no whole base64"),
        ("!" * 100, "row 1: the picture is no whole base64"),
        (base64_png(3)[:72], "cannot read the image file"),
        ("A" * 200, "cannot read the image file"),
    ],
)
def test_a_picture_that_cannot_be_read_is_of_its_item(tmp_path, image, message):
    rows = tsv_rows("pope")
    rows[0]["image"] = image
    items = open_benchmark("pope", write_tsv(tmp_path / "p.tsv", rows))
    assert len(items) == 12
    with pytest.raises(UserError, match=message):
        items[0].pictures[0]()
    assert items[1].pictures[0]().shape == (4, 4, 3)


def test_pictures_in_folders_are_found_and_never_outside(tmp_path):
    items = opened("pope", "json", tmp_path / "p")
    (tmp_path / "p" / "pictures" / POPE[0]["name"]).unlink()
    with pytest.raises(UserError, match="picture is missing"):
        items[0].pictures[0]()
    (tmp_path / "secret.png").write_bytes(png(1))
    value = {"v1_0": dict(imagename="../secret.png", question="q", answer="a", capability=["rec"])}
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "mm-vet.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match="path leaves"):
        open_benchmark("mmvet", tmp_path / "q" / "mm-vet.json")[0].pictures[0]()
    rows = [{k: v for k, v in row.items() if k != "image"} for row in tsv_rows("mme")]
    (tmp_path / "OCR").mkdir()
    (tmp_path / "OCR" / "0001.png").write_bytes(png(9))
    table = open_benchmark("mme", write_tsv(tmp_path / "MME.tsv", rows))
    assert table[0].pictures[0]()[0, 0, 0] == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda rows: rows[4].update(index="random/1"),
            "row 5: its index 'random/1' is also that of .*row 1",
        ),
        (lambda rows: rows[4].update(index=None), "row 5: it has no index"),
        (lambda rows: rows[4].update(question=None), "row 5: its question is empty"),
        (
            lambda rows: rows[4].update(answer="maybe"),
            "row 5: its answer must be yes or no, not 'maybe'",
        ),
        (lambda rows: rows[4].update(answer="\x1b[31m"), r"yes or no, not '\\x1b\[31m'"),
    ],
)
def test_a_table_that_would_give_wrong_numbers_is_refused(tmp_path, change, message):
    rows = tsv_rows("pope")
    change(rows)
    with pytest.raises(UserError, match=message):
        open_benchmark("pope", write_tsv(tmp_path / "p.tsv", rows))


def test_files_of_other_kinds_are_named(tmp_path):
    (tmp_path / "empty.tsv").write_bytes(b"")
    (tmp_path / "text.tsv").write_text("hello\tworld\n1\t2\n")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and nothing more")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("empty.tsv", "is empty"),
        ("text.tsv", "is neither a table of VLMEvalKit"),
        ("cut.parquet", "not a whole Parquet file"),
        ("list.json", "must hold one JSON object"),
        ("folder", "directory without Parquet files"),
        ("missing.tsv", "there is no file"),
    ):
        with pytest.raises(UserError, match=message):
            open_benchmark("mmvet", tmp_path / name)
    with pytest.raises(UserError, match=r"unknown benchmark 'mmbnch'.*Did you mean 'mmbench'"):
        open_benchmark("mmbnch", tmp_path / "text.tsv")
    with pytest.raises(UserError, match=r"unknown format 'parket'.*Did you mean 'parquet'"):
        open_benchmark("pope", tmp_path / "text.tsv", file_format="parket")
    with pytest.raises(UserError, match="mme has no official JSON files"):
        open_benchmark("mme", tmp_path / "list.json")
    tsv = write_layout("pope", "tsv", tmp_path / "a")[0]
    with pytest.raises(UserError, match="give files of one format"):
        open_benchmark("pope", [*tsv, tmp_path / "list.json"])
    with pytest.raises(UserError, match="it has no subtask"):
        open_benchmark(
            "mme", write_tsv(tmp_path / "m.tsv", [dict(index=1, question="q", answer="Yes")])
        )


def test_a_file_that_is_not_vlmevalkits_has_a_warning(tmp_path):
    (warning,) = opened("mmbench", "tsv", tmp_path).warnings
    assert "is not the MMBench_DEV_EN.tsv" in warning and "expected b6caf113..." in warning
    assert opened("mmbench", "parquet", tmp_path / "p").warnings == ()


@pytest.mark.parametrize("name", ["pope", "mme", "mmbench", "seed", "mmmu", "mmvet"])
def test_another_benchmarks_table_is_refused(tmp_path, name, monkeypatch):
    others = {other for other, _ in LAYOUTS} - {name, "gqa"}
    if name in ("mmbench", "seed"):  # multiple-choice questions of any kind are like MMBench's
        others -= {"mmbench", "seed"}
    for other in others:
        path = write_tsv(tmp_path / f"{other}.tsv", tsv_rows(other))
        with pytest.raises(UserError):
            open_benchmark(name, path)
    facts = dataclasses.replace(BENCHMARK_FACTS["gqa"], md5=_md5(path))
    monkeypatch.setitem(BENCHMARK_FACTS, "gqa", facts)
    with pytest.raises(UserError, match=r"is VLMEvalKit's GQA_TestDev_Balanced\.tsv, not"):
        open_benchmark(name, path)


def test_what_pandas_reads_as_nothing_is_no_option(tmp_path):
    rows = tsv_rows("seed")
    rows[0].update(A="None", C="N/A", question="NA")
    items = open_benchmark("seed", write_tsv(tmp_path / "s.tsv", rows))
    assert list(items[0].options) == ["B", "D"] and items[0].question == "NA"
    assert list(items[1].options) == list("ABCD")


def test_pope_subsets_come_from_the_names_of_files(tmp_path):
    rows = [
        {k: v for k, v in row.items() if k != "category"}
        for row in parquet_files("pope")["test-00000-of-00001.parquet"]
    ]
    write_parquet(tmp_path / "Full" / "random-00000-of-00001.parquet", rows[:4])
    write_parquet(tmp_path / "Full" / "popular-00000-of-00001.parquet", rows[4:8])
    items = open_benchmark("pope", tmp_path)
    assert sorted({item.groups for item in items}) == [("popular",), ("random",)]
    assert items.find("popular/6").answer == "No"


def test_gqas_questions_may_have_their_pictures_in_a_folder(tmp_path):
    questions = parquet_files("gqa")["testdev_balanced_instructions/testdev-00000-of-00001.parquet"]
    path = write_parquet(tmp_path / "q.parquet", questions)
    _, root = write_layout("gqa", "json", tmp_path / "official")
    items = open_benchmark("gqa", path, root)
    assert items[2].pictures[0]()[0, 0, 0] == SHADES[1]
    pictures = write_parquet(
        tmp_path / "p.parquet", [{"id": "n0", "image": {"bytes": png(4), "path": None}}]
    )
    items = open_benchmark("gqa", [path, pictures])
    assert items[0].pictures[0]()[0, 0, 0] == 4
    with pytest.raises(UserError, match="none of the files has the picture 'n1'"):
        items[2].pictures[0]()


def test_videos_of_seed_bench_are_a_split(tmp_path):
    paths, root = write_layout("seed", "json", tmp_path)
    assert len(open_benchmark("seed", paths, root)) == 13
    (video,) = open_benchmark("seed", paths, root, split="video")
    assert (video.index, video.category) == ("900", "Action Recognition")


def test_the_second_opening_reads_no_pictures(tmp_path, monkeypatch):
    path = write_layout("pope", "tsv", tmp_path)[0]
    shown = []
    items = open_benchmark("pope", path, progress=lambda rows: shown.extend(rows) or rows)
    assert shown == list(range(12))
    first = [plain(item) for item in items]
    monkeypatch.setattr(
        "janus_jax.evaluation.understanding.vlmevalkit_tsv._small_columns",
        lambda table, progress: 1 / 0,
    )
    items = open_benchmark("pope", path)
    assert [plain(item) for item in items] == first
    rows = tsv_rows("pope")
    write_tsv(tmp_path / "pope.tsv", rows[:5])  # a changed file is read again
    with pytest.raises(ZeroDivisionError):
        open_benchmark("pope", path)


def test_memory_stays_flat_while_items_are_read(tmp_path):
    """300 rows of 80 kB: reading all pictures holds a small part of the 24 MB."""
    image = base64.b64encode(np.random.default_rng(0).bytes(60_000)).decode()
    rows = [
        dict(index=i, image=image, question=f"q {i}", answer="Yes", category="random")
        for i in range(300)
    ]
    path = write_tsv(tmp_path / "big.tsv", rows)
    open_benchmark("pope", path)
    tracemalloc.start()
    items = open_benchmark("pope", path)
    total = sum(len(item.pictures[0].fetch()) for item in items)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 300 * 60_000
    assert peak < 2e6


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "['a'",
        "[1, [2]]",
        "__import__('os')",
        "['a'] * 9",
        "{'a'}",
        "x" * 200_000,
        "[True]",
        "[" + "1," * 200 + "]",
    ],
)
def test_a_list_in_a_text_is_read_within_limits(text):
    with pytest.raises(UserError):
        parse_list(text)


def test_lists_in_texts():
    assert parse_list("['a', \"it's\", 3, 1.5]") == ["a", "it's", "3", "1.5"]
    assert quoted_texts("['ab', \"cd\"]") == ["ab", "cd"]
    assert quoted_texts("['ab' 'cd']") is None and quoted_texts("['ab'] x") is None


def test_an_unknown_index_is_named(tmp_path):
    items = opened("mmbench", "tsv", tmp_path)
    with pytest.raises(UserError, match="has no question with the index '77'"):
        items.find("77")
    assert [item.index for item in items[-2:]] == [str(r["index"]) for r in MMBENCH[-2:]]
    assert items.describe(items.indices[3]).endswith("mmbench.tsv, row 4")
    assert SHADES[1] == items.find("3000001").pictures[0]()[0, 0, 0]


@pytest.mark.subprocess
def test_a_table_is_read_without_jax_and_pyarrow(tmp_path):
    (path,), _ = write_layout("pope", "tsv", tmp_path)
    code = (
        "import sys; from janus_jax.evaluation.understanding import *\n"
        f"items = open_benchmark('pope', {path!r})\n"
        "score_answers(items, {}, get_protocol('paper', 'pope'))\n"
        "print(items[3].pictures[0]().shape, {'jax', 'pyarrow', 'grain'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("(4, 4, 3) set()", "")
