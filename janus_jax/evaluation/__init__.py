"""Scoring with exact ground truth: mini-GenEval for drawing, question accuracy for understanding."""

from janus_jax.evaluation.answers import make_questions, plain, pope, question_accuracy
from janus_jax.evaluation.geneval import (
    HELD_OUT_TASKS,
    Prompt,
    is_right,
    make_prompts,
    mini_geneval,
    prove_judge,
    score_pictures,
)
from janus_jax.evaluation.judge import Detection, Judge, Reading

__all__ = [
    "HELD_OUT_TASKS",
    "Detection",
    "Judge",
    "Prompt",
    "Reading",
    "is_right",
    "make_prompts",
    "make_questions",
    "mini_geneval",
    "plain",
    "pope",
    "prove_judge",
    "question_accuracy",
    "score_pictures",
]
