"""Preparing data once for many runs: pictures of the right size, or their codes, in ArrayRecord files."""
