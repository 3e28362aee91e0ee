"""Benchmarks of drawing: prompts, pictures in the layouts of the official scorers, their results, their rules.

from janus_jax.evaluation import ModelPredictor
from janus_jax.evaluation.generation import draw, prompt_set, read_results, score_results

draw(ModelPredictor(janus), prompt_set("geneval"), "out/geneval")     # a killed one goes on where it was
# ... GenEval's own script: python evaluate_images.py out/geneval --outfile results.jsonl
scores = score_results(read_results("results.jsonl"))
print(scores.overall, {task: score.share for task, score in scores.tasks.items()}, scores.incomplete)
"""

from janus_jax.evaluation.generation.detectors import (
    PROXY,
    Detector,
    detect,
    judge_pictures,
    load_function,
    sanity_check,
)
from janus_jax.evaluation.generation.dpg import (
    DpgScores,
    overall_of,
    read_answers,
    read_picture_scores,
    score_answers,
)
from janus_jax.evaluation.generation.drawing import Drawing, draw, read_run, seed_of
from janus_jax.evaluation.generation.geneval import (
    GenEvalScores,
    Result,
    make_objects,
    read_results,
    replay,
    score_results,
)
from janus_jax.evaluation.generation.journal import read_header
from janus_jax.evaluation.generation.judges import (
    Judge,
    PredictorJudge,
    ScoringJudge,
    judge_answers,
    judged_by,
)
from janus_jax.evaluation.generation.layouts import LAYOUTS, grid, grid_crops
from janus_jax.evaluation.generation.prompts import (
    BUILT_IN,
    GENEVAL_TASKS,
    Prompt,
    PromptSet,
    dpg_prompts,
    geneval_classes,
    geneval_prompts,
    make_prompts,
    prompt_set,
    read_prompts,
)
from janus_jax.evaluation.generation.questions import (
    L1_CATEGORIES,
    Question,
    Questions,
    read_questions,
)
from janus_jax.evaluation.generation.rules import (
    COLORS,
    Objects,
    Thresholds,
    Verdict,
    judge,
    relations,
)

__all__ = [
    "BUILT_IN",
    "COLORS",
    "GENEVAL_TASKS",
    "L1_CATEGORIES",
    "LAYOUTS",
    "PROXY",
    "Detector",
    "DpgScores",
    "Drawing",
    "GenEvalScores",
    "Judge",
    "Objects",
    "PredictorJudge",
    "Prompt",
    "PromptSet",
    "Question",
    "Questions",
    "Result",
    "ScoringJudge",
    "Thresholds",
    "Verdict",
    "detect",
    "dpg_prompts",
    "draw",
    "geneval_classes",
    "geneval_prompts",
    "grid",
    "grid_crops",
    "judge",
    "judge_answers",
    "judge_pictures",
    "judged_by",
    "load_function",
    "make_objects",
    "make_prompts",
    "overall_of",
    "prompt_set",
    "read_answers",
    "read_header",
    "read_picture_scores",
    "read_prompts",
    "read_questions",
    "read_results",
    "read_run",
    "relations",
    "replay",
    "sanity_check",
    "score_answers",
    "score_results",
    "seed_of",
]
