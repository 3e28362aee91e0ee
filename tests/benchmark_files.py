"""Twelve questions of each understanding benchmark, written in every format in which it is distributed."""

import base64
import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
from data_files import picture

from janus_jax.evaluation.understanding.benchmarks import SEED_KINDS

SHADES = [i * 20 for i in range(12)]
SUBSETS = ["random", "popular", "adversarial"]
SUBJECTS = [
    ("Art_Theory", "Art & Design"),
    ("Math", "Science"),
    ("Energy_and_Power", "Tech & Engineering"),
]
LETTERS = "ABCD"

POPE = [
    dict(
        number=str(i + 1),
        subset=SUBSETS[i // 4],
        question=f"Is there a thing {i} in the image?",
        answer=["yes", "no"][i % 2],
        name=f"COCO_val2014_{i:012}.jpg",
    )
    for i in range(12)
]
MME = [
    dict(
        pair=f"{category}/{pair:04}.png",
        category=category,
        question=f"Is this {category} {pair}, {answer}? Please answer yes or no.",
        answer=answer,
        shade=SHADES[2 * order],
    )
    for order, (category, pair) in enumerate(
        [
            ("OCR", 1),
            ("OCR", 2),
            ("existence", 1),
            ("existence", 2),
            ("code_reasoning", 1),
            ("code_reasoning", 2),
        ]
    )
    for answer in ("Yes", "No")
]
MMBENCH = [  # three questions with four rotations each
    dict(
        index=question + 10**6 * turn,
        question=f"Which one {question}?",
        hint=[None, "A story\nwith\ttabs.", None][question],
        answer=LETTERS[(question - turn) % 4],
        category=["object_localization", "ocr", "ocr"][question],
        group=["finegrained_perception (instance-level)", "logic_reasoning", "logic_reasoning"][
            question
        ],
        **{letter: f"thing {(at + turn) % 4} of {question}" for at, letter in enumerate(LETTERS)},
    )
    for turn in range(4)
    for question in range(3)
]
SEED = [
    dict(
        number=str(100 + i),
        question=f"What is it in {i}?",
        kind=i % 9 + 1,
        answer=LETTERS[i % 4],
        name=f"{i}_55",
        **{letter: f"{letter.lower()} thing {i}" for letter in LETTERS},
    )
    for i in range(12)
]
GQA = [
    dict(
        number=f"2024{i:04}",
        question=f"What colour is thing {i}?",
        answer=["red", "yes", "T-shirt"][i % 3],
        kind=["query", "verify", "choose"][i % 3],
        name=f"n{i // 2}",  # two questions a picture
        shade=SHADES[i // 2],
    )
    for i in range(12)
]
MMMU = [
    dict(
        number=f"{'dev' if i < 3 else 'validation'}_{SUBJECTS[i % 3][0]}_{i}",
        split="dev" if i < 3 else "validation",
        subject=SUBJECTS[i % 3],
        question=f"<image 1> How much is {i}?" + (" <image 2>" if i % 4 == 1 else ""),
        options=[f"${i},000", "It's <image 2>", 'He said "no"'] if i % 6 else [],
        answer="B" if i % 6 else ["3.5", "['24', 'twenty-four']"][i // 6],
        pictures=2 if i % 4 == 1 else 1,
    )
    for i in range(12)
]
MMVET = [
    dict(
        number=f"v1_{i}",
        question=f"What is x in {i}?",
        answer="-1<AND>-5" if i % 2 else "7",
        abilities=[["ocr", "math"], ["rec"], ["rec", "know", "gen"]][i % 3],
        name=f"v1_{i}.png",
    )
    for i in range(12)
]


def png(shade):
    return picture(shade)


def base64_png(shade):
    return base64.b64encode(picture(shade)).decode()


def write_tsv(path, rows):
    """A table as pandas writes it: what is None is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow(["" if row.get(name) is None else row[name] for name in columns])
    return str(path)


def write_parquet(path, rows, row_group_size=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    return str(path)


def tsv_rows(benchmark):
    """Rows as in VLMEvalKit's file of a benchmark."""
    if benchmark == "pope":
        return [
            dict(
                index=f"{r['subset']}/{r['number']}",
                image=base64_png(SHADES[i]),
                question=r["question"],
                answer=r["answer"].title(),
                category=r["subset"],
            )
            for i, r in enumerate(POPE)
        ]
    if benchmark == "mme":
        return [
            dict(
                index=f"{r['pair']}#{r['answer']}",
                category=r["category"],
                image_path=r["pair"],
                question=r["question"],
                answer=r["answer"],
                image=base64_png(r["shade"]),
            )
            for r in MME
        ]
    if benchmark == "mmbench":  # rotations have the picture of the first
        return [
            dict(
                index=r["index"],
                image=base64_png(SHADES[r["index"]]) if r["index"] < 10**6 else r["index"] % 10**6,
                question=r["question"],
                hint=r["hint"],
                **{k: r[k] for k in LETTERS},
                answer=r["answer"],
                category=r["category"],
                source="made",
                **{"l2-category": r["group"]},
                split="dev",
            )
            for r in MMBENCH
        ]
    if benchmark == "seed":
        return [
            dict(
                index=r["number"],
                image=base64_png(SHADES[i]),
                question=r["question"],
                **{k: r[k] for k in LETTERS},
                answer=r["answer"],
                category=SEED_KINDS[r["kind"] - 1],
            )
            for i, r in enumerate(SEED)
        ]
    if benchmark == "gqa":
        return [
            dict(
                index=r["number"],
                image=base64_png(r["shade"]),
                question=r["question"],
                answer=r["answer"],
                category=r["kind"],
            )
            for r in GQA
        ]
    if benchmark == "mmmu":
        return [
            dict(
                index=r["number"],
                image=_listed([base64_png(SHADES[i] + k) for k in range(r["pictures"])]),
                question=r["question"],
                **{k: r["options"][at] if r["options"] else None for at, k in enumerate("ABC")},
                answer=r["answer"],
                category=r["subject"][0],
                **{"l2-category": r["subject"][1]},
                split=r["split"],
            )
            for i, r in enumerate(MMMU)
        ]
    return [
        dict(
            index=r["number"],
            image=base64_png(SHADES[i]),
            question=r["question"],
            answer=r["answer"],
            category=",".join(r["abilities"]),
        )
        for i, r in enumerate(MMVET)
    ]


def parquet_files(benchmark):
    """Name of a file -> rows as lmms-lab's data set has them."""
    image = lambda shade: {"bytes": png(shade), "path": None}
    if benchmark == "pope":
        rows = [
            dict(
                id=str(i),
                question_id=r["number"],
                question=r["question"],
                answer=r["answer"],
                image_source=r["name"][:-4],
                image=image(SHADES[i]),
                category=r["subset"],
            )
            for i, r in enumerate(POPE)
        ]
        return {"test-00000-of-00001.parquet": rows}
    if benchmark == "mme":
        rows = [
            dict(
                question_id=r["pair"],
                image=image(r["shade"]),
                question=r["question"],
                answer=r["answer"],
                category=r["category"],
            )
            for r in MME
        ]
        return {"test-00000-of-00002.parquet": rows[:7], "test-00001-of-00002.parquet": rows[7:]}
    if benchmark == "mmbench":
        rows = [
            dict(
                index=r["index"],
                question=r["question"],
                hint=r["hint"] or "nan",
                answer=r["answer"],
                **{k: r[k] for k in LETTERS},
                E="nan",
                category=r["category"],
                image=image(SHADES[r["index"] % 10**6]),
                source="made",
                **{"L2-category": r["group"]},
                comment="nan",
                split="dev",
            )
            for r in MMBENCH
        ]
        return {"en/dev-00000-of-00001.parquet": rows}
    if benchmark == "seed":
        rows = [
            dict(
                answer=r["answer"],
                **{f"choice_{k.lower()}": r[k] for k in LETTERS},
                data_id=r["name"],
                data_type="image",
                question=r["question"],
                question_id=r["number"],
                question_type_id=r["kind"],
                image=[image(SHADES[i])],
                segment=None,
            )
            for i, r in enumerate(SEED)
        ]
        return {"test-00000-of-00001.parquet": rows}
    if benchmark == "gqa":
        questions = [
            dict(
                id=r["number"],
                imageId=r["name"],
                question=r["question"],
                answer=r["answer"],
                types={"detailed": "d", "semantic": "s", "structural": r["kind"]},
            )
            for r in GQA
        ]
        pictures = {r["name"]: dict(id=r["name"], image=image(r["shade"])) for r in GQA}
        return {
            "testdev_balanced_instructions/testdev-00000-of-00001.parquet": questions,
            "testdev_balanced_images/testdev-00000-of-00001.parquet": list(pictures.values())[::-1],
        }
    if benchmark == "mmmu":
        rows = [
            dict(
                id=r["number"],
                question=r["question"],
                options=repr(r["options"]),
                explanation="",
                **{
                    f"image_{k + 1}": image(SHADES[i] + k) if k < r["pictures"] else None
                    for k in range(7)
                },
                img_type="['Plots']",
                answer=r["answer"],
                topic_difficulty="Easy",
                question_type="multiple-choice" if r["options"] else "open",
                subfield="x",
            )
            for i, r in enumerate(MMMU)
        ]
        return {
            "dev-00000-of-00001.parquet": rows[:3],
            "validation-00000-of-00001.parquet": rows[3:],
        }
    rows = [
        dict(
            question_id=r["number"],
            image=image(SHADES[i]),
            question=r["question"],
            answer=r["answer"],
            image_source="web",
            capability=",".join(r["abilities"]),
        )
        for i, r in enumerate(MMVET)
    ]
    return {"test-00000-of-00001.parquet": rows}


def write_official(benchmark, folder):
    """The official JSON files, with a folder `pictures`; their paths."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True)
    rows = {"pope": POPE, "gqa": GQA, "seed": SEED, "mmvet": MMVET}[benchmark]
    suffix = "" if benchmark in ("pope", "mmvet") else ".jpg"
    for i, r in enumerate(rows):
        (pictures / f"{r['name']}{suffix}").write_bytes(png(r.get("shade", SHADES[i])))
    if benchmark == "pope":
        paths = []
        for subset in SUBSETS:
            lines = [
                {
                    "question_id": int(r["number"]),
                    "image": r["name"],
                    "text": r["question"],
                    "label": r["answer"],
                }
                for r in POPE
                if r["subset"] == subset
            ]
            path = folder / f"coco_pope_{subset}.json"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
            paths.append(str(path))
        return paths
    if benchmark == "mmvet":
        value = {
            r["number"]: {
                "imagename": r["name"],
                "question": r["question"],
                "answer": r["answer"],
                "imagesource": "web",
                "capability": r["abilities"],
            }
            for r in MMVET
        }
    elif benchmark == "gqa":
        value = {
            r["number"]: {
                "question": r["question"],
                "answer": r["answer"],
                "imageId": r["name"],
                "types": {"structural": r["kind"]},
                "semantic": [],
            }
            for r in GQA
        }
    else:
        questions = [
            {
                "answer": r["answer"],
                **{f"choice_{k.lower()}": r[k] for k in LETTERS},
                "data_id": r["name"],
                "data_type": "image",
                "question": r["question"],
                "question_id": r["number"],
                "question_type_id": r["kind"],
            }
            for r in SEED
        ]
        video = dict(questions[0], data_type="video", question_id="900", question_type_id=10)
        value = {
            "questions": [*questions, video],
            "question_type": {name: number for number, name in enumerate(SEED_KINDS, 1)},
        }
    path = folder / f"{benchmark}.json"
    path.write_text(json.dumps(value))
    return [str(path)]


def write_layout(benchmark, layout, folder):
    """The files of a benchmark in a layout: (paths, directory of pictures or None)."""
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "tsv":
        return [write_tsv(folder / f"{benchmark}.tsv", tsv_rows(benchmark))], None
    if layout == "parquet":
        for name, rows in parquet_files(benchmark).items():
            write_parquet(folder / name, rows)
        return [str(folder)], None
    return write_official(benchmark, folder), str(folder / "pictures")


LAYOUTS = [
    *(
        (name, layout)
        for name in ("pope", "gqa", "seed", "mmvet")
        for layout in ("tsv", "parquet", "json")
    ),
    *((name, layout) for name in ("mme", "mmbench", "mmmu") for layout in ("tsv", "parquet")),
]


def _listed(pictures):
    return str(pictures) if len(pictures) > 1 else pictures[0]
