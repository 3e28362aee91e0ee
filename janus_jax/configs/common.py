"""What all configs share: the fields, and Janus-Pro's Table 2."""

from ml_collections import ConfigDict

from janus_jax.emoji import TASKS
from janus_jax.errors import nearest
from janus_jax.training import TRAINABLE

ALL_TASKS = {t: 1.0 for t in TASKS} | {"mixed": 0.0, "dense": 0.0}


def stage(objective: str, trainable: str, **fields) -> ConfigDict:
    """One stage; `trainable` names a freeze set of `janus_jax.training.TRAINABLE`."""
    scenes = {
        "tasks": dict(ALL_TASKS),
        "detailed": 0.0,
        "describe": 0.3,
        "questions": 1,
        "yes_no": 0.0,
        "chat": False,
        "drawings": 0.3,
        "condition_dropout": 0.1,
    }
    tasks = fields.pop("tasks", {})
    if tasks:
        scenes["tasks"] = {t: float(tasks.get(t, 0.0)) for t in ALL_TASKS}
    scenes |= fields.pop("scenes", {})
    values = dict(
        objective=objective,
        trainable=TRAINABLE[trainable],
        ratio=(0.0, 0.0, 0.0),
        warmup_steps=0,
        ema_decay=0.0,
        options={},
    )
    return ConfigDict({**values, **fields, "scenes": scenes})


def base(name: str, preset: str) -> ConfigDict:
    """Fields of every config, set for a released model at full size."""
    return ConfigDict(
        dict(
            name=name,
            seed=0,
            only_stage="",  # run this stage alone
            model=dict(preset=preset, overrides={}),
            init_from="",  # a model directory to start from, e.g. a converted checkpoint
            tokenizer="",  # a tokenizer.json, or "builtin"
            processor=dict(template="deepseek", system_prompt="", cfg_weight=5.0, temperature=1.0),
            policy=dict(
                param_dtype="float32", compute_dtype="bfloat16", remat="full", attention="xla"
            ),
            mesh=dict(data=1, fsdp=-1, tensor=1),
            world=dict(image_size=384, grid=4, objects="all"),
            data=dict(row=dict(tokens=4096, targets=2048, und_images=6, gen_images=7), threads=16),
            stage_order=(),
            stages={},
            log=dict(
                save_every=1000,
                log_every=10,
                sample_every=1000,
                verify=True,
                stop_when_diverged=False,
            ),
            eval=dict(
                after_stages=False,
                # No prompts: it only gives those of the sample grids.
                benchmarks=(
                    dict(
                        name="emoji/geneval",
                        prompts=0,
                        world=dict(image_size=384, grid=4, objects="all"),
                    ),
                ),
                note="",
            ),
        )
    )


def paper_stages(config: ConfigDict, stage2_steps: int, stage3_steps: int) -> ConfigDict:
    """Janus-Pro, Table 2: rates, warm-ups, batches and ratios; steps by model."""
    config.stages.stage1 = stage(
        "janus",
        "stage1",
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=600,
        batch_size=256,
        ratio=(1.0, 0.0, 3.0),
        tasks={"single_object": 1.0},  # stands for ImageNet's class names
        scenes={"describe": 1.0},
    )
    config.stages.stage2 = stage(
        "janus",
        "stage2",
        steps=stage2_steps,
        learning_rate=1e-4,
        warmup_steps=5_000,
        batch_size=512,
        ratio=(2.0, 3.0, 5.0),
    )
    config.stages.stage3 = stage(
        "janus",
        "stage3",
        steps=stage3_steps,
        learning_rate=4e-5,
        warmup_steps=0,
        batch_size=128,
        ratio=(5.0, 1.0, 4.0),
        scenes={"chat": True, "describe": 0.1},
    )
    config.stage_order = ("stage1", "stage2", "stage3")
    return config


def pick(config: ConfigDict, arg: str, variants: tuple[str, ...] = ()) -> ConfigDict:
    """`file.py:stage2` runs one stage; without it all run in order."""
    known = (*variants, *config.stage_order)
    if arg and arg not in known:
        raise ValueError(f"no variant {arg!r} ({', '.join(known)}).{nearest(arg, known)}")
    config.only_stage = arg
    return config
