"""Sets of prompts: the built-in ones as distributed, and files of one's own."""

import json
from collections import Counter

import pytest

from janus_jax.errors import UserError
from janus_jax.evaluation.generation import (
    GENEVAL_TASKS,
    dpg_prompts,
    geneval_classes,
    geneval_prompts,
    make_prompts,
    prompt_set,
    read_prompts,
)
from janus_jax.evaluation.generation.prompts import is_geneval
from janus_jax.evaluation.generation.rules import check_metadata


def test_geneval_is_the_published_set():
    prompts = geneval_prompts()
    counts = Counter(prompt.metadata["tag"] for prompt in prompts.prompts)
    assert counts == {
        "position": 100,
        "color_attr": 100,
        "two_object": 99,
        "colors": 94,
        "single_object": 80,
        "counting": 80,
    }
    assert set(counts) == set(GENEVAL_TASKS) and len(prompts) == prompts.total == 553
    classes = geneval_classes()
    assert len(classes) == len(set(classes)) == 80 and classes[64] == "computer mouse"
    for prompt in prompts.prompts:
        check_metadata(prompt.metadata, prompt.key)
        assert prompt.text == prompt.metadata["prompt"]
        assert {entry["class"] for entry in prompt.metadata["include"]} <= set(classes)


def test_dpg_is_the_published_set():
    prompts = dpg_prompts()
    assert len(prompts) == 1065 and prompts.prompts[0].text.startswith(
        "An expansive field, blanketed"
    )
    words = [len(prompt.text.split()) for prompt in prompts.prompts]
    assert 60 < sum(words) / len(words) < 70
    assert {"0", "whoops9", "COCOval2014000000010363"} <= {prompt.key for prompt in prompts.prompts}
    assert not is_geneval(prompts) and not prompts.partial


def test_a_part_has_all_kinds_and_knows_that_it_is_one():
    whole = geneval_prompts()
    part = whole.spread(12)
    assert {prompt.metadata["tag"] for prompt in part.prompts} == set(GENEVAL_TASKS)
    assert part.partial and (part.total, len(part)) == (553, 12)
    assert part.fingerprint == whole.fingerprint and not whole.partial
    assert {p.number for p in part.prompts} <= {p.number for p in whole.spread(24).prompts}
    assert whole.spread(None) is whole.spread(553) is whole.spread(10**6) is whole
    for count in (0, -1, 1.5, True, "3"):
        with pytest.raises(UserError, match="a number of prompts must be 1 or more"):
            whole.spread(count)


def test_text_files_have_a_prompt_a_line(tmp_path):
    path = tmp_path / "color_val.txt"
    path.write_bytes("\ufeffa bench\tx\r\n\r\n  a c\u00f4t\u00e9\u2028 d\n\n".encode())
    prompts = prompt_set(str(path))
    assert [(p.number, p.key, p.text) for p in prompts.prompts] == [
        (0, "00000", "a bench"),
        (1, "00001", "a c\u00f4t\u00e9\u2028 d"),
    ]
    assert prompts.name == "color_val"


def test_json_lines_keep_their_source(tmp_path):
    path = tmp_path / "mine.jsonl"
    lines = ['{"prompt":"a",  "id": "x"}', '{"prompt": "b", "other": 1}', '{"prompt":"c", "id":7}']
    path.write_text("\r\n".join(lines) + "\n\n")
    prompts = read_prompts(path)
    assert [(p.key, p.text, p.line) for p in prompts.prompts] == list(
        zip(("x", "00001", "7"), "abc", lines, strict=True)
    )
    assert not is_geneval(prompts)


def test_a_file_in_genevals_form_is_one(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(p.line + "\n" for p in geneval_prompts().spread(3).prompts))
    prompts = prompt_set(path)
    assert is_geneval(prompts) and [p.key for p in prompts.prompts] == ["00000", "00001", "00002"]


def test_json_and_folders_name_their_prompts(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps({"b": "two", "a": "one"}))
    assert [(p.key, p.text) for p in read_prompts(tmp_path / "p.json").prompts] == [
        ("b", "two"),
        ("a", "one"),
    ]
    folder = tmp_path / "prompts"
    folder.mkdir()
    (folder / "1.txt").write_text("one\nline and another\n")
    (folder / "0.txt").write_text("\ufeffzero")
    (folder / "readme.md").write_text("no prompt")
    prompts = prompt_set(folder)
    assert [(p.key, p.text) for p in prompts.prompts] == [
        ("0", "zero"),
        ("1", "one\nline and another"),
    ]


def test_equal_texts_are_counted_and_what_is_drawn_is_fingerprinted():
    prompts = make_prompts("m", [("", text, "") for text in "abaa"])
    assert [p.occurrence for p in prompts.prompts] == [0, 0, 1, 2]
    assert [p.occurrence for p in prompts.spread(2).prompts] == [0, 1]
    others = [
        make_prompts("m", [("", text, "") for text in letters]) for letters in ("abab", "aba")
    ]
    assert len({prompts.fingerprint, *(other.fingerprint for other in others)}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no prompts"),
        ("a.txt", b"\n \n\t\n", "has no prompts"),
        ("a.txt", b"\xff\xfe", "cannot read"),
        ("a.csv", b"prompt\na", r"prompts are read from \.txt"),
        (
            "a.jsonl",
            b'{"prompt": "a"}\n{"text": "b"}',
            'line 2: must be an object with a text "prompt"',
        ),
        ("a.jsonl", b'{"prompt": "a"}\n["prompt"]', "line 2"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 7}', "line 2"),
        ("a.jsonl", b'{"prompt": "a", "id": [1]}', "line 1"),
        ("a.jsonl", b'{"prompt": "a\x1b[2J', "line 1.*x1b"),
        ("a.jsonl", b'{"prompt": "  "}', "is empty"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "halves of characters"),
        ("a.jsonl", b'{"prompt": "a", "id": "../x"}', r"cannot be the name of a picture"),
        ("a.jsonl", b'{"prompt": "a", "id": ".x"}', "cannot be the name of a picture"),
        ("a.jsonl", b'{"prompt": "a", "id": "\\u001b"}', "cannot be the name of a picture"),
        (
            "a.jsonl",
            b'{"prompt":"a","id":"x"}\n{"prompt":"b","id":"x"}',
            "two prompts have the name",
        ),
        ("a.json", b'["a"]', "must be {name of the picture: prompt"),
        ("a.json", b"{", "is not valid JSON"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        prompt_set(path)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_names_that_are_nothing_are_told(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'geneval'"):
        prompt_set("genevall")
    with pytest.raises(UserError, match="neither geneval nor dpg, nor a file or folder"):
        prompt_set(tmp_path / "nothing.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no prompts"):
        prompt_set(tmp_path / "empty")
