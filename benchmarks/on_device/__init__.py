"""The sections of `benchmarks/accelerator.py`, each run in a process of its own."""
