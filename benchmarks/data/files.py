"""Pictures of our own make, and the same records of them in every format that holds pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (640, 480)
PROMPT = "a photo of a red cat and a blue dog on a white background"
QUESTION = "what is in the picture?"
CODES = 576


def photo(seed: int) -> bytes:
    """A JPEG that is as hard to decode as a photo: coarse colours, finer ones over them, noise; some 100 KB."""
    rng = np.random.default_rng(seed)
    mixed = np.zeros((SIZE[1], SIZE[0], 3), np.float32)
    for cells, strength in ((4, 110), (16, 50), (64, 25), (200, 12)):
        coarse = rng.random((cells * 3 // 4, cells, 3), np.float32)
        layer = Image.fromarray((coarse * 255).astype(np.uint8)).resize(SIZE, Image.BICUBIC)
        mixed += (np.asarray(layer, np.float32) / 255 - 0.5) * strength
    mixed += rng.normal(0, 4, mixed.shape)
    file = io.BytesIO()
    Image.fromarray((mixed + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_files(folder: Path, photos: Sequence[bytes]) -> list[str]:
    """Each picture in a file; returns the names."""
    folder.mkdir(parents=True)
    names = [f"{i:06}.jpg" for i in range(len(photos))]
    for name, data in zip(names, photos, strict=True):
        (folder / name).write_bytes(data)
    return names


def _lines(path: Path, records: Any) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def jsonl(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    names = write_files(place / "pictures", photos)
    path = _lines(place / "r.jsonl", ({"image": name, "prompt": PROMPT} for name in names))
    return dict(format="jsonl", path=path, image_root=str(place / "pictures"))


def llava(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    names = write_files(place / "pictures", photos)
    said = [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": PROMPT},
    ]
    path = place / "r.json"
    path.write_text(json.dumps([{"image": name, "conversations": said} for name in names]))
    return dict(task="und", format="llava", path=str(path), image_root=str(place / "pictures"))


def csv(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    names = write_files(place / "pictures", photos)
    rows = "".join(f'{name},"{PROMPT}"\n' for name in names)
    (place / "r.csv").write_text("image,prompt\n" + rows)
    return dict(format="csv", path=str(place / "r.csv"), image_root=str(place / "pictures"))


def imagefolder(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    for name in write_files(place / "pictures", photos):
        (place / "pictures" / name).with_suffix(".txt").write_text(PROMPT)
    return dict(format="imagefolder", path=str(place / "pictures"))


def write_tar(path: Path, members: Any) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def webdataset(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    members = (
        (f"{i:06}.{suffix}", content)
        for i, data in enumerate(photos)
        for suffix, content in (("jpg", data), ("txt", PROMPT.encode()))
    )
    write_tar(place / "r.tar", members)
    return dict(format="webdataset", path=str(place / "r.tar"))


def _table(photos: Sequence[bytes]) -> Any:
    import pyarrow

    pictures = [{"bytes": data, "path": None} for data in photos]
    return pyarrow.table({"image": pictures, "caption": [PROMPT] * len(photos)})


def parquet(place: Path, photos: Sequence[bytes], rows: int = 100) -> dict[str, Any]:
    import pyarrow.parquet

    pyarrow.parquet.write_table(_table(photos), place / "r.parquet", row_group_size=rows)
    return dict(format="parquet", path=str(place / "r.parquet"))


def parquet_small(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    return parquet(place, photos, rows=10)


def arrow(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    import pyarrow

    table = _table(photos)
    with pyarrow.ipc.new_stream(str(place / "r.arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    return dict(format="arrow", path=str(place / "r.arrow"))


def _array_record(path: Path, data: Any) -> str:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for each in data:
        writer.write(each)
    writer.close()
    return str(path)


def array_record(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    import msgpack

    records = (msgpack.packb({"image": data, "prompt": PROMPT}) for data in photos)
    return dict(format="array_record", path=_array_record(place / "r.array_record", records))


def _prepared(place: Path, records: Sequence[bytes]) -> dict[str, Any]:
    from janus_jax.data.containers.prepared import write_prepared_index

    _array_record(place / "0.array_record", records)
    write_prepared_index(str(place), "gen", {"0.array_record": len(records)})
    return dict(format="prepared", path=str(place))


def prepared(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    from janus_jax.data import Generation
    from janus_jax.data.layouts import record_of

    example = Generation(prompt=PROMPT, picture=lambda: None)
    return _prepared(place, [record_of(example, [data]) for data in photos])


def tfds(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    import tensorflow_datasets

    tensorflow_datasets.disable_progress_bar()
    features = tensorflow_datasets.features

    class Photos(tensorflow_datasets.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tensorflow_datasets.core.Version("1.0.0")
        code_path = Path(__file__)  # else TFDS looks for it in a way that needs another package

        def _info(self):
            found = {"image": features.Image(shape=(None, None, 3)), "caption": features.Text()}
            return tensorflow_datasets.core.DatasetInfo(
                builder=self, features=features.FeaturesDict(found), disable_shuffling=True
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, data in enumerate(photos):
                yield i, {"image": io.BytesIO(data), "caption": PROMPT}

    builder = Photos(data_dir=str(place), file_format="array_record")
    builder.download_and_prepare()
    return dict(format="tfds", path=str(builder.data_path))


def _codes(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16384, (count, CODES))


def codes_jsonl(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    records = ({"prompt": PROMPT, "codes": codes.tolist()} for codes in _codes(len(photos)))
    return dict(format="codes", path=_lines(place / "r.jsonl", records))


def codes_prepared(place: Path, photos: Sequence[bytes]) -> dict[str, Any]:
    from janus_jax.data import Generation
    from janus_jax.data.layouts import record_of

    examples = [Generation(prompt=PROMPT, codes=codes) for codes in _codes(len(photos))]
    return _prepared(place, [record_of(example) for example in examples])


# What a row of the table is called -> what writes (directory, pictures) and gives a source's arguments.
WRITERS: dict[str, Callable[[Path, Sequence[bytes]], dict[str, Any]]] = {
    "jsonl, files": jsonl,
    "llava, files": llava,
    "csv, files": csv,
    "imagefolder": imagefolder,
    "webdataset": webdataset,
    "parquet, 10 rows a group": parquet_small,
    "parquet, 100 rows a group": parquet,
    "arrow": arrow,
    "array_record": array_record,
    "tfds": tfds,
    "prepared": prepared,
    "codes in jsonl": codes_jsonl,
    "codes in prepared": codes_prepared,
}
