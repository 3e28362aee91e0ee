"""Drawing and answering against PyTorch (`benchmarks/sampling.py`), and many mixed requests (`soak`).

`run` is the command, `contenders` who takes part, `process` and `worker` their processes, `native` and `pytorch`
what the two sides do in them, `models` and `inputs` what all of them get, `meter` and `probe` the measures.
"""
