"""What docs/data.md shows can be copied: its files, in its formats, are examples."""

import re
from pathlib import Path

import pytest
import yaml
from data_files import picture, write

from janus_jax.data import Rejected
from janus_jax.data.formats import FORMATS, FileSource

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
OF_FORMATS = [title for title in SECTIONS if title.split()[0].strip(",") in FORMATS]
NEEDS = {"parquet, arrow": "pyarrow", "array_record": "array_record.python.array_record_module"}


def blocks(text, kind):
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("title", [t for t in OF_FORMATS if t not in ("tfds", "prepared")])
def test_what_is_shown_can_be_copied(tmp_path, monkeypatch, title):
    if title in NEEDS:
        pytest.importorskip(NEEDS[title])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("1.png", "2.png"):
        write(tmp_path / "pictures" / name, picture(1))
    text = SECTIONS[title]
    for name, content in re.findall(
        r"^`([\w./]+)`:\n\n```\w+\n(.*?)```", text, re.MULTILINE | re.DOTALL
    ):
        write(tmp_path / name, content)
    for program in blocks(text, "python"):
        exec(program, {})
    sources = [source for block in blocks(text, "yaml") for source in yaml.safe_load(block)]
    assert sources
    for options in sources:
        del options["name"]
        source = FileSource(**options)
        found = [source[i] for i in range(len(source))]
        assert found and not [each for each in found if isinstance(each, Rejected)]


def test_every_format_is_on_the_page():
    assert len(OF_FORMATS) == 14
    assert [name for name in FORMATS if name not in PAGE and name != "json"] == []
