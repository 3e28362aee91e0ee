"""What lmms-eval's own functions make of questions and answers: prompts and scores of its tasks."""

from __future__ import annotations

import ast
import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.evaluation.packages import functions_of
from janus_jax.evaluation.understanding import Item

Numbers = dict[tuple[str, str, str], float]
_TASKS = "lmms_eval/tasks"
_WORD = "\nAnswer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_THINK = (
    "First please perform reasoning, and think step by step to provide best answer to the following "
    "question: \n\n"
)
_WANTED = {
    "pope": {
        f"{_TASKS}/pope/utils.py": [
            *("pope_doc_to_text", "pope_process_results", "pope_aggregate_accuracy"),
            *("pope_aggregate_precision", "pope_aggregate_recall", "pope_aggregate_f1_score"),
        ]
    },
    "mme": {
        f"{_TASKS}/mme/utils.py": [
            *("eval_type_dict", "replace_prompt", "mme_doc_to_text", "parse_pred_ans"),
            *("mme_process_results", "mme_aggregate_results"),
        ]
    },
    "mmbench": {
        f"{_TASKS}/mmbench/mmbench_evals.py": ["MMBench_Evaluator"],
        f"{_TASKS}/mmbench/en_utils.py": ["mmbench_doc_to_text"],
    },
    "seed": {
        f"{_TASKS}/seedbench/utils.py": [
            *("seed_doc_to_text", "seed_process_result", "seed_aggregation_result")
        ]
    },
    "gqa": {
        f"{_TASKS}/gqa/utils.py": ["gqa_doc_to_text"],
        "lmms_eval/api/metrics.py": ["exact_match_hf_evaluate"],
    },
    "mmmu": {
        f"{_TASKS}/_task_utils/mmmu_mcq_utils.py": [
            *("get_multi_choice_info", "parse_mmmu_multi_choice_response")
        ],
        f"{_TASKS}/mmmu/utils.py": [
            *("parse_options", "construct_prompt", "mmmu_doc_to_text", "parse_open_response"),
            *(
                "extract_numbers",
                "check_is_number",
                "normalize_str",
                "eval_open",
                "eval_multi_choice",
            ),
            *(
                "evaluate_mmmu",
                "mmmu_process_results",
                "to_submission_answer",
                "extract_subset_name",
            ),
            *("calculate_ins_level_acc", "DOMAIN_CAT2SUB_CAT", "parse_multi_choice_response"),
        ],
    },
    "mmvet": {f"{_TASKS}/mmvet/utils.py": ["doc_to_text"]},
}
_GIVEN = {
    **{"pd": pd, "math": math, "ast": ast, "defaultdict": defaultdict},
    **{"config": {"metadata": {"interleaved_format": False}}, "rd": random},
}


def _functions(read: Callable[[str], str], name: str) -> dict[str, Any]:
    theirs = functions_of(read, _WANTED[name], _GIVEN)
    if name == "mmbench":
        evaluator = theirs["MMBench_Evaluator"].__new__(theirs["MMBench_Evaluator"])
        evaluator.sys_prompt = "There are several options:"
        evaluator.extract_answer_from_item = lambda row: ("E", "")  # without a judge: none of them
        theirs["mmbench_evaluator"] = evaluator
    if name == "mmmu":
        theirs["shared_get_multi_choice_info"] = theirs["get_multi_choice_info"]
        evaluated = theirs["parse_mmmu_multi_choice_response"]
        theirs["parse_multi_choice_response"] = evaluated
    return theirs


def _doc(name: str, item: Item) -> dict[str, Any]:
    """The item as a row of the data set that the task reads."""
    doc = {"question_id": item.index, "question": item.question, "answer": item.answer}
    if name == "mme":
        doc |= {"question_id": item.picture_key, "category": item.category}
    if name == "mmbench":
        options = {letter: item.options.get(letter, "nan") for letter in "ABCDE"}
        doc |= {"index": int(item.index), "hint": item.hint or "nan", "source": "", **options}
        doc |= {"category": item.category, "L2-category": item.groups[0], "split": item.split}
    if name == "seed":
        doc |= {f"choice_{k.lower()}": text for k, text in item.options.items()}
        doc |= {"data_type": "image"}
    if name == "mmmu":
        doc |= {"id": item.fields["id"], "options": repr(list(item.options.values()))}
        doc |= {"question_type": "multiple-choice" if item.options else "open"}
    return doc


