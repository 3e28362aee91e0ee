"""The same emoji scenes in the formats of many ecosystems, each written by its own library.

A writer takes (directory, records) and returns the arguments of a `FileSource` that reads what it wrote. Every
record is {"image": PNG bytes, "prompt", "question", "answer"}; `draw` says which of the words are written.
"""

import io

import numpy as np
from data_files import write
from PIL import Image

from janus_jax.data import Generation, Understanding
from janus_jax.data.layouts import record_of
from janus_jax.emoji import QUESTION_KINDS, SCENES_OF_QUESTION, World, caption, question
from janus_jax.emoji.scene import random_scene, render


def png(picture):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def scenes(count, seed=0):
    """Records of `count` scenes as the tiny model knows them: each a picture, a caption, a question."""
    world, found = World(), []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        kind = QUESTION_KINDS[index % len(QUESTION_KINDS)]
        of_kind = SCENES_OF_QUESTION[kind]
        scene = random_scene(rng, world, of_kind[int(rng.integers(len(of_kind)))])
        asked = question(scene, kind, rng, world)
        words = {"prompt": caption(scene, rng), "question": asked.text, "answer": asked.answer}
        found.append({"image": png(render(scene, world)), **words})
    return found


def fields(record, draw):
    """The words of a record: what is drawn, or a question with its answer."""
    names = ("prompt",) if draw else ("question", "answer")
    return {name: record[name] for name in names}


def picture_files(place, records):
    """Writes each picture to a file; returns their names."""
    names = [f"{i:03}.png" for i in range(len(records))]
    for name, record in zip(names, records, strict=True):
        write(place / "pictures" / name, record["image"])
    return names


def _dataset(records, draw):
    import datasets

    rows = [{"image": {"bytes": r["image"], "path": None}, **fields(r, draw)} for r in records]
    words = {name: datasets.Value("string") for name in fields(records[0], draw)}
    features = datasets.Features({"image": datasets.Image(), **words})
    return datasets.Dataset.from_list(rows, features=features)


def parquet_of_datasets(place, records, draw):
    _dataset(records, draw).to_parquet(str(place / "scenes.parquet"))
    return dict(format="parquet", path=str(place / "scenes.parquet"))


def arrow(place, records, draw):
    _dataset(records, draw).save_to_disk(str(place / "saved"), num_shards=3)
    return dict(format="arrow", path=str(place / "saved"))


def parquet_of_pandas(place, records, draw):
    import pandas

    rows = [{"image": r["image"], **fields(r, draw)} for r in records]
    pandas.DataFrame(rows).to_parquet(place / "scenes.parquet")
    return dict(format="parquet", path=str(place / "scenes.parquet"))


def csv_of_pandas(place, records, draw):
    import pandas

    names = picture_files(place, records)
    rows = [{"image": n, **fields(r, draw)} for n, r in zip(names, records, strict=True)]
    pandas.DataFrame(rows).to_csv(place / "scenes.csv", index=False)
    return dict(format="csv", path=str(place / "scenes.csv"), image_root=str(place / "pictures"))


