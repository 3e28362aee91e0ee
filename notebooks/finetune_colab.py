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
# # Fine-tuning Janus-Pro on twenty pictures
#
# A folder of pictures with captions becomes a LoRA adapter of Janus-Pro-1B. At the end the model draws the same prompts
# and answers the same questions with and without it, side by side, on pictures that it was not trained on.
#
# What a device holds of the model between two steps is counted from its shapes; gradients and temporaries come on top
# (`docs/finetune.md` has more, under "Memory"):
#
# | runtime | its memory | 1B, 4.2 GiB | 7B, 14.4 GiB, or 8.7 in int8 |
# |---|---|---|---|
# | T4 | 16 GB | the settings below; slow, as it has no bfloat16 of its own | no: the host has too little memory as well |
# | TPU v5e-1 | 16 GB | the settings below | int8 alone |
# | L4 | 24 GB | the settings below | int8 |
# | A100 | 40 GB | the settings below, more rows at once | both |
#
# It has not been run on any of these yet. Disk: 4 GB of download, 4 of the converted model, and 4 for each checkpoint:
# the newest, the best, and one that is being written.

# %% [markdown]
# ## Install
#
# Set `REPOSITORY` to where this project is, if you are not already in a copy of it.

# %%
import os
import shutil
import sys
from pathlib import Path

REPOSITORY = os.environ.get("JANUS_REPOSITORY", "")
# Another version of JAX needs its own part for the accelerator, or it would compute on the CPU.
TPUS = ("/dev/vfio/0", "/dev/accel0")
KIND = "cuda12" if shutil.which("nvidia-smi") else "tpu" if any(map(os.path.exists, TPUS)) else ""
JAX = f"jax[{KIND}]" if KIND else "jax"

# %%
# !if [ -n "$REPOSITORY" ] && [ ! -e train.py ]; then git clone --depth 1 "$REPOSITORY" janus && cp -r janus/* .; fi
# !if [ -e requirements.txt ]; then pip install -q -r requirements.txt huggingface_hub "$JAX"; fi

# %% [markdown]
# Commands run as programs of their own, so that each has the device for itself and gives it back. Until the section
# "Before and after" nothing in this notebook may use the device: a TPU belongs to one program at a time, and on a GPU
# JAX takes most of the memory.

# %%
import codecs
import subprocess


