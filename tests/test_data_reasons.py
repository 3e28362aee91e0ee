"""The detail of a rejected record says what its owner needs to mend it."""

import pytest
from data_files import llava, picture, write

from janus_jax.data import reasons
from janus_jax.data.formats import FileSource


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rejected(tmp_path, layout, task, record):
    write(tmp_path / "10.png", picture(10))
    return FileSource(task, layout, write(tmp_path / "a.jsonl", [record]))[0]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"image": "10.png", "wording": "a cat"}, reasons.NO_CAPTION),
        ({"photo": "10.png", "caption": "a cat"}, reasons.NO_PICTURE),
    ],
)
def test_the_fields_are_named_where_none_has_what_is_needed(tmp_path, record, reason):
    found = rejected(tmp_path, "jsonl", "gen", record)
    assert found.reason == reason
    assert all(f"'{name}'" in found.detail for name in record)


def test_a_marker_that_is_a_word_of_an_answer_is_said_to_be_in_one(tmp_path):
    record = llava("<image> what?", "The token <image> stands for a picture.", image="10.png")
    found = rejected(tmp_path, "llava", "und", record)
    assert found.reason == reasons.MORE_MARKERS
    assert found.detail == "2 for 1, 1 in what the assistant says"


def test_a_marker_too_many_in_a_later_question_is_counted(tmp_path):
    record = llava("<image> what?", "a cat", "<image> and?", "a dog", image="10.png")
    found = rejected(tmp_path, "llava", "und", record)
    assert (found.reason, found.detail) == (reasons.MORE_MARKERS, "2 for 1")


def test_links_may_lead_from_one_of_the_places_to_another(tmp_path):
    """As a cache of the Hub has its files: snapshots/x.png is a link to blobs/HASH."""
    write(tmp_path / "blobs" / "0a1b", picture(5))
    write(tmp_path / "secret.png", picture(9))
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "1.png").symlink_to(tmp_path / "blobs" / "0a1b")
    (tmp_path / "snapshots" / "2.png").symlink_to(tmp_path / "secret.png")
    records = [{"image": f"{i}.png", "prompt": "x"} for i in (1, 2)]
    write(tmp_path / "snapshots" / "a.jsonl", records)
    places = [str(tmp_path / name) for name in ("snapshots", "blobs")]
    alone, both = (
        FileSource("gen", "jsonl", str(tmp_path / "snapshots" / "a.jsonl"), image_root=roots)
        for roots in (places[0], places)
    )
    assert alone[0].reason == alone[1].reason == both[1].reason == reasons.PATH_ESCAPE
    assert "blobs/0a1b" in alone[0].detail
    assert int(both[0].picture()[0, 0, 0]) == 5


def test_names_of_pictures_may_be_those_of_windows(tmp_path):
    write(tmp_path / "a" / "b" / "1.png", picture(3))
    write(tmp_path / "x.png", picture(9))
    names = ["a\\b\\1.png", ".\\a\\b\\1.png", "..\\x.png", "a\\none.png"]
    records = write(tmp_path / "a.jsonl", [{"image": n, "prompt": "x"} for n in names])
    found = FileSource("gen", "jsonl", records, image_root=str(tmp_path))
    assert [int(found[i].picture()[0, 0, 0]) for i in (0, 1)] == [3, 3]
    assert [found[i].reason for i in (2, 3)] == [reasons.PATH_ESCAPE, reasons.PICTURE_MISSING]
