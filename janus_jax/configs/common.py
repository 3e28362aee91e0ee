"""What all configs share: the fields, and Janus-Pro's Table 2.

Configs are plain data: nothing here imports JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from janus_jax.configs import standin
from janus_jax.errors import UserError, nearest
from janus_jax.freeze_sets import TRAINABLE


def stage(
    objective: str, trainable: str | Sequence[str], sources: dict[str, Any], **fields: Any
) -> ConfigDict:
    """One stage.

    Args:
      objective: which loss.
      trainable: a key of `TRAINABLE`, or patterns of parameter paths (`janus_jax.param_groups`).
      sources: label -> dict(name, task, weight, options) of each source of data.
      **fields: of `janus_jax.training.Stage`.

    Raises:
      UserError: no freeze set of this name.
    """
    if isinstance(trainable, str):
        if trainable not in TRAINABLE:
            raise UserError(
                f"no freeze set {trainable!r} ({', '.join(TRAINABLE)}); patterns come as a tuple."
                + nearest(trainable, TRAINABLE)
            )
        trainable = TRAINABLE[trainable]
    values = dict(
        objective=objective,
        trainable=tuple(trainable),
        ratio=(0.0, 0.0, 0.0),
        warmup_steps=0,
        accumulate=1,
        ema_decay=0.0,
        condition_dropout=0.1,
        options={},
    )
    return ConfigDict({**values, **fields, "sources": sources})


def base(name: str, preset: str) -> ConfigDict:
    """Fields of every config, set for a released model at full size."""
    return ConfigDict(
        dict(
            name=name,
            seed=0,
            only_stage="",  # run this stage alone
            profile="",  # steps to trace, such as "10:15" of those that this process makes in each stage
            model=dict(preset=preset, overrides={}),
            init_from="",  # a model directory to start from, e.g. a converted checkpoint
            init_required=False,  # random numbers are no start: without `init_from` it is an error
            tokenizer="",  # a tokenizer.json, or "builtin": the words of `builtin_tokenizer`; "": of init_from
            builtin_tokenizer=standin.tokenizer(),
            processor=dict(template="deepseek", system_prompt="", cfg_weight=5.0, temperature=1.0),
            policy=dict(
                param_dtype="float32",
                compute_dtype="bfloat16",
                frozen_dtype="float32",  # of weights that a stage does not train
                remat="full",
                attention="auto",
                targets_at_once=0,  # of a row, whose logits exist at a time; 0 for all
                pictures_at_once=0,  # of a row, that pass an encoder at a time; 0 for all
            ),
            mesh=dict(data=1, fsdp=-1, tensor=1),
            data=dict(
                row=dict(tokens=4096, targets=2048, und_images=6, gen_images=7),
                threads=16,
                workers=0,  # processes that read and encode instead of threads, in each process
                streams=1,  # that the rows of a step come from, whatever the number of processes
                lookahead=0,  # sequences that a row is chosen from; 0: first-fit over a batch's rows
                too_long="error",  # or "reject", "truncate_answer": sequences that no row can hold
                max_rejected=0.01,  # share of a source's records that may be bad before the run stops
                manifest="",  # a YAML file of sources, instead of those of the stages
                sources=(),  # the same in a config: dicts
                held_out=0.0,  # share of each source in files that is kept from training, for a loss of its own
            ),
            stage_order=(),
            stages={},
            log=dict(
                save_every=1000,
                save_minutes=0.0,  # also so long after the last checkpoint
                keep=2,  # of the newest checkpoints of a stage
                keep_every=0,  # and those of every so many steps
                keep_best=0,  # and so many with the lowest loss: of held-out data, or else the mean of training
                stop_after_worse=0,  # held-out losses in a row that are no new best end the stage; 0: never
                log_every=10,
                sample_every=1000,  # steps between sample grids and answers; 0: none
                verify=True,
                stop_when_diverged=False,
                peak_tflops=0.0,  # of one device in bfloat16, for MFU; 0: what is known of its kind
                stop_after_skips=5,  # in a row, steps left out as they were not finite
            ),
            eval=dict(
                after_stages=False,
                benchmarks=standin.benchmarks(),
                watch_prompts=(),  # that are drawn while it trains; without them, of records
                watch="",  # a YAML file of prompts, and of questions about pictures, to look at while it trains
                held_out_every=500,  # steps between losses of what is held out; 0: before and after alone
                note="",
            ),
        )
    )


def paper_stages(config: ConfigDict, stage2_steps: int, stage3_steps: int) -> ConfigDict:
    """Janus-Pro, Table 2: rates, warm-ups, batches and ratios; steps by model.

    And what a model of this size needs to fit: released weights are bfloat16, so frozen ones lose nothing.
    """
    config.policy.update(frozen_dtype="bfloat16", targets_at_once=512, pictures_at_once=1)
    # 64 divides all three batches, and is the most processes that each read their own rows.
    config.data.update(streams=64, lookahead=32)
    config.stages.stage1 = stage(
        "janus",
        "stage1",
        steps=20_000,
        learning_rate=1e-3,
        warmup_steps=600,
        batch_size=256,
        ratio=(1.0, 0.0, 3.0),
        sources=standin.sources("stage1"),
    )
    config.stages.stage2 = stage(
        "janus",
        "stage2",
        steps=stage2_steps,
        learning_rate=1e-4,
        warmup_steps=5_000,
        batch_size=512,
        ratio=(2.0, 3.0, 5.0),
        sources=standin.sources("stage2"),
    )
    config.stages.stage3 = stage(
        "janus",
        "stage3",
        steps=stage3_steps,
        learning_rate=4e-5,
        warmup_steps=0,
        batch_size=128,
        ratio=(5.0, 1.0, 4.0),
        sources=standin.sources("stage3"),
    )
    config.stage_order = ("stage1", "stage2", "stage3")
    for name in config.stage_order:
        # Moments as the parameters are; here so that flags can set them.
        config.stages[name].options.optimizer = ConfigDict(dict(mu_dtype="", nu_dtype=""))
    return config


def pick(config: ConfigDict, arg: str, variants: tuple[str, ...] = ()) -> ConfigDict:
    """`file.py:stage2` runs one stage; without it all run in order."""
    known = (*variants, *config.stage_order)
    if arg and arg not in known:
        raise UserError(f"no variant {arg!r} ({', '.join(known)}).{nearest(arg, known)}")
    config.only_stage = arg
    return config
