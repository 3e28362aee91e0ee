"""What VLMEvalKit's own functions make of tables and predictions: prompts of its adapter of Janus, scores."""

from __future__ import annotations

import abc
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.evaluation.packages import functions_of
from janus_jax.evaluation.understanding import BENCHMARK_FACTS, Item

Numbers = dict[tuple[str, str, str], float]
_WANTED = {
    "vlmeval/smp/misc.py": ["process_punctuation", "d2df", "istype", "listinstr", "cn_string"],
    "vlmeval/smp/vlm.py": ["build_option_str"],
    "vlmeval/utils/matching_util.py": [
        *("_VERBOSE_ANSWER_RE", "can_infer_option", "can_infer_text", "can_infer")
    ],
    "vlmeval/dataset/utils/yorn.py": ["YOrN_Extraction", "POPE_rating", "MME_rating"],
    "vlmeval/dataset/utils/multiple_choice.py": [
        *("MMB_abbrs", "MMMU_preproc", "report_acc", "build_prompt", "build_prompt_cn"),
        *("build_choices", "prefetch_answer", "extract_answer_from_item", "eval_vanilla"),
        *("prefetch_circular_group", "mcq_vanilla_eval", "mcq_circular_eval"),
    ],
    "vlmeval/dataset/utils/vqa_eval.py": ["process_line", "hit_calculate"],
    "vlmeval/dataset/utils/mmvet.py": ["MMVet_acc"],
    "vlmeval/dataset/image_base.py": ["ImageBaseDataset"],
    "vlmeval/dataset/image_vqa.py": ["ImageVQADataset"],
    "vlmeval/vlm/janus.py": ["Janus"],
}
_TYPES = {"pope": "Y/N", "mme": "Y/N", "mmbench": "MCQ", "seed": "MCQ", "mmmu": "MCQ"}


class _Store:
    """The files that its functions write and read again, in memory."""

    def __init__(self) -> None:
        self.files: dict[str, Any] = {}

    def dump(self, value: Any, path: str) -> None:
        self.files[str(path)] = value.copy() if hasattr(value, "copy") else value

    def load(self, path: Any) -> Any:
        if isinstance(path, pd.DataFrame):
            return path.copy()
        return self.files.get(str(path), {})

    def run_all(
        self, function: Callable, tups: list[dict], save: str, keys: list, **others: Any
    ) -> list:
        results = [function(**tup) for tup in tups]
        self.files[save] = {**self.files.get(save, {}), **dict(zip(keys, results, strict=True))}
        return results


def _functions(read: Callable[[str], str]) -> dict[str, Any]:
    store = _Store()
    types = {BENCHMARK_FACTS[name].vlmevalkit: kind for name, kind in _TYPES.items()}
    given = {
        **{"pd": pd, "defaultdict": defaultdict, "Path": Path, "Any": Any, "osp": os.path},
        **{"ABCMeta": abc.ABCMeta, "abstractmethod": abc.abstractmethod, "INFER_FAIL_MSG": ""},
        **{"BaseModel": object, "DATASET_TYPE": lambda name: types.get(name, "VQA")},
        **{"dump": store.dump, "load": store.load, "track_progress_rich": store.run_all},
        **{"get_pred_file_format": lambda: "tsv", "timestr": lambda: "0"},
    }
    return functions_of(read, _WANTED, given)


def vlmevalkit_prompts(
    read: Callable[[str], str], name: str, items: Sequence[Item], table: Path
) -> dict[str, str]:
    """Index -> the user's turn, before it is stripped."""
    theirs = _functions(read)
    frame = pd.read_csv(table, sep="\t")
    model, dataset = theirs["Janus"].__new__(theirs["Janus"]), BENCHMARK_FACTS[name].vlmevalkit
    pictures = {item.index: len(item.pictures) for item in items}
    found = {}
    for _, line in frame.iterrows():
        names = ["p.png"] * pictures[str(line["index"])]
        if model.use_custom_prompt(dataset):
            model.dump_image = lambda line, dataset: names  # noqa: B023
            message = model.build_prompt(line, dataset)
        else:
            data = theirs["ImageVQADataset"].__new__(theirs["ImageVQADataset"])
            data.meta_only, data.dump_image = False, lambda line: names  # noqa: B023
            message = data.build_prompt(line)
        found[str(line["index"])] = model.prepare_inputs(message)[0]["content"]
    return found


