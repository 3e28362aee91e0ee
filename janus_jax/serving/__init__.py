"""Serving one model to many: `jobs` is what `http` and `page` ask and `engine` does, rows of many in one batch."""
