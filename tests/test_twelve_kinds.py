"""A mixture with every kind of bad and of odd record: what is bad is listed once, and nothing else is lost.

Three sources, 1300 records, of which 13 (1 %) are corrupt: nine kinds that cannot be used, and four kinds of
pictures that look odd but must be read (CMYK, 16 bits, alpha, animated). Every record says its own number in
words, so that batches tell which records are in them.
"""

import io
import json
import struct
import zlib

import grain
import numpy as np
import pytest
from data_files import link, picture, write, write_tar
from PIL import Image
from smoke import tiny

from janus_jax.data import TASKS, Ledger, Rejection, Tally, TooManyRejected, reasons
from janus_jax.data.formats import FileSource
from janus_jax.data.rejects import NO_ROOM
from janus_jax.run import batches, build
from janus_jax.run.stage_checks import check_stages
from janus_jax.run.stage_data import stage_sources

SIZES = {"talk": 900, "drawn": 200, "facts": 200}
MARKS = {"talk": "dog", "drawn": "cat", "facts": "owl"}
DIGITS = ("zero", "one", "two", "three", "four")
UNREADABLE = "picture cannot be read"

# Source -> index -> (name of the kind, reason).
BAD = {
    "talk": {
        11: ("truncated", UNREADABLE),
        160: ("wrong JSON", reasons.WRONG_JSON),
        288: ("missing", reasons.PICTURE_MISSING),
        401: ("huge", UNREADABLE),
        523: ("escape", reasons.PATH_ESCAPE),
        655: ("role", reasons.UNKNOWN_ROLE),
        871: ("too long", NO_ROOM),
    },
    "drawn": {77: ("link", reasons.ARCHIVE_ESCAPE)},
    "facts": {199: ("empty", reasons.EMPTY_TEXT)},
}
ODD = {50: "cmyk.jpg", 51: "16bit.png", 52: "alpha.png", 899: "animated.gif"}
GOOD = {
    (name, index) for name, size in SIZES.items() for index in range(size) if index not in BAD[name]
}
MANIFEST = """
sources:
  - {name: talk, task: understanding, format: messages, path: talk.jsonl, image_root: pictures}
  - {name: drawn, task: generation, format: webdataset, path: drawn.tar}
  - {name: facts, task: text, format: jsonl, path: facts.jsonl}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def words(name, index):
    """Such as "dog zero three one four one": the source and the number of a record."""
    digits = (DIGITS[index // 5**i % 5] for i in range(5))
    return " ".join([MARKS[name], *digits])


def huge_png():
    """A picture of some bytes that says it has 60000 x 60000 pixels."""
    size = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", size), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def odd_pictures():
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    depth = Image.fromarray(np.full((8, 8), 0xABCD, np.uint16))
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((0, 255, 0), (255, 0, 0))]
    return {
        "cmyk.jpg": saved(red.convert("CMYK"), "JPEG", quality=95),
        "16bit.png": saved(depth, "PNG"),
        "alpha.png": saved(Image.new("RGBA", (8, 8), (0, 0, 255, 128)), "PNG"),
        "animated.gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }


def talk(place):
    """Conversations in JSONL, pictures in files."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    cut_off = saved(Image.fromarray(noise), "JPEG")[:-2000]
    files = {"good.png": picture(9), "cut.jpg": cut_off, "huge.png": huge_png(), **odd_pictures()}
    for name, data in files.items():
        write(place / "pictures" / name, data)
    write(place / "secret.png", picture(7))
    names = {11: "cut.jpg", 288: "nothing.png", 401: "huge.png", 523: "../secret.png", **ODD}
    lines = []
    for i in range(SIZES["talk"]):
        answer = words("talk", i) + " a cat" * (200 if i == 871 else 0)
        said = [
            {"role": "user", "content": "<image>what is it?"},
            {"role": "narrator" if i == 655 else "assistant", "content": answer},
        ]
        line = json.dumps({"messages": said, "images": [names.get(i, "good.png")]})
        lines.append(line[:-5] if i == 160 else line)
    write(place / "talk.jsonl", "\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    place = tmp_path_factory.mktemp("mixture")
    talk(place)
    members = []
    for i in range(SIZES["drawn"]):
        name = f"{i:05}.png"
        members.append(link(name, "/etc/hostname") if i == 77 else (name, picture(i)))
        members.append((f"{i:05}.txt", words("drawn", i)))
    write_tar(place / "drawn.tar", members)
    facts = [{"text": "" if i == 199 else words("facts", i)} for i in range(SIZES["facts"])]
    write(place / "facts.jsonl", facts)
    return write(place / "m.yaml", MANIFEST)


@pytest.fixture(scope="module")
def experiment(manifest):
    """Stage 2 on the mixture, whose ratio is that of the sizes: one epoch of all ends at one time."""
    config = tiny(data__manifest=manifest, data__too_long="reject", data__threads=2)
    config.stage_order = ("stage2",)
    config.stages.stage2.update(ratio=(9.0, 2.0, 2.0), condition_dropout=0.0)
    experiment = build(config)
    check_stages(experiment, experiment.stages)
    return experiment


class Reader:
    """Which records are in a batch, by the words that each of them says."""

    def __init__(self, tokenizer):
        one = lambda word: tokenizer.encode_text(word)[0]
        self._digits = {one(word): i for i, word in enumerate(DIGITS)}
        self._marks = {one(word): name for name, word in MARKS.items()}

    def __call__(self, batch):
        found = []
        for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
            for number in range(1, segments.max() + 1):
                ids = [int(t) for t in tokens[segments == number]]
                at = next(i for i, t in enumerate(ids) if t in self._marks)
                digits = [self._digits[t] for t in ids[at + 1 : at + 6]]
                found.append((self._marks[ids[at]], sum(d * 5**i for i, d in enumerate(digits))))
        return found


def taken(iterator, count):
    return [next(iterator) for _ in range(count)]


def listed(run_dir):
    lines = (run_dir / "rejected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


BATCHES = 66  # more than an epoch of everything


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """(batches that nobody interrupted, the position after them, what was listed)."""
    run_dir = tmp_path_factory.mktemp("whole")
    iterator = batches(experiment, experiment.stages[0], run_dir)
    found = taken(iterator, BATCHES)
    state = iterator.get_state()
    iterator.close()
    return found, state, listed(run_dir)


def test_every_bad_record_is_listed_once_with_its_reason_and_place(whole, manifest):
    _, _, lines = whole
    found = {(line["source"], line["index"]): line["reason"] for line in lines}
    wanted = {
        (name, index): reason for name, bad in BAD.items() for index, (_, reason) in bad.items()
    }
    assert found == wanted and len(lines) == len(wanted)
    places = {(line["source"], line["index"]): line["record"] for line in lines}
    folder = manifest.removesuffix("m.yaml")
    assert places["talk", 160] == f"{folder}talk.jsonl, record 161"
    assert places["drawn", 77] == f"{folder}drawn.tar, sample 00077"
    details = {line["index"]: line["detail"] for line in lines if line["source"] == "talk"}
    assert "60000x60000 pixels are too many" in details[401]
    assert "../secret.png" in details[523] and "narrator" in details[655]


def test_nothing_else_is_lost(whole, experiment):
    read = Reader(experiment.processor.tokenizer)
    seen = [record for batch in whole[0] for record in read(batch)]
    assert set(seen) == GOOD


def tallies(state):
    """Of each source, by the order of the mixture: what was used and rejected at a position."""
    if "sources" in state:
        return state["sources"]
    inner = [value for value in state.values() if isinstance(value, dict)]
    return next((found for value in inner if (found := tallies(value))), None)


def test_what_was_seen_is_what_was_used_and_what_was_rejected(whole, experiment):
    """At a position in the second epoch; what is bad of it is counted over the order that Grain shuffles."""
    stage, seed = experiment.stages[0], experiment.config.seed * 100
    sources = {source.task: source for source in stage_sources(stage, seed)}
    for number, (task, tally) in enumerate(zip(TASKS, tallies(whole[1]["position"]), strict=True)):
        source = sources[task]
        order = grain.MapDataset.range(len(source.examples)).seed(seed + number).shuffle().repeat()
        rejected = sum(tally["rejected"].values())
        seen = tally["used"] + rejected
        assert seen > SIZES[source.label]
        assert rejected == sum(order[i] in BAD[source.label] for i in range(seen))


def test_all_goes_on_after_a_stop_in_the_middle(whole, experiment, tmp_path, stop=37):
    wanted, state, lines = whole
    first = batches(experiment, experiment.stages[0], tmp_path)
    found = taken(first, stop)
    saved_state = json.loads(json.dumps(first.get_state()))
    first.close()
    again = batches(experiment, experiment.stages[0], tmp_path)
    again.set_state(saved_state)
    found += taken(again, BATCHES - stop)
    assert again.get_state() == state
    again.close()
    for batch, other in zip(found, wanted, strict=True):
        assert all(np.array_equal(batch[name], other[name]) for name in other)
    by_place = lambda line: (line["source"], line["index"])
    assert sorted(listed(tmp_path), key=by_place) == sorted(lines, key=by_place)


def test_odd_pictures_are_read_as_they_look(manifest):
    folder = manifest.removesuffix("m.yaml")
    source = FileSource("und", "messages", f"{folder}talk.jsonl", f"{folder}pictures")
    wanted = {50: (255, 0, 0), 51: (0xAB,) * 3, 52: (127, 127, 255), 899: (0, 255, 0)}
    for index, colour in wanted.items():
        (found,) = source[index].images
        pixels = found()
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
        assert np.abs(pixels.astype(int) - colour).max() <= 2, ODD[index]  # JPEG loses some


def reported(order, length, limit=0.01, streams=1, reason="empty text"):
    """Gives a ledger a stream of a source, in which True is a bad record; returns how many it took."""
    ledger, tally = Ledger(limit, streams), Tally()
    ledger.put("a", 0, tally)
    for number, bad in enumerate(order):
        if not bad:
            tally.used += 1
            continue
        tally.rejected[reason] += 1
        try:
            ledger.reject(Rejection("a", 0, "", reason, ""), length, 1)
        except TooManyRejected:
            return number
    return len(order)


def test_a_record_that_comes_again_is_not_more_of_the_data():
    """One bad record of a hundred is 1 % in the second epoch as well, wherever it comes there."""
    epochs = [[i == at for i in range(100)] for at in (99, 0, 50, 3)]
    order = [bad for epoch in epochs for bad in epoch]
    assert reported(order, 100) == len(order)
    two = [i in (98, 99) for i in range(100)]  # 2 %
    assert reported(two, 100) == 99
    # Of two streams, each of which reads 50 in an epoch, one may get the bad record every time.
    half = [i == 7 for i in range(50)] * 3
    assert reported(half, 100, streams=2) == len(half)
    assert reported([i in (7, 8, 50) for i in range(100)], 100, streams=2) == 50


def test_what_a_manifest_asks_to_leave_out_is_no_fault_of_the_data():
    half = [i % 2 == 1 for i in range(200)]
    assert reported(half, 200, reason=reasons.LOW_RATING) == len(half)
    assert reported(half, 200, reason=NO_ROOM) == len(half)
    assert reported(half, 200) < len(half)
