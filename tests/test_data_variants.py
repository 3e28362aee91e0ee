"""Every layout that people have on disk gives the example that it means, or the reason why it does not."""

import base64

import pytest
from data_files import (
    FIRST,
    IMAGE,
    QA,
    chat,
    drawn,
    llava,
    openai,
    picture,
    said,
    seen,
    summary,
    text,
    write,
)

from janus_jax.data import reasons
from janus_jax.data.formats import FileSource

B64 = base64.b64encode(picture(70)).decode()


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures 10.png, 20.png and so on, whose name is their shade."""
    root = tmp_path_factory.mktemp("pictures")
    for shade in (10, 20, 30):
        write(root / f"{shade}.png", picture(shade))
        write(root / "more" / f"{shade + 1}.jpg", picture(shade + 1))
    write(root.parent / "outside.png", picture(99))
    (root / "link.png").symlink_to(root.parent / "outside.png")
    return root


ASK = {"type": "text", "text": "what is it?"}
ADDRESS = {"url": f"data:image/png;base64,{B64}"}
SOURCE = {"type": "base64", "media_type": "image/png", "data": B64}

# (format, task, record, what it gives)
RECORDS = {
    # LLaVA-Instruct-150K, mix665k
    "llava before": ("llava", "und", llava(FIRST, "a cat", id="1", image="10.png"), seen(QA, 10)),
    "llava after": (
        "llava",
        "und",
        llava("what is it?\n<image>", "a cat", id=1, image="10.png"),
        seen(QA, 10),
    ),
    "llava no image": ("llava", "und", llava("hi", "hello", id=2), text(("hi", "hello"))),
    "llava turns": (
        "llava",
        "und",
        llava(FIRST, "a cat", "and now?", "a dog", image="10.png"),
        seen([*QA, ("and now?", "a dog")], 10),
    ),
    # ShareGPT4V, Cambrian: several roots
    "other root": ("llava", "und", llava(FIRST, "a cat", image="21.jpg"), seen(QA, 21)),
    # LLaVA-OneVision
    "no marker": ("llava", "und", llava("what is it?", "a cat", image="10.png"), seen(QA, 10)),
    "several": (
        "llava",
        "und",
        llava("<image><image> which?", "both", image=["10.png", "20.png"]),
        seen([(f"{IMAGE}\n{IMAGE}\nwhich?", "both")], 10, 20),
    ),
    "video": ("llava", "und", llava("<image> what?", "a cat", video="a.mp4"), reasons.VIDEO),
    # LLaMA-Factory
    "factory": ("messages", "und", chat(FIRST, "a cat", images=["10.png"]), seen(QA, 10)),
    "factory str": ("messages", "und", chat(FIRST, "a cat", images="10.png"), seen(QA, 10)),
    "factory sharegpt": (
        "messages",
        "und",
        llava(FIRST, "a cat", images=["10.png"], system="be brief"),
        seen(QA, 10, system="be brief"),
    ),
    "alpaca": (
        "messages",
        "text",
        {"instruction": "add", "input": "1 2", "output": "3", "history": [["hi", "hello"]]},
        text(("hi", "hello"), ("add\n1 2", "3")),
    ),
    # ms-swift
    "system": (
        "messages",
        "text",
        {"messages": [{"role": "system", "content": "be brief"}, *openai("hi", "hello")]},
        text(("hi", "hello"), system="be brief"),
    ),
    "bot": (
        "messages",
        "text",
        {"conversations": said("hi", "hello", roles=("user", "bot"))},
        text(("hi", "hello")),
    ),
    "pairs": (
        "messages",
        "text",
        {"conversation": [{"human": "hi", "assistant": "hello"}]},
        text(("hi", "hello")),
    ),
    "query": (
        "messages",
        "und",
        {"query": "<image>what is it?", "response": "a cat", "images": ["10.png"]},
        seen(QA, 10),
    ),
    "image_url": (
        "messages",
        "und",
        {
            "messages": openai(
                [{"type": "image_url", "image_url": ADDRESS}, ASK],
                "a cat",
            )
        },
        seen(QA, 70),
    ),
    "responses": (
        "messages",
        "und",
        {
            "messages": openai(
                [
                    {"type": "input_text", "text": "what is it?"},
                    {"type": "input_image", "image_url": "10.png"},
                ],
                [{"type": "output_text", "text": "a cat"}],
            )
        },
        seen([(f"what is it?\n{IMAGE}", "a cat")], 10),
    ),
    "anthropic": (
        "messages",
        "und",
        {
            "messages": openai(
                [{"type": "image", "source": SOURCE}, ASK],
                "a cat",
            )
        },
        seen(QA, 70),
    ),
    "block of the list": (
        "messages",
        "und",
        {"messages": openai([{"type": "image"}, ASK], "a cat"), "images": ["10.png"]},
        seen(QA, 10),
    ),
    "loss at the end": (
        "messages",
        "text",
        {
            "messages": [
                *openai("hi", "hello", "and?"),
                {"role": "assistant", "content": "bye", "loss": False},
            ]
        },
        text(("hi", "hello")),
    ),
    "loss before": (
        "messages",
        "text",
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "ho", "loss": False},
                *openai("a", "b"),
            ]
        },
        reasons.NOT_LEARNT,
    ),
    "text to image": (
        "messages",
        "gen",
        chat("a red cat", "<image>", images=["10.png"]),
        drawn("a red cat", 10),
    ),
    "edit": (
        "messages",
        "gen",
        chat("<image> redder", "<image>", images=["10.png", "20.png"]),
        reasons.PICTURE_IN_PROMPT,
    ),
    "drawn by an und source": (
        "messages",
        "und",
        chat("a red cat", "<image>", images=["10.png"]),
        reasons.PICTURE_IN_ANSWER,
    ),
    # The Cauldron, Docmatix, FineVision; as JSON here, as Parquet where pyarrow is
    "cauldron": (
        "cauldron",
        "und",
        {
            "images": [{"bytes": None, "path": "10.png"}, {"bytes": None, "path": "20.png"}],
            "texts": [
                {"user": "which?", "assistant": "both", "source": "s"},
                {"user": "sure?", "assistant": "yes", "source": "s"},
            ],
        },
        seen([(f"{IMAGE}\n{IMAGE}\nwhich?", "both"), ("sure?", "yes")], 10, 20),
    ),
    "cauldron text": (
        "cauldron",
        "und",
        {"images": [], "texts": [{"user": "hi", "assistant": "hello", "source": "s"}]},
        text(("hi", "hello")),
    ),
    "finevision": (
        "finevision",
        "und",
        {
            "images": ["10.png"],
            "relevance_ratings": [2, 5],
            "formatting_ratings": [5, None],
            "texts": [
                {"user": "bad?", "assistant": "bad"},
                {"user": "what is it?", "assistant": "a cat"},
            ],
        },
        seen(QA, 10),
    ),
    "finevision low": (
        "finevision",
        "und",
        {
            "images": ["10.png"],
            "relevance_ratings": [2],
            "texts": [{"user": "bad?", "assistant": "bad"}],
        },
        reasons.LOW_RATING,
    ),
    # PixMo-cap
    "pixmo": (
        "jsonl",
        "und",
        {"image_url": "https://x.org/a.png", "caption": "a cat"},
        reasons.WEB_ADDRESS,
    ),
    # ShareGPT-4o-Image
    "4o": (
        "generation_json",
        "gen",
        {"input_prompt": "a red cat", "output_image": "10.png", "input_image": []},
        drawn("a red cat", 10),
    ),
    "4o edit": (
        "generation_json",
        "gen",
        {"input_prompt": "redder", "output_image": "10.png", "input_image": ["20.png"]},
        reasons.PICTURE_IN_PROMPT,
    ),
    # Janus-Pro-R1
    "r1": (
        "janus_pro_r1",
        "gen",
        {"prompt": "a red cat", "data": [{"img_path": "10.png", "score": 1}]},
        drawn("a red cat", 10),
    ),
    # JourneyDB
    "journeydb": (
        "journeydb",
        "gen",
        {"img_path": "./more/11.jpg", "prompt": "cat --v 5", "Task2": {"Caption": "a red cat"}},
        drawn("a red cat", 11),
    ),
    "journeydb without a caption": (
        "journeydb",
        "gen",
        {"img_path": "./more/11.jpg", "prompt": "cat --v 5"},
        drawn("cat --v 5", 11),
    ),
    # text to image in tables
    "str": ("jsonl", "gen", {"image": "10.png", "prompt": "a red cat"}, drawn("a red cat", 10)),
    "struct": (
        "jsonl",
        "gen",
        {"image": {"bytes": None, "path": "10.png"}, "text": "a red cat"},
        drawn("a red cat", 10),
    ),
    "caption to learn": (
        "jsonl",
        "und",
        {"image": "10.png", "caption": "a red cat"},
        seen([("Describe the image in detail.", "a red cat")], 10),
    ),
    "text": ("jsonl", "text", {"text": "a fact"}, ("text", "a fact", [], None)),
    # to be rejected
    "more": (
        "llava",
        "und",
        llava("<image><image> what?", "a cat", image="10.png"),
        reasons.MORE_MARKERS,
    ),
    "fewer": (
        "messages",
        "und",
        chat("<image> what?", "a cat", images=["10.png", "20.png"]),
        reasons.FEWER_MARKERS,
    ),
    "two, no marker": (
        "messages",
        "und",
        chat("what?", "a cat", images=["10.png", "20.png"]),
        reasons.FEWER_MARKERS,
    ),
    "marker, no picture": ("llava", "und", llava("<image> what?", "a cat"), reasons.MORE_MARKERS),
    "empty answer": ("llava", "und", llava(FIRST, " \n", image="10.png"), reasons.EMPTY_ANSWER),
    "empty question": ("messages", "text", chat("", "a cat"), reasons.EMPTY_QUESTION),
    "order": ("messages", "text", chat("hi", "ho", "and?"), reasons.TURN_ORDER),
    "answer first": (
        "messages",
        "text",
        {"messages": openai("hi", "ho", "and?")[1:]},
        reasons.TURN_ORDER,
    ),
    "no turn": ("messages", "text", {"messages": []}, reasons.TURN_ORDER),
    "role": (
        "messages",
        "text",
        {"messages": [{"role": "tool", "content": "x"}, *openai("a", "b")]},
        reasons.UNKNOWN_ROLE,
    ),
    "no role": ("messages", "text", {"messages": [{"content": "x"}]}, reasons.UNKNOWN_ROLE),
    "dots": ("llava", "und", llava(FIRST, "a cat", image="../outside.png"), reasons.PATH_ESCAPE),
    "link": ("llava", "und", llava(FIRST, "a cat", image="link.png"), reasons.PATH_ESCAPE),
    "absolute": ("llava", "und", llava(FIRST, "a cat", image="/etc/hostname"), reasons.PATH_ESCAPE),
    "missing": ("llava", "und", llava(FIRST, "a cat", image="no.png"), reasons.PICTURE_MISSING),
    "zero byte": ("llava", "und", llava(FIRST, "a cat", image="a\0.png"), reasons.PICTURE_MISSING),
    "no address": (
        "llava",
        "und",
        llava(FIRST, "a cat", image="http://x/a.png"),
        reasons.WEB_ADDRESS,
    ),
    "wrong base64": (
        "messages",
        "und",
        chat(FIRST, "a", images=["data:image/png;base64,???"]),
        reasons.PICTURE_UNREADABLE,
    ),
    "half a character": ("messages", "text", chat("hi", "\ud83d"), reasons.NOT_UTF8),
    "picture in text": (
        "messages",
        "text",
        chat(FIRST, "a", images=["10.png"]),
        reasons.PICTURE_IN_TEXT,
    ),
    "number for a text": ("jsonl", "gen", {"image": "10.png", "prompt": 7}, reasons.FORM),
    "list for a dict": ("messages", "text", {"messages": [["user", "hi"]]}, reasons.FORM),
    "number for a list": ("messages", "text", {"messages": 3}, reasons.FORM),
    "empty caption": ("jsonl", "gen", {"image": "10.png", "caption": "  "}, reasons.EMPTY_TEXT),
    "no caption": ("jsonl", "gen", {"image": "10.png", "id": 1}, reasons.NO_CAPTION),
    "no picture": ("jsonl", "gen", {"caption": "a red cat", "id": 1}, reasons.NO_PICTURE),
}


@pytest.mark.parametrize(("kind", "task", "record", "wanted"), RECORDS.values(), ids=RECORDS)
def test_a_record_is_what_it_means(place, tmp_path, kind, task, record, wanted):
    path = write(tmp_path / "data.jsonl", [record])
    options = {"min_rating": 4} if kind == "finevision" else {}
    roots = [str(place), str(place / "more")]
    assert summary(FileSource(task, kind, path, image_root=roots, **options)[0]) == wanted
