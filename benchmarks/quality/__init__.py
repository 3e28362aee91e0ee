"""Scores of runs side by side, and what int8 costs."""
