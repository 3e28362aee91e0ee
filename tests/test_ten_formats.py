"""One data set in a dozen formats, each written by its own library: the same examples, the same batches."""

import numpy as np
import pytest
from scene_files import WRITERS, scenes, write_scenes

from janus_jax.data import (
    Generation,
    PackedShape,
    SequenceEncoder,
    Understanding,
    WeightedSource,
    mixed_batches,
)
from janus_jax.data.formats import FileSource
from janus_jax.data.pictures import PictureBytes, PictureFile
from janus_jax.processing import Processor, ProcessorConfig

COUNT, SEED = 64, 5
ROW = PackedShape(tokens=160, targets=160, und_images=4, gen_images=3)
CASES = [(task, name) for task in WRITERS for name in WRITERS[task]]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def records():
    return scenes(COUNT)


@pytest.fixture(scope="module")
def encode():
    """The encoder of the tiny model: its words, its template, pictures of 48 pixels."""
    from janus_jax.emoji.tokenizer import word_tokenizer

    sizes = dict(und_image_size=48, gen_image_size=48, num_image_tokens=36, num_codes=36)
    return SequenceEncoder(Processor(ProcessorConfig(**sizes), word_tokenizer()), ROW)


class InMemory:
    """The records as a source of examples, without any file: what every format must give."""

    def __init__(self, records, task):
        self._records, self._task = records, task

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        record = self._records[index]
        picture = PictureBytes(record["image"])
        if self._task == "gen":
            return Generation(prompt=record["prompt"], picture=picture)
        turn = (f"<image_placeholder>\n{record['question']}", record["answer"])
        return Understanding(images=[picture], turns=[turn])


def values(example):
    """All that an example says, its pictures as pixels."""
    pictures = [example.picture] if hasattr(example, "picture") else example.images
    assert all(isinstance(picture, PictureBytes | PictureFile) for picture in pictures)  # encoded
    words = getattr(example, "prompt", None), [tuple(t) for t in getattr(example, "turns", ())]
    rest = getattr(example, "system", None), getattr(example, "codes", None), example.weight
    return type(example), *words, *rest, [picture().tobytes() for picture in pictures]


def some_batches(source, task, encode, count=20):
    """More than an epoch of batches of two rows, in the order of a run."""
    ratio = (1, 0, 0) if task == "und" else (0, 0, 1)
    mixed = iter(mixed_batches([WeightedSource(task, source)], ratio, encode, ROW, 2, SEED))
    return [next(mixed) for _ in range(count)]


@pytest.fixture(scope="module")
def wanted(records, encode):
    """task -> (what the examples say, the batches)."""
    sources = {task: InMemory(records, task) for task in WRITERS}
    return {
        task: ([values(source[i]) for i in range(COUNT)], some_batches(source, task, encode))
        for task, source in sources.items()
    }


def test_the_comparison_says_something(wanted):
    """Ten formats at least for each task, and batches that hold every one of the different scenes."""
    assert all(len(writers) >= 10 for writers in WRITERS.values())
    for task, (examples, batches) in wanted.items():
        assert len({each[-1][0] for each in examples}) == COUNT
        pictures = [p for batch in batches for row in batch[f"{task}_images"] for p in row]
        assert len({p.tobytes() for p in pictures if p.any()}) == COUNT


@pytest.mark.parametrize(("task", "name"), CASES, ids=[f"{n}-{t}" for t, n in CASES])
def test_examples_and_batches_are_the_same(task, name, records, wanted, encode, tmp_path):
    arguments = write_scenes(WRITERS[task][name], tmp_path / name, records, task)
    source = FileSource(task, seed=3, **arguments)
    examples, batches = wanted[task]
    assert [values(source[i]) for i in range(len(source))] == examples
    for found, batch in zip(some_batches(source, task, encode), batches, strict=True):
        assert found.keys() == batch.keys()
        for key, array in batch.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array, err_msg=key)
