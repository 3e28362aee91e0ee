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
