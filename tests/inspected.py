"""Files of a stranger, and a config that reads them, for tests of looking at data."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
from smoke import tiny

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)"> \x07\x1b[31m \u202eevil'
ARABIC = "\u0645\u0631\u062d\u0628\u0627"
STAGE = "stage2"
MANIFEST = """
sources:
  - {name: drawn, task: generation, format: jsonl, path: drawn.jsonl, image_root: pictures, weight: 3}
  - {name: shards, task: generation, format: webdataset, path: shards.tar}
  - {name: talk, task: understanding, format: llava, path: talk.json, image_root: pictures}
  - {name: facts, task: text, format: text, path: facts.txt, record: line}
  - {name: elsewhere, task: text, format: text, path: facts.txt, stages: [stage0_lm]}
"""


def png(width, height):
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(file, "PNG")
    return file.getvalue()


def strange_data(root):
    """Writes the files and their manifest; of `drawn`, 5 of 9 records can be used."""
    pictures = root / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "1.png").write_bytes(png(100, 40))
    (pictures / "2.png").write_bytes(png(70, 70))
    (pictures / "broken.png").write_bytes(b"no picture")
    drawn = [
        ("1.png", HOSTILE),
        ("2.png", "a red cat"),
        ("2.png", "a red cat"),
        ("broken.png", "a cat"),
        ("gone.png", "a cat"),
        ("1.png", "  "),
        ("../drawn.jsonl", "a cat"),
        ("1.png", f"{ARABIC} \U0001f600"),
        ("1.png", "a red cat"),
    ]
    lines = [json.dumps({"image": name, "caption": text}) for name, text in drawn]
    (root / "drawn.jsonl").write_text("\n".join(lines) + "\n")
    with tarfile.open(root / "shards.tar", "w") as tar:
        for i in range(6):
            for suffix, data in (("png", png(8 + i, 64)), ("txt", f"a dog {i}".encode())):
                info = tarfile.TarInfo(f"{i:03}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    turn = lambda who, text: {"from": who, "value": text}
    talk = [
        {
            "image": "1.png",
            "conversations": [
                turn("human", "<image>\nwhat is it?"),
                turn("gpt", "a cat"),
                turn("human", "is it red?"),
                turn("gpt", "yes it is"),
            ],
        }
    ] * 3
    (root / "talk.json").write_text(json.dumps(talk))
    (root / "facts.txt").write_text("a cat\n" + "a dog " * 100 + "\na cat\n")
    (root / "m.yaml").write_text(MANIFEST)


def reads(root, **fields):
    """The smoke config with the manifest in a directory."""
    return tiny(data__manifest=str(root / "m.yaml"), data__too_long="truncate_answer", **fields)
