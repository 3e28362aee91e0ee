"""Our readings of answers beside those of the packages they follow, on the same generated answers.

    python -m benchmarks.evaluation.parsers_against_packages WHEELS --out parsers.json
    python -m benchmarks.evaluation.parsers_against_packages WHEELS --vlmevalkit CHECKOUT

WHEELS is a directory with the wheels of ms_vlmeval (VLMEvalKit) and lmms_eval (`pip download --no-deps`). Nothing
of them is installed or imported: the few functions are taken out of their source and run alone. Where the released
VLMEvalKit is older than the repository, a checkout of that is compared, too: since August 2026 it also reads
"answer is X". Exits with 1 if any reading differs.
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evaluation.made_answers import Made, make_answers
from benchmarks.evaluation.packages import functions_of, of_wheel
from janus_jax.evaluation.understanding import choices, open_answers, yes_no
from janus_jax.files import write_json

_SHOWN = 5  # differing answers of each reading
_VLMEVALKIT = {
    "vlmeval/utils/matching_util.py": [
        "_VERBOSE_ANSWER_RE",
        "can_infer_option",
        "can_infer_text",
        "can_infer",
    ],
    "vlmeval/smp/misc.py": ["process_punctuation"],
    "vlmeval/dataset/utils/yorn.py": ["YOrN_Extraction"],
}
_LMMS_EVAL = {
    "lmms_eval/tasks/_task_utils/mmmu_mcq_utils.py": ["parse_mmmu_multi_choice_response"],
    "lmms_eval/tasks/mmmu/utils.py": [
        *(
            "extract_numbers",
            "check_is_number",
            "normalize_str",
            "parse_open_response",
            "eval_open",
        ),
    ],
    "lmms_eval/tasks/mmbench/mmbench_evals.py": ["MMBench_Evaluator"],
    "lmms_eval/tasks/mme/utils.py": ["parse_pred_ans"],
    "lmms_eval/tasks/pope/utils.py": ["pope_process_results"],
    "lmms_eval/tasks/seedbench/utils.py": ["seed_process_result"],
    "lmms_eval/api/metrics.py": ["exact_match_hf_evaluate"],
}

Reading = Callable[[Made], Any]


def vlmevalkit_readings(theirs: dict[str, Any]) -> dict[str, tuple[Reading, Reading]]:
    """Name -> (theirs, ours)."""
    newer = "_VERBOSE_ANSWER_RE" in theirs
    return {
        "VLMEvalKit can_infer_option": (
            lambda m: theirs["can_infer_option"](m.answer, dict(m.options)) or None,
            lambda m: choices.option_of(m.answer, m.options, newer),
        ),
        "VLMEvalKit can_infer_text": (
            lambda m: theirs["can_infer_text"](m.answer, dict(m.options)) or None,
            lambda m: choices.option_by_text(m.answer, m.options),
        ),
        "VLMEvalKit can_infer": (
            lambda m: theirs["can_infer"](m.answer, dict(m.options)) or None,
            lambda m: choices.infer_option(m.answer, m.options, newer),
        ),
        "VLMEvalKit process_punctuation": (
            lambda m: theirs["process_punctuation"](m.answer),
            lambda m: yes_no.without_punctuation(m.answer),
        ),
        "VLMEvalKit YOrN_Extraction": (
            lambda m: {"Unknown": None}.get(found := theirs["YOrN_Extraction"](m.answer), found),
            lambda m: yes_no.yes_no_vlmevalkit(m.answer),
        ),
    }


def lmms_eval_readings(theirs: dict[str, Any]) -> dict[str, tuple[Reading, Reading]]:
    """Name -> (theirs, ours). The harness strips answers before it reads them."""
    evaluator = theirs["MMBench_Evaluator"].__new__(theirs["MMBench_Evaluator"])
    theirs["random"] = _First  # where it draws, both take the first option
    lower = {"yes": "Yes", "no": "No"}
    pope = {"question_id": 0, "answer": "yes"}
    seed = {"data_type": "image", "question_id": 0, "answer": "A"}

    def mmmu(made: Made) -> Any:
        if not made.options:
            return None
        return theirs["parse_mmmu_multi_choice_response"](
            made.answer.strip(), list(made.options), made.options
        )

    return {
        "lmms-eval MMMU choice": (
            mmmu,
            lambda m: (
                (
                    m.options
                    and choices.infer_option_mmmu(
                        m.answer.strip(), m.options, lambda letters: letters[0]
                    )[0]
                )
                or None
            ),
        ),
        "lmms-eval MMMU open, candidates": (
            lambda m: _as_set(theirs["parse_open_response"](m.answer.strip())),
            lambda m: _as_set(open_answers.read_open(m.answer.strip())),
        ),
        "lmms-eval MMMU open, right": (
            lambda m: theirs["eval_open"](m.truth, theirs["parse_open_response"](m.answer.strip())),
            lambda m: open_answers.open_is_right(
                open_answers.read_open(m.answer.strip()), [m.truth]
            ),
        ),
        "lmms-eval MMBench": (
            lambda m: (
                evaluator.can_infer(m.answer.strip(), {k: m.options.get(k, "nan") for k in "ABCD"})
                or None
            ),
            lambda m: choices.infer_option_lmms(m.answer.strip(), m.options),
        ),
        "lmms-eval MME": (
            lambda m: lower.get(theirs["parse_pred_ans"](m.answer.strip())),
            lambda m: yes_no.yes_no_first_letters(m.answer.strip()),
        ),
        "lmms-eval POPE": (
            lambda m: lower.get(
                theirs["pope_process_results"](pope, [m.answer])["pope_accuracy"]["prediction"]
            ),
            lambda m: yes_no.yes_no_exact(m.answer),
        ),
        "lmms-eval SEED-Bench": (
            lambda m: (
                theirs["seed_process_result"](seed, [m.answer])["seed_image"]["pred"].lower() == "a"
            ),
            lambda m: choices.first_letter(m.answer) == "A",
        ),
        "lmms-eval GQA": (
            lambda m: bool(
                theirs["exact_match_hf_evaluate"](
                    predictions=[m.answer.strip()],
                    references=[m.truth],
                    ignore_case=True,
                    ignore_punctuation=True,
                )["exact_match"]
            ),
            lambda m: open_answers.exact_lmms(m.answer.strip(), m.truth),
        ),
    }


class _First:
    """In place of the module `random`."""

    choice = staticmethod(lambda letters: letters[0])


def _as_set(values: list[Any]) -> set[str]:
    return {repr(value) for value in values}


def compare(
    readings: dict[str, tuple[Reading, Reading]], answers: list[Made]
) -> dict[str, dict[str, Any]]:
    """Of each reading: how many answers were compared, what they said, and which differ."""
    result = {}
    for name, (theirs, ours) in readings.items():
        said, differing = collections.Counter(), []
        for made in answers:
            expected, found = theirs(made), ours(made)
            said["nothing" if expected in (None, False) else "something"] += 1
            if expected != found:
                differing.append(
                    {
                        "answer": made.answer,
                        "options": made.options,
                        "theirs": repr(expected),
                        "ours": repr(found),
                    }
                )
        result[name] = {
            "answers": len(answers),
            "said": dict(said),
            "differ": len(differing),
            "examples": differing[:_SHOWN],
        }
        print(f"{name:36} {len(answers)} answers, {len(differing)} differ")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheels", type=Path)
    parser.add_argument("--vlmevalkit", type=Path, help="a checkout of open-compass/VLMEvalKit")
    parser.add_argument("--count", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    answers = make_answers(args.count, args.seed)
    record: dict[str, Any] = {
        "styles": dict(collections.Counter(made.style for made in answers)),
        "different_answers": len({made.answer for made in answers}),
        "seed": args.seed,
    }
    for package, wanted, readings in (
        ("ms_vlmeval", _VLMEVALKIT, vlmevalkit_readings),
        ("lmms_eval", _LMMS_EVAL, lmms_eval_readings),
    ):
        wheel, read = of_wheel(args.wheels, package)
        print(wheel)
        record[wheel] = compare(readings(functions_of(read, wanted)), answers)
    if args.vlmevalkit:
        print("the checkout of VLMEvalKit")
        read = lambda path: (args.vlmevalkit / path).read_text("utf-8")
        found = functions_of(read, _VLMEVALKIT)
        record["checkout of VLMEvalKit"] = compare(vlmevalkit_readings(found), answers)
    if args.out:
        write_json(args.out, record)
    tables = [value for value in record.values() if isinstance(value, dict)]
    if any(row["differ"] for table in tables for row in table.values() if isinstance(row, dict)):
        sys.exit(1)


if __name__ == "__main__":
    main()