def run(*command):
    """Runs one of the project's commands and shows what it prints, while it runs."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while piece := process.stdout.read1():
        print(decoder.decode(piece), end="", flush=True)
    if process.wait():
        raise RuntimeError(f"exit code {process.returncode}; what went wrong is said above")


# %% [markdown]
# ## The model
#
# `SRC` is a hub id or a directory; `MODEL` is where it lies converted, which is what training begins with.

# %%
SRC = os.environ.get("JANUS_SRC", "deepseek-ai/Janus-Pro-1B")
MODEL = Path(os.environ.get("JANUS_MODEL", "models/janus-pro-1b"))

if not (MODEL / "janus.json").exists():
    run("convert_torch_weights.py", "--src", SRC, "--dst", MODEL)

# %% [markdown]
# ## Pictures
#
# A folder of pictures, each with its caption beside it: `1.jpg` and `1.txt`. Upload a folder `pictures`, or
# `pictures.zip`, into the files on the left. A caption says what you would ask for; give what is new a name that the model
# has no idea of yet ("a grey cat called Moritz on a sofa"). Without either, twenty little scenes are made here.

# %%
import numpy as np
from PIL import Image

from janus_jax.emoji import World, caption, random_scene, render

PICTURES = Path(os.environ.get("JANUS_PICTURES", "pictures"))
ZIPPED = PICTURES.with_suffix(".zip")

if not PICTURES.exists() and ZIPPED.exists():
    shutil.unpack_archive(ZIPPED, PICTURES)
if not PICTURES.exists():
    PICTURES.mkdir(parents=True)
    rng, world = np.random.default_rng(0), World(image_size=192)
    for number in range(20):
        scene = random_scene(rng, world, ("single_object", "two_object", "colors")[number % 3])
        Image.fromarray(render(scene, world)).save(PICTURES / f"{number:02}.png")
        (PICTURES / f"{number:02}.txt").write_text(caption(scene, rng))

# %% [markdown]
# ## What is trained on
#
# The same pictures are drawn and described. A share of them, `HELD_OUT`, is never trained on: 4 of 20, and at least one, so
# there must be two. Add conversations of other kinds as further sources, with the task `text` or `understanding`, to keep
# alive what the model can do beside this, and give them a share in `RATIO` (understanding : text : generation):
# `docs/data.md` has the formats.

# %%
import json

QUESTION = os.environ.get("JANUS_QUESTION", "Describe the image.")
MANIFEST = Path(os.environ.get("JANUS_MANIFEST", "pictures.json"))
HELD_OUT, RATIO = 0.2, (1.0, 0.0, 1.0)

files = {"format": "imagefolder", "path": str(PICTURES.resolve())}
sources = [
    {"name": "draw", "task": "generation", **files},
    {"name": "describe", "task": "understanding", "prompt": QUESTION, **files},
]
MANIFEST.write_text(json.dumps({"sources": sources}, indent=2))

# %% [markdown]
# `STEPS` times 4 rows, one row at a time (`accumulate`), which takes the least memory. `MORE` is for flags of your own, such
# as `--config.stages.finetune.options.lora.rank=8`, a longer training, or for 7B `--config.model.preset=janus-pro-7b
# --config.policy.frozen_dtype=int8`.

# %%
import shlex

RECIPE = os.environ.get("JANUS_RECIPE", "finetune:lora")
STEPS = int(os.environ.get("JANUS_STEPS", "60"))
MORE = shlex.split(os.environ.get("JANUS_FLAGS", ""))

SETTINGS = [
    f"--config={RECIPE}",
    f"--config.init_from={MODEL}",
    f"--config.data.manifest={MANIFEST}",
    f"--config.data.held_out={HELD_OUT}",
    f"--config.stages.finetune.ratio={RATIO}",
    f"--config.stages.finetune.steps={STEPS}",
    "--config.stages.finetune.batch_size=4",
    "--config.stages.finetune.accumulate=4",
    f"--config.eval.held_out_every={max(STEPS // 6, 1)}",
    f"--config.log.save_every={max(STEPS // 3, 1)}",
    "--config.log.keep=1",
    *MORE,
]

# %% [markdown]
# ## Look at it first
#
# The page shows each source, what would be left out and why, and records token by token as the model reads them. Read it:
# a caption that belongs to another picture is trained on like any other.

# %%
import html

LOOK = Path(os.environ.get("JANUS_LOOK", "look"))

run("-m", "janus_jax.data", "inspect", *SETTINGS, "--checkpoint", MODEL, "--out", LOOK)


class Page:
    """A page that a notebook shows; it needs no other file, and runs nothing."""

    def __init__(self, path):
        self.path = path

    def _repr_html_(self):
        page = html.escape(self.path.read_text())
        return f'<iframe sandbox srcdoc="{page}" width="100%" height="600"></iframe>'


page = Page(LOOK / "index.html")
page

# %% [markdown]
# ## Train
#
# A line at the start says what it computes on ("1 x cpu": see "Install"). If the cell is stopped, it goes on from the last
# checkpoint, value for value; `RUN` on a mounted Drive outlives the runtime.

# %%
RUN = Path(os.environ.get("JANUS_RUN", "runs/pictures"))

run("train.py", *SETTINGS, "--workdir", RUN)

# %% [markdown]
# ## The held-out curve
#
# The loss of the pictures that are never trained on. Where it rises again, the model learns its pictures by heart: fewer
# steps, or a lower rate. With 4 pictures of 20 it says little more than that.

# %%
curve = Image.open(RUN / "report_held_out.png")
curve

# %%
lines = map(json.loads, (RUN / "metrics.jsonl").read_text().splitlines())
seen = {line["step"]: line["held_out"] for line in lines if "held_out" in line}
for step, losses in seen.items():
    print(
        f"step {step}: "
        + ", ".join(f"{k} {losses[k]:.3f}" for k in ("loss", "loss_und", "loss_gen"))
    )

# %% [markdown]
# ## Before and after
#
# The same prompts, seeds and questions, without the adapter and with it. Prompts are the captions of the held-out pictures,
# and those of your own in `PROMPTS`, separated by `|`. From here on this notebook has the device: to train again, restart the
# runtime first.

# %%
import gc

import jax
from PIL import ImageOps

from janus_jax import Janus
from janus_jax.data import HeldOut, make_source
from janus_jax.processing import grid, load_image

PROMPTS = [p for p in os.environ.get("JANUS_PROMPTS", "").split("|") if p]
QUESTIONS = os.environ.get("JANUS_QUESTIONS", f"{QUESTION}|What colours do you see?").split("|")
ADAPTER = RUN / "adapter" / "finetune"

unseen = HeldOut(make_source("files", "gen", files), HELD_OUT)
examples = [unseen[i] for i in range(min(len(unseen), 4))]
originals = [load_image(example.picture()) for example in examples]
prompts = [example.prompt for example in examples] + PROMPTS


def look(adapter=None):
    """(two pictures of each prompt, an answer to each question about each held-out picture)."""
    janus = Janus.load(MODEL, adapter=adapter)
    drawn = janus.generate(prompts, n=2, seed=0)
    shown = [picture for picture in originals for _ in QUESTIONS]
    answers = janus.answer_batch(shown, QUESTIONS * len(originals), max_new_tokens=64)
    if stats := jax.local_devices()[0].memory_stats():
        print(f"{janus}: at most {stats['peak_bytes_in_use'] / 2**30:.2f} GiB of the device so far")
    return drawn, answers


before, said_before = look()
gc.collect()  # its weights leave the device
after, said_after = look(ADAPTER)

# %% [markdown]
# Each row: the picture itself (white for a prompt of your own), two drawn before, two after.

# %%
size = before[0].size
white = Image.new("RGB", size, "white")
tiles = []
for row, prompt in enumerate(prompts):
    print(f"{row + 1}: {prompt}")
    original = ImageOps.fit(originals[row], size) if row < len(originals) else white
    tiles += [original, *before[2 * row : 2 * row + 2], *after[2 * row : 2 * row + 2]]
sheet = grid(tiles, columns=5)
sheet

# %%
for i, (one, other) in enumerate(zip(said_before, said_after, strict=True)):
    row, question = divmod(i, len(QUESTIONS))
    print(f"{row + 1}: {QUESTIONS[question]}\n  before: {one}\n  after:  {other}")

# %% [markdown]
# ## Take it with you
#
# The adapter, some 60 MB of 1B, is in PEFT's layout: `Janus.load(MODEL, adapter=ADAPTER)`, or `peft` with transformers. Merged
# into the weights it is a model of its own, here in the format of transformers (`official` for deepseek-ai/Janus,
# `janus_jax` for this project).

# %%
EXPORT = os.environ.get("JANUS_EXPORT", "hf")
MERGED = Path(os.environ.get("JANUS_MERGED", "models/merged"))

run(
    *("convert_torch_weights.py", "--src", MODEL, "--adapter", ADAPTER),
    *("--to", EXPORT, "--dst", MERGED),
)
archive = shutil.make_archive(str(RUN / "adapter"), "zip", ADAPTER)
print(archive)