def vlmevalkit_scores(
    read: Callable[[str], str],
    name: str,
    items: Sequence[Item],
    answers: dict[str, str],
    predictions: Path,
    table: Path,
    grade_of: Callable[[str], float],
) -> Numbers:
    """(table, row, column) -> the number that its functions give for exported predictions."""
    theirs = _functions(read)
    data = pd.read_csv(predictions, sep="\t")
    data["prediction"] = [str(text) for text in data["prediction"]]
    meta = pd.read_csv(table, sep="\t")
    if name in ("pope", "mme"):
        data["extracted"] = [theirs["YOrN_Extraction"](text) for text in data["prediction"]]
        data["score"] = data["answer"] == data["extracted"]
        return (
            _pope(theirs["POPE_rating"](data))
            if name == "pope"
            else _mme(theirs["MME_rating"](data))
        )
    if name == "gqa":
        data["answer"] = data["answer"].astype(str)
        lines = [theirs["process_line"](line, method="accuracy") for _, line in data.iterrows()]
        hits = theirs["hit_calculate"](lines, "GQA_TestDev_Balanced")
        return {("gqa", "overall", "accuracy"): 100 * sum(hits) / len(hits)}
    if name == "mmvet":
        data["score"] = [grade_of(text) for text in data["prediction"]]
        abilities, together = theirs["MMVet_acc"](data)
        # A question that needs one ability alone counts twice in the mean of that ability: it adds to a sum of the
        # ability and to one of the combination, which have one name. The official evaluator has no such sums.
        twice = {*abilities["Category"]} - {"Overall"}
        found = {
            ("mmvet_combination", r["Category"], "score"): r["acc"]
            for _, r in together.iterrows()
            if r["Category"] not in twice
        }
        found["mmvet", "total", "score"] = found.pop(("mmvet_combination", "Overall", "score"))
        return found
    dataset = BENCHMARK_FACTS[name].vlmevalkit
    vanilla = lambda frame, file: theirs["report_acc"](
        theirs["mcq_vanilla_eval"](None, frame.copy(), meta, 1, file, dataset)
    ).iloc[0]
    if name != "mmbench":
        row = vanilla(data, "vanilla")
        groups = (
            {} if name == "seed" else {g: "mmmu_discipline" for item in items for g in item.groups}
        )
        return {
            (
                groups.get(column, name),
                "overall" if column == "Overall" else column,
                "accuracy",
            ): 100 * value
            for column, value in row.items()
            if column != "split"
        }
    circular = theirs["mcq_circular_eval"](None, data.copy(), meta, 1, "circular", dataset)
    rows = {
        "circular": theirs["report_acc"](circular).iloc[0],
        "vanilla_0": vanilla(data[data["index"] <= 10**6], "vanilla_0"),
        "vanilla_all": vanilla(data, "vanilla_all"),
    }
    found = {}
    for kind, row in rows.items():
        found["mmbench", kind, "accuracy"] = 100 * row["Overall"]
        for column, value in row.items():
            if column not in ("split", "Overall"):
                of = "mmbench_l2" if column.startswith("group") else "mmbench_category"
                found[of, column, kind] = 100 * value
    return found


def _pope(rating: pd.DataFrame) -> Numbers:
    columns = {"Overall": "f1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
    return {
        ("pope", "overall" if row["split"] == "Overall" else row["split"], ours): row[theirs]
        for _, row in rating.iterrows()
        for theirs, ours in columns.items()
    }


def _mme(rating: pd.DataFrame) -> Numbers:
    names = {"reasoning": "cognition"}
    row = rating.iloc[0]
    return {("mme", names.get(name, name), "score"): value for name, value in row.items()}
