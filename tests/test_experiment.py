"""From a config to the objects of a run, and what is refused on the way."""

import numpy as np
import pytest
from smoke import STAGES, tiny

from janus_jax.config import PRESETS
from janus_jax.configs import janus_pro_1b
from janus_jax.errors import UserError
from janus_jax.run import batches, build

pytestmark = pytest.mark.heavy

# From a config to objects

UND, TEXT = (f"stages__stage2__sources__{task}" for task in ("und", "text"))


def test_a_config_becomes_an_experiment():
    overrides = {"decoder": {"width": 32}, "scan_layers": True}
    experiment = build(tiny(model__overrides=overrides))
    config = experiment.janus_config
    assert config.scan_layers
    assert config.decoder == PRESETS["janus-tiny"].decoder.replace(
        width=32, vocab_size=config.decoder.vocab_size
    )
    assert config.decoder.vocab_size % 64 == 0
    assert config.decoder.vocab_size >= experiment.processor.tokenizer.vocab_size
    assert experiment.processor.config.num_codes == config.vq.num_codes
    assert [s.name for s in experiment.stages] == list(STAGES)
    assert experiment.stages[3].ratio == (2, 3, 5)
    assert dict(experiment.mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__preset": "janus-tinny"}, "Did you mean 'janus-tiny'"),
        ({"model__overrides": {"decodr": {}}}, "Did you mean 'decoder'"),
        ({"model__overrides": {"decoder": {"widht": 3}}}, "Did you mean 'width'"),
        ({"model__overrides": {"decoder": {"width": -3}}}, "width"),
        ({"model__overrides": {"scan_layers": 3}}, "must be of type bool"),
        ({"tokenizer": "missing/tokenizer.json"}, "missing/tokenizer.json"),
        ({"tokenizer": ""}, "--config.tokenizer"),
        ({f"{UND}__options__world__grid": 5}, "grid"),
        ({f"{UND}__options__world__image_size": 47}, "multiple"),
        ({f"{UND}__options__world__objects": "tini"}, "objects"),
        ({"builtin_tokenizer__name": "emojy"}, "builtin_tokenizer.*Did you mean 'emoji'"),
        ({"builtin_tokenizer__objects": "tini"}, "builtin_tokenizer.*objects"),
        ({"builtin_tokenizer__object": "tiny"}, r"builtin_tokenizer.*'object'"),
        ({"policy__compute_dtype": "float8"}, "compute_dtype"),
        ({"policy__remat": "some"}, "remat"),
        ({"policy__attention": "flash"}, "attention must be one of"),
        ({"policy__attention": "cudnn"}, "attention=cudnn is for GPUs"),
        ({"mesh__data": 16}, "16 devices"),
        ({"stages__stage2__ratio": (0.0, 0.0, 0.0)}, "stage stage2: ratio"),
        ({"stages__stage2__ratio": (1.0, 2.0)}, "stage stage2: ratio"),
        ({"stages__stage2__steps": 0}, "stage stage2: steps"),
        ({f"{UND}__options__kinds": {"jumping": 1.0}}, "jumping"),
        ({f"{UND}__options__kinds": {"counting": 0.0}}, "kinds"),
        ({f"{UND}__options__detailed": 1.5}, r"stage2\.sources\.und: options\.detailed"),
        ({f"{UND}__options__questions": 0}, r"stage2\.sources\.und: options\.questions"),
        ({f"{UND}__name": "emojy"}, "stage2.sources.und: no source 'emojy'.*mean 'emoji'"),
        ({f"{UND}__task": "understanding"}, r"stage2\.sources\.und\.task must be one of und"),
        ({f"{UND}__weight": -1.0}, "source und: weight must be"),
        ({f"{UND}__weight": 0.0}, "no source with a weight for the task 'und'"),
        ({f"{UND}__wieght": 1.0}, r"und: no field 'wieght'\. Did you mean 'weight'"),
        ({f"{UND}__options__descrbe": 1.0}, "no option 'descrbe'. Did you mean 'describe'"),
        ({"stages__stage2__sources": {"und": {"name": "emoji"}}}, r"und\.task is missing"),
        ({"stages__stage2__condition_dropout": 1.5}, r"stage2\.condition_dropout"),
        ({"data__too_long": "drop"}, "data.too_long must be one of error, reject"),
        # Configs of one's own that set what earlier versions had.
        ({"world": {"grid": 3}}, "config.world has moved to"),
        ({"eval__prompts": 3}, "config.eval.prompts has moved to config.eval.benchmarks"),
        ({"stages__stage2__scenes": {}}, "config.stages.stage2.scenes has moved to"),
        (
            {"stage_order": ("stage0_vq",), "stages__stage0_vq__options__fixed_from": 6},
            "fixed_from",
        ),
        ({"stage_order": ("stage0_vq",), "stages__stage0_vq__options__warmup": 5}, "warmup"),
        ({"processor__temperature": -1.0}, "processor.temperature"),
        ({"processor__cfg_weight": float("nan")}, "processor.cfg_weight"),
        ({"processor__template": "llama"}, "llama"),
        ({"log__save_every": 0}, "save_every"),
        ({"log__save_minutes": -1.0}, "save_minutes"),
        ({"log__keep": 0}, r"log\.keep must be an integer >= 1"),
        ({"log__keep_every": -1}, "keep_every"),
        ({"log__keep_best": -1}, "keep_best"),
        ({"log__stop_after_skips": 0}, "stop_after_skips"),
        ({f"{UND}__options__yes_no": 1.5}, "yes_no"),
        ({f"{TEXT}__options__drawings": -0.1}, "drawings"),
        ({"seed": -1}, r"config\.seed must be from 0 to"),
        ({"seed": 2**40}, r"config\.seed must be from 0 to"),
        ({"data__threads": -1}, r"data\.threads"),
        ({"data__row__tokens": 0}, r"data\.row\.tokens"),
        ({"data__row__gen_images": -1}, r"data\.row\.gen_images"),
        ({"log__sample_every": -1}, "sample_every"),
        (
            {"eval__benchmarks": ({"name": "emoji/genevl"},)},
            r"eval\.benchmarks\[0\]: no benchmark 'emoji/genevl'.*Did you mean 'emoji/geneval'",
        ),
        ({"eval__benchmarks": ({"name": "emoji/geneval", "prompts": -1},)}, "prompts must be"),
        ({"eval__benchmarks": ({"name": "emoji/questions", "questions": 1.5},)}, "questions must"),
        (
            {"eval__benchmarks": ({"name": "emoji/geneval", "cfg_weights": (float("nan"),)},)},
            "cfg_weights must be",
        ),
        ({"eval__benchmarks": ({"name": "emoji/geneval", "cfg_weights": 3.0},)}, "cfg_weights"),
        (
            {"eval__benchmarks": ({"name": "emoji/judge", "picture": 3},)},
            "no option 'picture'.*Did you mean 'pictures'",
        ),
        ({"eval__benchmarks": ({"name": "emoji/judge", "world": {"gird": 3}},)}, "mean 'grid'"),
        ({"eval__benchmarks": ({"name": "emoji/judge", "world": {"grid": 5}},)}, "world.grid must"),
        ({"eval__benchmarks": ({"prompts": 3},)}, r"benchmarks\[0\] must be a dict with a name"),
        ({"stage_order": ()}, "stage_order is empty"),
        ({"stage_order": ("stage9",)}, "no stage 'stage9'"),
        ({"stage_order": ("stage1", "stage1")}, "only once"),
        ({"stages__stage2__learning_rate": float("nan")}, r"stage2\.learning_rate"),
        ({"stages__stage2__warmup_steps": -1}, r"stage2\.warmup_steps"),
        ({"stages__stage2__ratio": (float("nan"), 1.0, 1.0)}, r"stage2\.ratio"),
        ({"stages__stage2__trainable": ("decodr",)}, "Did you mean 'decoder'"),
        ({"stages__stage2__options": {"reduction": "mean"}}, "token or sequence"),
        ({"stages__stage0_siglip__options__text_length": 0}, "text_length"),
        (
            {"stage_order": ("stage0_vq",), "stages__stage0_vq__options__revive_every": 0},
            "revive_every",
        ),
        (
            {"stage_order": ("stage0_vq",), "stages__stage0_vq__options": {}},
            "commitment is missing",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(map(str, value)),
)
def test_impossible_configs_are_user_errors(fields, message):
    # `train` builds before it writes anything.
    with pytest.raises(UserError, match=message):
        build(tiny(**fields))


def test_the_released_sizes_need_a_tokenizer_file():
    with pytest.raises(UserError, match=r"janus_pro_1b needs a tokenizer"):
        build(janus_pro_1b.get_config())


def test_every_stage_sees_other_data():
    experiment = build(tiny())
    first = {}
    for stage in experiment.stages[1:]:
        iterator = batches(experiment, stage)
        batch = next(iterator)
        assert len(batch["tokens"]) == stage.batch_size
        first[stage.name] = batch["tokens"]
        iterator.close()
    one, two, three = first.values()
    assert not np.array_equal(one, two) and not np.array_equal(two, three)
    again = batches(build(tiny()), experiment.stages[3])
    np.testing.assert_array_equal(next(again)["tokens"], three)
    again.close()
