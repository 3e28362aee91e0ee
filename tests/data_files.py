"""Small files of every format, as their own tools write them, for tests of what reads them."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from janus_jax.data import Generation, Rejected, Text, Understanding

IMAGE = "<image_placeholder>"
FIRST = "<image>\nwhat is it?"
QA = [(f"{IMAGE}\nwhat is it?", "a cat")]


def picture(shade=0, kind="PNG"):
    """An encoded picture of 4 x 4 pixels."""
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), shade, np.uint8)).save(file, kind)
    return file.getvalue()


def write(path, content):
    """Makes a file of bytes, text, or JSON; of a list in a .jsonl one value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(value) + "\n" for value in content))
    else:
        path.write_text(json.dumps(content, indent=1))
    return str(path)


def write_tar(path, members):
    """Members are (name, bytes, text or JSON value), or TarInfo of what is no file."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            if not isinstance(content, bytes):
                content = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def shades(example):
    """The shade of each picture of an example, which opens them."""
    pictures = example.images if hasattr(example, "images") else [example.picture]
    return [int(picture()[0, 0, 0]) for picture in pictures]


def said(*texts, keys=("from", "value"), roles=("human", "gpt")):
    return [{keys[0]: roles[i % 2], keys[1]: text} for i, text in enumerate(texts)]


def openai(*texts):
    return said(*texts, keys=("role", "content"), roles=("user", "assistant"))


def llava(*texts, **fields):
    return {**fields, "conversations": said(*texts)}


def chat(*contents, **fields):
    return {**fields, "messages": openai(*contents)}


def seen(turns, *shade, system=None):
    return ("und", list(turns), list(shade), system)


def text(*turns, system=None):
    return ("text", list(turns), [], system)


def drawn(prompt, shade):
    return ("gen", prompt, [shade], None)


def summary(example):
    if isinstance(example, Rejected):
        return example.reason
    if isinstance(example, Generation):
        return ("gen", example.prompt, shades(example), None)
    if isinstance(example, Understanding):
        return ("und", list(example.turns), shades(example), example.system)
    assert isinstance(example, Text)
    return ("text", list(example.turns) or example.text, [], example.system)
