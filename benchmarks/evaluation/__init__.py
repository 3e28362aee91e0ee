"""Evaluation beside the tools of others: the same answers, the same readings."""