def tfds(place, records, draw):
    import tensorflow_datasets

    words = fields(records[0], draw)

    # Not registered: a name may be only once, and this is made for each task.
    class Scenes(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")

        def _info(self):
            found = {"image": tensorflow_datasets.features.Image(shape=(None, None, 3))}
            found |= {name: tensorflow_datasets.features.Text() for name in words}
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                features=tensorflow_datasets.features.FeaturesDict(found),
                disable_shuffling=True,
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, record in enumerate(records):
                yield i, {"image": io.BytesIO(record["image"]), **fields(record, draw)}

    builder = Scenes(data_dir=str(place), file_format="array_record")
    builder.download_and_prepare()
    return dict(format="tfds", path=str(builder.data_path))


def _array_record(path, data):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for each in data:
        writer.write(each)
    writer.close()


def array_record(place, records, draw):
    import msgpack

    packed = [msgpack.packb({"image": r["image"], **fields(r, draw)}) for r in records]
    _array_record(place / "scenes.array_record", packed)
    return dict(format="array_record", path=str(place / "scenes.array_record"))


def prepared(place, records, draw):
    from janus_jax.data.containers.prepared import write_prepared_index

    def data(record):
        if draw:
            example = Generation(prompt=record["prompt"], picture=lambda: None)
        else:
            turn = (f"<image_placeholder>\n{record['question']}", record["answer"])
            example = Understanding(images=[None], turns=[turn])
        return record_of(example, [record["image"]])

    _array_record(place / "0.array_record", [data(record) for record in records])
    task = "gen" if draw else "und"
    write_prepared_index(str(place), task, {"0.array_record": len(records)})
    return dict(format="prepared", path=str(place))


def webdataset(place, records, draw):
    from webdataset import TarWriter

    with TarWriter(str(place / "scenes.tar")) as tar:
        for i, record in enumerate(records):
            words = {"txt": record["prompt"]} if draw else {"json": fields(record, draw)}
            tar.write({"__key__": f"{i:06}", "png": record["image"], **words})
    return dict(format="webdataset", path=str(place / "scenes.tar"))


def llava(place, records, draw):
    assert not draw
    names = picture_files(place, records)
    rows = [
        {
            "id": name,
            "image": name,
            "conversations": [
                {"from": "human", "value": f"<image>\n{record['question']}"},
                {"from": "gpt", "value": record["answer"]},
            ],
        }
        for name, record in zip(names, records, strict=True)
    ]
    path = write(place / "llava.json", rows)
    return dict(format="llava", path=path, image_root=str(place / "pictures"))


def messages(place, records, draw):
    names = picture_files(place, records)
    rows = []
    for name, record in zip(names, records, strict=True):
        asked = record["prompt"] if draw else f"<image>{record['question']}"
        answer = "<image>" if draw else record["answer"]
        said = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        rows.append({"messages": said, "images": [name]})
    path = write(place / "messages.jsonl", rows)
    return dict(format="messages", path=path, image_root=str(place / "pictures"))


def jsonl(place, records, draw):
    names = picture_files(place, records)
    rows = [{"image": n, **fields(r, draw)} for n, r in zip(names, records, strict=True)]
    path = write(place / "scenes.jsonl", rows)
    return dict(format="jsonl", path=path, image_root=str(place / "pictures"))


def generation_json(place, records, draw):
    assert draw
    names = picture_files(place, records)
    rows = [
        {"input_prompt": r["prompt"], "output_image": n}
        for n, r in zip(names, records, strict=True)
    ]
    path = write(place / "drawn.json", rows)
    return dict(format="sharegpt4o_image", path=path, image_root=str(place / "pictures"))


def imagefolder(place, records, draw):
    folder = place / "pictures"
    names = picture_files(place, records)
    for name, record in zip(names, records, strict=True):
        if draw:
            write((folder / name).with_suffix(".txt"), record["prompt"])
    if not draw:
        rows = [{"file_name": n, **fields(r, draw)} for n, r in zip(names, records, strict=True)]
        write(folder / "metadata.jsonl", rows)
    return dict(format="imagefolder", path=str(folder))


def question_list(place, records, draw):
    """FineVision's lists of questions, in Parquet, written by pyarrow."""
    assert not draw
    import pyarrow
    import pyarrow.parquet

    rows = {
        "images": [[{"bytes": r["image"], "path": None}] for r in records],
        "texts": [[{"user": r["question"], "assistant": r["answer"]}] for r in records],
    }
    pyarrow.parquet.write_table(pyarrow.table(rows), place / "train-00000-of-00001.parquet")
    return dict(format="finevision", path=str(place))


_BOTH = (
    parquet_of_datasets,
    arrow,
    parquet_of_pandas,
    csv_of_pandas,
    tfds,
    array_record,
    prepared,
    webdataset,
    messages,
    jsonl,
    imagefolder,
)
WRITERS = {
    "gen": {writer.__name__: writer for writer in (*_BOTH, generation_json)},
    "und": {writer.__name__: writer for writer in (*_BOTH, llava, question_list)},
}


def write_scenes(writer, place, records, task):
    """Writes the records for a task; returns the arguments of the source that reads them."""
    place.mkdir(parents=True, exist_ok=True)
    return writer(place, records, task == "gen")
