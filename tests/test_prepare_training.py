"""Runs from the original files, from prepared pictures and from codes have the same losses."""

import json

import jax
import pytest
from prepare_files import make_sources
from short_run import start

from janus_jax.checkpoints import save_model
from janus_jax.configs import janus_tiny
from janus_jax.data_tools.preparation import Options, prepare
from janus_jax.models import init_params
from janus_jax.processing import build_word_tokenizer
from janus_jax.run import build


@pytest.mark.slow
def test_losses_are_equal_value_for_value(tmp_path):
    pytest.importorskip("array_record")
    words = ["a red green dog car cat what is it ? no on the left"]
    (tmp_path / "tokenizer.json").write_text(build_word_tokenizer(words).to_json())
    config = janus_tiny.get_config("smoke")
    config.tokenizer = str(tmp_path / "tokenizer.json")
    experiment = build(config)
    params = jax.device_get(
        jax.jit(lambda key: init_params(experiment.model, key))(jax.random.key(0))
    )
    processor = experiment.processor
    about = (processor.config.to_dict(), processor.tokenizer.to_json())
    save_model(tmp_path / "model", experiment.janus_config, *about, params)
    manifests = [make_sources(tmp_path / "data", 30)]
    for codes in (False, True):
        out = tmp_path / f"prepared_{codes}"
        prepare(Options(manifests[0], str(tmp_path / "model"), out, codes, quiet=True))
        manifests.append(out / "manifest.yaml")
    found = []
    for number, manifest in enumerate(manifests):
        workdir = tmp_path / f"run{number}"
        options = (f"config.data.manifest={manifest}", f"config.init_from={tmp_path / 'model'}")
        options += (f"config.tokenizer={config.tokenizer}",)
        process = start(workdir, *(f"--{option}" for option in options))
        _, said = process.communicate()
        assert process.returncode == 0, said
        rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        names = ("step", "loss", "loss_und", "loss_text", "loss_gen", "grad_norm")
        found.append([[row[name] for name in names] for row in rows])
    original, pixels, codes = found
    assert len(original) == 14 and all(row[2] and row[3] and row[4] for row in original[:1])
    assert pixels == original
    assert codes == original
