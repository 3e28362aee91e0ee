"""report.md: a run in tables and pictures, made from the files in its directory alone."""

from janus_jax.run.report.run import write_report

__all__ = ["write_report"]