def lmms_prompts(
    read: Callable[[str], str], name: str, items: Sequence[Item], table: Path
) -> dict[str, str]:
    """Index -> the text of the task, after a line for each picture."""
    theirs = _functions(read, name)
    word = {"pre_prompt": "", "post_prompt": _WORD}
    write = {
        "pope": lambda doc: theirs["pope_doc_to_text"](doc, word),
        "mme": lambda doc: theirs["mme_doc_to_text"](doc, word),
        "mmbench": lambda doc: theirs["mmbench_doc_to_text"](
            doc, {"pre_prompt": "", "post_prompt": f"\n{_LETTER}"}
        ),
        "seed": lambda doc: theirs["seed_doc_to_text"](doc),
        "gqa": lambda doc: theirs["gqa_doc_to_text"](doc, word),
        "mmmu": lambda doc: theirs["mmmu_doc_to_text"](
            doc,
            {
                "prompt_type": "format",
                "multiple_choice_prompt": _LETTER,
                "open_ended_prompt": _WORD.strip(),
            },
        ),
        "mmvet": lambda doc: theirs["doc_to_text"](doc, {"pre_prompt": _THINK, "post_prompt": ""}),
    }[name]
    found = {}
    for item in items:
        if not _is_usual(name, item):
            continue
        text = write(_doc(name, item))
        pictures = len(item.pictures)
        if name == "mmmu":
            pictures = len({mark for mark in ("<image 1>", "<image 2>") if mark in text})
        found[item.index] = "<image_placeholder>\n" * pictures + text
    return found


def lmms_scores(
    read: Callable[[str], str],
    name: str,
    items: Sequence[Item],
    answers: dict[str, str],
    predictions: Path,
    table: Path,
    grade_of: Callable[[str], float],
) -> Numbers:
    """(table, row, column) -> the number that its functions give; none for MM-Vet, whose grades a judge gives."""
    theirs = _functions(read, name)
    stopped = {index: text.split("ASSISTANT:")[0].strip() for index, text in answers.items()}
    docs = [(_doc(name, item), stopped[item.index], item) for item in items]
    if name == "pope":
        results = [
            theirs["pope_process_results"](doc, [text])["pope_accuracy"]
            for doc, text, item in docs
            for _ in item.groups  # its data set has a row for each subset
        ]
        measures = {
            "accuracy": "accuracy",
            "precision": "precision",
            "recall": "recall",
            "f1": "f1_score",
        }
        return {
            ("pope", "overall", ours): 100 * theirs[f"pope_aggregate_{measure}"](results)
            for ours, measure in measures.items()
        }
    if name == "mme":
        results = defaultdict(list)
        for doc, text, _ in docs:
            for key, value in theirs["mme_process_results"](doc, [text]).items():
                results[key.split("_")[1]].append(value)
        return {
            ("mme", key, "score"): theirs["mme_aggregate_results"](of)
            for key, of in results.items()
        }
    if name == "mmbench":
        rows = [{**doc, "prediction": text} for doc, text, _ in docs]
        whole, categories, groups = theirs["mmbench_evaluator"].eval_result(rows, "openai")
        found = {("mmbench", "circular", "accuracy"): 100 * whole}
        found |= {("mmbench_category", k, "circular"): 100 * v for k, v in categories.items()}
        return found | {("mmbench_l2", k, "circular"): 100 * v for k, v in groups.items()}
    if name == "seed":
        results = [
            theirs["seed_process_result"](doc, [text])["seed_image"] for doc, text, _ in docs
        ]
        return {("seed", "overall", "accuracy"): 100 * theirs["seed_aggregation_result"](results)}
    if name == "gqa":
        hits = [
            theirs["exact_match_hf_evaluate"](
                predictions=[text],
                references=[doc["answer"]],
                ignore_case=True,
                ignore_punctuation=True,
            )["exact_match"]
            for doc, text, _ in docs
        ]
        return {("gqa", "overall", "accuracy"): 100 * sum(hits) / len(hits)}
    return _mmmu(theirs, docs) if name == "mmmu" else {}


def _mmmu(theirs: dict[str, Any], docs: list[tuple[dict[str, Any], str, Item]]) -> Numbers:
    by_subject = defaultdict(list)
    for doc, text, item in docs:
        theirs["random"] = random.Random(f"0/{item.index}")  # draws as ours do
        result = theirs["mmmu_process_results"](doc, [text])["mmmu_acc"]
        by_subject[result["subdomain"]].append(result)
    evaluated = {}
    for subject, samples in by_subject.items():
        _, numbers = theirs["evaluate_mmmu"](samples)
        evaluated[subject] = {**numbers, "num_example": len(samples)}
    mean = theirs["calculate_ins_level_acc"]
    found = {("mmmu", s, "accuracy"): 100 * of["acc"] for s, of in evaluated.items()}
    found["mmmu", "overall", "accuracy"] = 100 * mean(evaluated)
    for discipline, subjects in theirs["DOMAIN_CAT2SUB_CAT"].items():
        of = {s: evaluated[s] for s in subjects if s in evaluated}
        found["mmmu_discipline", discipline, "accuracy"] = 100 * mean(of)
    return found


def _is_usual(name: str, item: Item) -> bool:
    """Whether the data set could have such a row: SEED-Bench's have four options, none is without a text."""
    return name != "seed" or len(item.options) == 4
