"""One picture with a prompt, one with a question: a fine-tune learns them by heart, code by code, word by word."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from janus_jax.adapters import LORA_PARAMS
from janus_jax.emoji import World, caption, question, random_scene, render
from janus_jax.inference import Janus

pytestmark = [pytest.mark.slow, pytest.mark.subprocess]

ROOT = Path(__file__).resolve().parent.parent
DRAWN, ASKED = "drawn/1.png", "asked.png"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """(directory, prompt, question): a manifest of one record to draw and another one to answer."""
    place, rng, world = tmp_path_factory.mktemp("records"), np.random.default_rng(3), World()
    (place / "drawn").mkdir()
    drawn, asked = (random_scene(rng, world, "color_attr") for _ in range(2))
    for name, scene in ((DRAWN, drawn), (ASKED, asked)):
        Image.fromarray(render(scene, world)).save(place / name)
    prompt, about = caption(drawn, rng), question(asked, "colour", rng, world)
    (place / "drawn" / "1.txt").write_text(prompt)
    record = {"image": ASKED, "question": about.text, "answer": about.answer}
    (place / "asked.jsonl").write_text(json.dumps(record))
    sources = [
        dict(name="draw", task="generation", format="imagefolder", path="drawn"),
        dict(name="ask", task="understanding", format="jsonl", path="asked.jsonl"),
    ]
    (place / "m.yaml").write_text(json.dumps({"sources": sources}))
    return place, prompt, about


# With an adapter the loss stays above 1, as the random head is frozen; the best choices are right all the same.
@pytest.mark.parametrize(
    ("recipe", "rate", "steps"), [("full_smoke", 3e-3, 80), ("lora_smoke", 1e-2, 120)]
)
def test_one_record_is_learnt_by_heart(recipe, rate, steps, records, smoke_model, tmp_path):
    place, prompt, about = records
    run = tmp_path / "run"
    flags = [
        f"--config=finetune:{recipe}",
        f"--config.init_from={smoke_model}",
        f"--config.data.manifest={place / 'm.yaml'}",
        "--config.stages.finetune.ratio=(1.0, 0.0, 1.0)",
        f"--config.stages.finetune.learning_rate={rate}",
        f"--config.stages.finetune.steps={steps}",
        f"--config.log.save_every={steps}",
        f"--workdir={run}",
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "train.py", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    wanted, found = {}, {}
    for name, path in (("before", smoke_model), ("after", run)):
        janus = Janus.load(path)
        wanted[name] = janus.encode_image(place / DRAWN)
        codes = janus.sample(prompt, temperature=0, cfg_weight=1).codes[0]
        found[name] = codes, janus.answer(place / ASKED, about.text, max_new_tokens=8)
    # The image tokenizer is frozen, and the picture is no plain one.
    np.testing.assert_array_equal(wanted["after"], wanted["before"])
    assert len(set(wanted["after"])) > 15
    right = lambda name: (found[name][0] == wanted[name]).mean()
    assert right("before") < 0.2 and found["before"][1] != about.answer
    assert right("after") >= 0.95 and found["after"][1] == about.answer
    stage = json.loads((run / "config.json").read_text())["stages"]["finetune"]
    assert (tuple(stage["trainable"]) == LORA_PARAMS) == (recipe == "lora_smoke")
