"""The tiny recipe grown for one GPU: 128-pixel scenes on a 4 x 4 grid with all 814 sprites.

    python train.py --config configs/janus_small.py

Not yet measured: its steps and rates are scaled from `janus_tiny`, not tuned.
"""

from ml_collections import ConfigDict

from janus_jax.configs import common, emoji, janus_tiny

WORLD = dict(image_size=128, grid=4, objects="all")


def get_config(arg: str = "") -> ConfigDict:
    config = janus_tiny.get_config()
    config.name = "janus_small"
    config.model.preset = "janus-small"
    config.policy.remat = "none"
    config.builtin_tokenizer = emoji.tokenizer(WORLD)
    config.data.update(row=dict(tokens=1024, targets=512, und_images=6, gen_images=3), threads=8)
    sizes = dict(
        stage0_vq=(40_000, 64, 4e-4),
        stage0_siglip=(10_000, 512, 1e-3),
        stage0_lm=(4_000, 64, 1e-3),
        stage1=(4_000, 64, 1e-3),
        stage2=(40_000, 64, 6e-4),
        stage3=(10_000, 64, 2.4e-4),
    )
    for name, (steps, batch_size, rate) in sizes.items():
        stage = config.stages[name]
        stage.update(steps=steps, batch_size=batch_size, learning_rate=rate, ema_decay=0.999)
        stage.warmup_steps = 0 if name == "stage3" else steps // 40
        for source in stage.sources.values():
            source.options.world = WORLD
    config.stages.stage0_vq.options.update(warmup=2_000, revive_every=200, fixed_from=34_000)
    # A multi-word name makes a longer caption; sixteen cells make a longer map.
    config.stages.stage0_siglip.options.text_length = 64
    config.log.update(save_every=2_000, log_every=20, sample_every=2_000, stop_after_skips=5)
    config.eval.benchmarks = emoji.benchmarks(WORLD, 200, janus_tiny.CFG_WEIGHTS)
    return common.pick(config, arg)
