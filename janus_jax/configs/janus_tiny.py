"""A small Janus that learns everything from nothing, on two CPU cores, in minutes.

    python train.py --config configs/janus_tiny.py          # aims at a quarter of an hour
    python train.py --config configs/janus_tiny.py:smoke    # under a minute; its scores mean nothing
    python train.py --config configs/janus_tiny.py:long     # four times as long
    python train.py --config configs/janus_tiny.py:stage2   # one stage alone

Stage 0 makes the parts that the paper takes ready-made; stages 1 to 3 have the paper's freeze sets, ratios
and warm-up shape, with rates and steps scaled to the size. What is sampled is an average of the weights:
it does for a constant rate what a decay would do.
"""

from ml_collections import ConfigDict

from janus_jax.configs import common, emoji

# Weights of the kinds of scene: the harder to learn, the more.
DRAW = {
    "single_object": 0.5,
    "two_object": 2.0,
    "counting": 3.0,
    "colors": 1.0,
    "position": 2.5,
    "color_attr": 3.0,
}

# What all but stage 1 say about pictures: more than a caption, and in conversations.
TALK = {"detailed": 0.5, "questions": 3, "chat": True, "drawings": 0.0}

CFG_WEIGHTS = (1.0, 1.25, 1.5, 2.0)  # guidance that the last stage chooses from


def get_config(arg: str = "") -> ConfigDict:
    config = common.base("janus_tiny", preset="janus-tiny")
    config.tokenizer = "builtin"
    config.builtin_tokenizer = emoji.tokenizer(emoji.WORLD)
    # A cooler draw is right as often as strong guidance, which adds objects.
    config.processor.update(cfg_weight=1.25, temperature=0.5)
    config.policy.update(compute_dtype="float32", remat="none")
    config.data.update(row=dict(tokens=160, targets=160, und_images=4, gen_images=3), threads=1)
    config.stages = dict(
        stage0_vq=common.stage(
            "vq",
            "vq",
            steps=2300,
            learning_rate=3e-3,
            warmup_steps=50,
            batch_size=16,
            ema_decay=0.99,
            sources=emoji.sources(
                ("pictures",),
                kinds={"dense": 6.0, "mixed": 3.0, "single_object": 0.5, "counting": 0.5},
            ),
            options=dict(
                commitment=0.25,
                warmup=150,
                revive_every=25,
                fixed_from=1900,
                revive_below=0.05,
                redundant_above=0.98,
                merge_above=0.985,
            ),
        ),
        stage0_siglip=common.stage(
            "siglip",
            "siglip",
            steps=250,
            # Higher ones erase what single patches show, though pictures find their texts all the same.
            learning_rate=5e-4,
            warmup_steps=20,
            batch_size=96,
            ema_decay=0.99,
            sources=emoji.sources(
                ("pairs",),
                kinds={"mixed": 4.0, "counting": 1.0, "color_attr": 1.0, "position": 1.0},
            ),
            options=dict(text_length=40),
        ),
        # Every circuit that reading a picture and drawing one need, learnt from words: matching, copying,
        # counting, places. Stage 1 then has little more to do than to translate.
        stage0_lm=common.stage(
            "janus",
            "lm",
            steps=700,
            learning_rate=1e-3,
            warmup_steps=20,
            batch_size=8,
            ratio=(0.0, 1.0, 0.0),
            ema_decay=0.98,
            sources=emoji.sources(
                kinds=DRAW,
                **{**TALK, "describe": 0.4, "questions": 6, "yes_no": 0.6, "drawings": 0.2},
            ),
        ),
        stage1=common.stage(
            "janus",
            "stage1",
            steps=500,
            learning_rate=5e-3,
            warmup_steps=10,
            batch_size=8,
            ratio=(1.0, 0.0, 3.0),
            ema_decay=0.98,
            sources=emoji.sources(
                kinds={"single_object": 1.5, "colors": 1.0},
                detailed=0.5,
                describe=1.0,
            ),
        ),
        stage2=common.stage(
            "janus",
            "stage2",
            steps=1900,
            learning_rate=2e-3,
            warmup_steps=30,
            batch_size=8,
            ratio=(2.0, 3.0, 5.0),
            ema_decay=0.99,
            sources=emoji.sources(kinds=DRAW, **TALK, describe=0.4, yes_no=0.4),
        ),
        stage3=common.stage(
            "janus",
            "stage3",
            steps=1600,
            learning_rate=7e-4,
            warmup_steps=0,
            batch_size=8,
            ratio=(5.0, 1.0, 4.0),
            ema_decay=0.99,
            sources=emoji.sources(
                kinds=DRAW, **{**TALK, "detailed": 0.3, "describe": 0.2, "yes_no": 0.3}
            ),
        ),
    )
    config.stage_order = (
        "stage0_vq",
        "stage0_siglip",
        "stage0_lm",
        "stage1",
        "stage2",
        "stage3",
    )
    # One step that is not finite is a mistake in a network of this size.
    config.log.update(save_every=250, log_every=10, sample_every=250, stop_after_skips=1)
    config.eval.update(after_stages=True, benchmarks=emoji.benchmarks(emoji.WORLD, 50, CFG_WEIGHTS))
    if arg == "smoke":
        return _smoke(config)
    if arg == "long":
        return _long(config)
    return common.pick(config, arg, ("smoke", "long"))


def _smoke(config: ConfigDict) -> ConfigDict:
    config.name = "janus_tiny_smoke"
    # A smaller network, because most of a minute's run is compiling it.
    config.model.overrides = dict(
        siglip=dict(layers=1),
        vq=dict(ch=16),
        decoder=dict(width=64, ffw=128, layers=1, head_dim=16),
    )
    for name in config.stage_order:
        config.stages[name].update(steps=6, warmup_steps=0 if name == "stage3" else 2)
    config.stages.stage0_vq.options.update(warmup=2, revive_every=2, fixed_from=5)
    config.log.update(save_every=6, log_every=3, sample_every=0)
    config.eval.update(benchmarks=emoji.benchmarks(emoji.WORLD, 2), after_stages=False)
    config.eval.note = "smoke run: a few steps a stage, the scores mean nothing"
    return config


def _long(config: ConfigDict) -> ConfigDict:
    config.name = "janus_tiny_long"
    for name in config.stage_order:
        config.stages[name].steps *= 4
    config.stages.stage0_vq.options.fixed_from *= 4
    config.log.update(save_every=1000, sample_every=1000)
    return config
