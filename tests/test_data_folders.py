"""Archives and folders as people have them give the example that they mean, or the reason why they do not."""

import pytest
from data_files import (
    FIRST,
    IMAGE,
    QA,
    chat,
    drawn,
    llava,
    picture,
    seen,
    summary,
    write,
    write_tar,
)

from janus_jax.data import reasons
from janus_jax.data.formats import FileSource


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


ARCHIVES = {
    "BLIP3o-60k": ([("0.jpg", picture(10)), ("0.txt", "a red cat")], "gen", drawn("a red cat", 10)),
    "text-to-image-2M": (
        [("0.jpg", picture(10)), ("0.json", {"prompt": "a red cat"})],
        "gen",
        drawn("a red cat", 10),
    ),
    "img2dataset": (
        [
            ("0.jpg", picture(10)),
            ("0.json", {"url": "http://x", "key": "0", "caption": "no"}),
            ("0.txt", "a cat"),
        ],
        "und",
        seen([("Describe the image in detail.", "a cat")], 10),
    ),
    "llava in an archive": (
        [("a/0.png", picture(10)), ("a/0.json", llava(FIRST, "a cat", image="0.png"))],
        "und",
        seen(QA, 10),
    ),
    "several": (
        [
            ("0.a.png", picture(10)),
            ("0.b.png", picture(20)),
            ("0.json", chat("<image><image>which?", "both")),
        ],
        "und",
        seen([(f"{IMAGE}\n{IMAGE}\nwhich?", "both")], 10, 20),
    ),
    "class": ([("0.png", picture(10)), ("0.cls", "tabby_cat")], "gen", drawn("tabby cat", 10)),
    "no picture": ([("0.txt", "a red cat")], "gen", reasons.NO_PICTURE),
    "bytes that are no text": (
        [("0.png", picture(10)), ("0.txt", b"\xff\xfe")],
        "gen",
        reasons.NOT_UTF8,
    ),
    "empty picture": ([("0.png", b""), ("0.txt", "a cat")], "gen", reasons.NO_PICTURE),
}


@pytest.mark.parametrize(("members", "task", "wanted"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_is_what_it_means(tmp_path, members, task, wanted):
    path = write_tar(tmp_path / "0.tar", members)
    assert summary(FileSource(task, "webdataset", path)[0]) == wanted


FOLDERS = {
    "classes": (
        {"tabby_cat/1.png": picture(10), "tiger/1.png": picture(20)},
        "gen",
        drawn("tabby cat", 10),
    ),
    "class to learn": (
        {"cat/1.png": picture(10)},
        "und",
        seen([("What is in the picture?", "cat")], 10),
    ),
    "no folder": ({"1.png": picture(10), "cat/1.png": picture(20)}, "gen", reasons.NO_CLASS),
    "pairs": ({"a.jpg": picture(10), "a.txt": "a red cat"}, "gen", drawn("a red cat", 10)),
    "one without": (
        {"a.jpg": picture(10), "b.jpg": picture(20), "b.txt": "x"},
        "gen",
        reasons.NO_CAPTION,
    ),
    "one too many": ({"a.txt": "x", "b.jpg": picture(20), "b.txt": "x"}, "gen", reasons.NO_PICTURE),
    "empty": ({"a.jpg": picture(10), "a.txt": " "}, "gen", reasons.EMPTY_TEXT),
    "metadata.jsonl": (
        {
            "in/a.png": picture(10),
            "metadata.jsonl": [{"file_name": "in/a.png", "text": "a red cat"}],
        },
        "gen",
        drawn("a red cat", 10),
    ),
    "metadata.csv": (
        {"a.png": picture(10), "metadata.csv": 'file_name,text\na.png,"a red,\ncat"\n'},
        "gen",
        drawn("a red,\ncat", 10),
    ),
    "several": (
        {
            "a.png": picture(10),
            "b.png": picture(20),
            "metadata.jsonl": [
                chat("<image><image>which?", "both", images_file_names=["a.png", "b.png"])
            ],
        },
        "und",
        seen([(f"{IMAGE}\n{IMAGE}\nwhich?", "both")], 10, 20),
    ),
    "outside": (
        {"metadata.jsonl": [{"file_name": "../../a.png", "text": "x"}]},
        "gen",
        reasons.PATH_ESCAPE,
    ),
    "missing": (
        {"metadata.jsonl": [{"file_name": "a.png", "text": "x"}]},
        "gen",
        reasons.PICTURE_MISSING,
    ),
}


@pytest.mark.parametrize(("files", "task", "wanted"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_is_what_it_means(tmp_path, files, task, wanted):
    for name, content in files.items():
        write(tmp_path / "data" / name, content)
    assert summary(FileSource(task, "imagefolder", str(tmp_path / "data"))[0]) == wanted
