"""Measures that several benchmarks share: comparing answers, yes/no as POPE does, the commonest answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def normalize_answer(text: str) -> str:
    """An answer without case, surplus blanks and a final full stop, for comparing."""
    return " ".join(text.lower().split()).rstrip(" .")


def accuracy(answers: Sequence[str], truth: Sequence[str]) -> float:
    """The share of answers that equal the true ones."""
    return float(np.mean([a == t for a, t in zip(answers, truth, strict=True)]))


def majority(truth: Sequence[str]) -> float:
    """What always giving the commonest true answer would get."""
    return Counter(truth).most_common(1)[0][1] / len(truth)


def pope(answers: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 of "yes" (Li et al. 2023); what is neither yes nor no is not "yes"."""
    answered = np.array([a == "yes" for a in answers])
    true = np.array([t == "yes" for t in truth])
    hits = float((answered & true).sum())
    precision = hits / max(float(answered.sum()), 1.0)
    recall = hits / max(float(true.sum()), 1.0)
    f1 = 2 * precision * recall / max(precision + recall, 1e-9)
    return {"precision": precision, "recall": recall, "f1": f1}
