# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Janus-Pro on a TPU or GPU
#
# Converts the released Janus-Pro-1B, checks that the numbers are those of PyTorch, draws, and asks about a
# picture. Choose a TPU or GPU runtime first. The 1B model needs about 5 GB on the device in bfloat16, and 10 GB
# of disk.

# %% [markdown]
# ## Install
#
# Set `REPOSITORY` to where this project is, if you are not already in a copy of it.

# %%
import os
import sys
from pathlib import Path

REPOSITORY = os.environ.get("JANUS_REPOSITORY", "")

# %%
# !if [ -n "$REPOSITORY" ] && [ ! -e train.py ]; then git clone --depth 1 "$REPOSITORY" janus && cp -r janus/* .; fi
# !if [ -e requirements.txt ]; then pip install -q -r requirements.txt huggingface_hub; fi

# %%
import resource
import subprocess

import jax


def run(*command):
    """Runs one of the project's commands and shows what it prints."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    print(done.stdout[-4000:])
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def show_memory(step):
    """Memory in use and at its peak, on the device and on the host."""
    stats = jax.local_devices()[0].memory_stats() or {}
    device = [
        f"{stats[k] / 2**30:.2f}" for k in ("bytes_in_use", "peak_bytes_in_use") if k in stats
    ]
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{step}: device now and peak {' and '.join(device) or 'unknown'} GiB, host peak {host:.2f} GiB"
    )


print(jax.devices())

# %% [markdown]
# ## Convert
#
# `SRC` is a hub id or a directory. The converter reads the weights tensor by tensor, so it needs little memory.

# %%
SRC = os.environ.get("JANUS_SRC", "deepseek-ai/Janus-Pro-1B")
MODEL = Path(os.environ.get("JANUS_MODEL", "models/janus-pro-1b"))
DTYPE = "bfloat16" if jax.default_backend() != "cpu" else "float32"

if not (MODEL / "janus.json").exists():
    run("convert_torch_weights.py", "--src", SRC, "--dst", MODEL)
show_memory("convert")

# %% [markdown]
# ## Parity
#
# `EXPECTED` holds what PyTorch computed from the same weights, recorded with
# `python convert_torch_weights.py --src SRC --record FILE` on any machine that has PyTorch and transformers. Set it to
# a file of yours; without one this step is left out.

# %%
EXPECTED = os.environ.get("JANUS_EXPECTED", "")

if EXPECTED:
    run("convert_torch_weights.py", "--src", MODEL, "--parity", EXPECTED, "--dtype", DTYPE)
show_memory("parity")

# %% [markdown]
# ## Draw
#
# The first call compiles; the second one shows the speed.

# %%
import time

from janus_jax import Janus
from janus_jax.config import Policy
from janus_jax.processing import grid

janus = Janus.load(MODEL, policy=Policy(DTYPE, DTYPE))
show_memory("load")

PROMPT = os.environ.get("JANUS_PROMPT", "a corgi wearing a red scarf, in the snow, golden hour")
for attempt in ("with compiling", "compiled"):
    began = time.perf_counter()
    pictures = janus.generate(PROMPT, n=4, seed=0)
    print(f"4 pictures, {attempt}: {time.perf_counter() - began:.1f} s")
show_memory("draw")
sheet = grid(pictures)
sheet

# %% [markdown]
# ## Ask
#
# A conversation about the first picture; the answers arrive in pieces.

# %%
QUESTIONS = os.environ.get("JANUS_QUESTIONS", "Describe this picture.|Which season is it?").split(
    "|"
)

conversation = janus.conversation()
answers = []
for i, question in enumerate(QUESTIONS):
    print(f"{question}\n  ", end="")
    answer = ""
    for piece in conversation.ask(question, pictures[:1] if i == 0 else [], max_new_tokens=128):
        print(piece, end="", flush=True)
        answer += piece
    answers.append(answer)
    print()
show_memory("ask")

# %% [markdown]
# ## 7B on one v5e chip
#
# Janus-Pro-7B has 14 GiB of weights in bfloat16, which leave a v5e chip of 16 GiB no room to work; in int8 they are 7.9.
# They are read, made int8 and put on the device one layer after the other: the host holds about a layer, and nothing is
# converted on disk. Set `BIG` to the model, a download of 14 GiB. `docs/sampling.md` says where the memory goes, and
# `docs/results.md` what int8 costs in quality (of a small model: the first choice of a code stays in 99.8 %).

# %%
# !pip install -q qwix

# %%
BIG = os.environ.get("JANUS_BIG", "")  # "deepseek-ai/Janus-Pro-7B"

if BIG:
    conversation = janus = None  # 1B's weights leave the device
    began = time.perf_counter()
    # On the device: weights 7.9 GiB; of each guided picture 0.3 of cache, and 0.2 in the image tokenizer.
    janus = Janus.load(BIG, dtype="bfloat16", int8=["weights", "cache"], max_batch=4)
    print(f"{janus}, {time.perf_counter() - began:.0f} s")
    show_memory("load in int8")
    big_pictures = janus.generate(PROMPT, n=1, seed=0)
    show_memory("draw in int8")
    print(janus.answer(big_pictures[0], QUESTIONS[0], max_new_tokens=128))
    show_memory("ask in int8")
