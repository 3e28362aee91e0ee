"""What `train.py --aot` and `--plan` answer: what a step needs, on devices that are here or not."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from janus_jax.errors import UserError
from janus_jax.files import write_json
from janus_jax.parallel.topology import Chip, chip_of, topology_devices
from janus_jax.places import check_file
from janus_jax.run import fit
from janus_jax.run.aot import Compiled, compile_step
from janus_jax.run.experiment import Experiment, build
from janus_jax.run.stage_checks import check_batch
from janus_jax.training import Stage
from janus_jax.training.lengths import Lengths, row_content

GIB = 2**30
# Of the chip's rate that published runs of models of this size reach: MaxText's 16B on v5e-256 60.9 %,
# Llama3.1-8B on v6e 45.5 %; Levanter's 6.7B on v3-256 47.3 %, 1.4B 41.7 %.
PUBLISHED_MFU = 0.45


def aot(
    config: ConfigDict, topology: str, codes: bool = False, out: Path | None = None
) -> dict[str, Any]:
    """Compiles the step of each chosen stage for a TPU that need not be here, and prints what it needs.

    Args:
      config: of the run.
      topology: such as "v5e:16x16".
      codes: pictures to generate come as codes.
      out: JSON with the same numbers goes here.

    Raises:
      UserError: it does not fit; the message says what to change. Or bad input.
    """
    chip = chip_of(topology, "--aot")
    _check_out(out)
    devices = topology_devices(topology, "--aot")
    experiment = build(config, devices, weights=False)
    _check_mesh(experiment, len(devices))
    problem, found = "", {}
    stages = _chosen(experiment)
    for stage in stages:
        check_batch(experiment, stage)
    for stage in stages:
        print(f"{stage.name}: compiling for {topology}, some minutes", file=sys.stderr)
        compiled = compile_step(experiment, stage, codes)
        limit = chip.hbm_gib * GIB
        record = _record(experiment, stage, compiled, chip, topology)
        found[stage.name] = record
        print(_text(experiment, stage, record, chip))
        if not record["fits"]:
            change = fit.advice(experiment, stage, compiled.memory, limit)
            problem = problem or f"{stage.name} does not fit {topology}: {change}"
    if out:
        write_json(out, found)
    if problem:
        raise UserError(problem)
    return found


def plan(
    config: ConfigDict, topology: str = "", codes: bool = False, out: Path | None = None
) -> dict[str, Any]:
    """Prints what each chosen stage holds on a device, and the largest batch that fits.

    Args:
      topology: a TPU to plan for; "" for the devices of this machine.

    Raises:
      UserError: not even one row a device fits; the message says what to change.
    """
    _check_out(out)
    devices = topology_devices(topology, "--aot") if topology else jax.devices()
    limit = chip_of(topology).hbm_gib * GIB if topology else fit.device_limit(devices[0])
    experiment = build(config, devices, weights=False)
    _check_mesh(experiment, len(devices))
    problem, found = "", {}
    for stage in _chosen(experiment):
        parts = fit.resident(experiment, stage, codes)
        cache: dict[int, Compiled | None] = {}

        def compile_rows(rows: int, stage: Stage = stage, cache=cache) -> Compiled | None:
            if rows not in cache:
                print(f"{stage.name}: compiling {rows} rows a device", file=sys.stderr)
                smaller = fit.with_rows(stage, experiment, rows)
                cache[rows] = fit.try_compile(experiment, smaller, codes)
            return cache[rows]

        too_large = parts.total > limit  # whatever the rows: nothing has to be compiled
        rows = 0 if too_large else fit.largest_batch(experiment, stage, limit, compile_rows)
        record = {
            "devices": len(devices),
            "device": devices[0].device_kind,
            "limit_gib": limit / GIB,
            "parameters_trained_gib": parts.trained / GIB,
            "parameters_frozen_gib": parts.frozen / GIB,
            "optimizer_gib": parts.optimizer / GIB,
            "average_gib": parts.average / GIB,
            "temporary_gib_by_rows": {
                str(n): c.memory["temporary"] / GIB for n, c in sorted(cache.items()) if c
            },
            "rows_a_device": rows,
            "rows_at_once": rows * fit.row_shards(experiment),
            "batch_size": stage.batch_size,
            "accumulate": _accumulate(experiment, stage, rows),
        }
        found[stage.name] = record
        print(_plan_text(experiment, stage, record))
        if not rows and not problem:
            memory = cache[1].memory if cache.get(1) else {"arguments": parts.total}
            one = fit.with_rows(stage, experiment, 1)
            problem = f"{stage.name} does not fit: {fit.advice(experiment, one, memory, limit)}"
    if out:
        write_json(out, found)
    if problem:
        raise UserError(problem)
    return found


def _check_out(out: Path | None) -> None:
    """Before minutes of compiling."""
    if out is not None:
        check_file(out, "--out")


def _check_mesh(experiment: Experiment, devices: int) -> None:
    if experiment.mesh.size < devices:
        raise UserError(
            f"config.mesh takes {experiment.mesh.size} of the {devices} devices: set one of its axes to -1, "
            "such as --config.mesh.fsdp=-1"
        )


def _chosen(experiment: Experiment) -> Sequence[Stage]:
    """The stage that the config names, or all that train on packed rows."""
    only = experiment.config.only_stage
    stages = [s for s in experiment.stages if s.packed and only in ("", s.name)]
    if not stages:
        raise UserError(
            f"{only or experiment.config.name} does not train on packed rows: choose another stage"
        )
    return stages


def _accumulate(experiment: Experiment, stage: Stage, rows: int) -> int | None:
    """Parts in which `batch_size` fits, as few as possible; None if it does not divide."""
    total, shards = stage.batch_size, fit.row_shards(experiment)
    if not rows or total % shards:
        return None
    of_device = total // shards
    return next(n for n in range(1, of_device + 1) if of_device % n == 0 and of_device // n <= rows)


def _record(
    experiment: Experiment, stage: Stage, compiled: Compiled, chip: Chip, topology: str
) -> dict[str, Any]:
    parts = fit.resident(experiment, stage)
    count = experiment.mesh.size
    record: dict[str, Any] = {
        "topology": topology,
        "chips": count,
        "mesh": dict(experiment.mesh.shape),
        "rows": stage.batch_size,
        "accumulate": stage.accumulate,
        "tokens_a_row": experiment.config.data.row.tokens,
        "attention": experiment.model.attention,
        "remat": experiment.model.remat,
        "compile_seconds": round(compiled.seconds, 1),
        "limit_gib": chip.hbm_gib,
        "memory_gib": {k: round(v / GIB, 3) for k, v in compiled.memory.items()},
        "parameters_gib": round((parts.trained + parts.frozen) / GIB, 3),
        "optimizer_gib": round(parts.optimizer / GIB, 3),
        "fits": fit.fits(compiled.memory, chip.hbm_gib * GIB),
        "collectives": compiled.collectives,
    }
    return record | _projected(experiment, stage, compiled, chip)


def _projected(
    experiment: Experiment, stage: Stage, compiled: Compiled, chip: Chip
) -> dict[str, Any]:
    """A step's time from stated assumptions; links and products do not overlap in the upper one."""
    lengths = Lengths(row=experiment.config.data.row.tokens)
    row = row_content(experiment.janus_config, stage.ratio, lengths)
    flops = fit.step_flops(experiment, stage)(row).model * stage.batch_size
    compute = flops / experiment.mesh.size / (chip.flops * PUBLISHED_MFU)
    moved = sum(x["bytes"] for x in compiled.collectives.values())
    links = moved / (chip.ici_gbytes * 1e9)
    tokens = row.tokens * stage.batch_size
    return {
        "model_flops": flops,
        "assumed_mfu": PUBLISHED_MFU,
        "projected_seconds": compute,
        "links_seconds": links,
        "projected_tokens_a_second": tokens / compute,
    }


def _text(experiment: Experiment, stage: Stage, record: dict[str, Any], chip: Chip) -> str:
    memory, mesh = record["memory_gib"], record["mesh"]
    moved = [
        f"{name} {x['count']} x, {x['bytes'] / GIB:.2f} GiB"
        for name, x in sorted(record["collectives"].items())
    ]
    lines = [
        f"{experiment.config.name} {stage.name}: {record['rows']} rows of {record['tokens_a_row']} on "
        f"{record['topology']}, {record['chips']} chips (data {mesh['data']} x fsdp {mesh['fsdp']} x "
        f"tensor {mesh['tensor']})",
        f"  attention {record['attention']}, remat {record['remat']}, in {record['accumulate']} "
        f"part{'s' * (record['accumulate'] > 1)}; compiled in {record['compile_seconds']:.0f} s",
        f"  memory a chip  {memory['total']:.2f} of {chip.hbm_gib:.0f} GiB"
        f"{'' if record['fits'] else ': DOES NOT FIT'} (parameters {record['parameters_gib']:.2f}, "
        f"optimizer {record['optimizer_gib']:.2f}, temporaries {memory['temporary']:.2f})",
        f"  collectives    of a chip and step: {'; '.join(moved) or 'none'}",
        f"  projected      {record['projected_seconds']:.2f} s a step, "
        f"{record['projected_tokens_a_second']:,.0f} tokens/s, if {chip.flops / 1e12:.0f} TFLOP/s a chip are used "
        f"to {PUBLISHED_MFU:.0%} (published runs of this size: 42 to 61 %) and collectives "
        f"({record['links_seconds']:.2f} s at {chip.ici_gbytes:.0f} GB/s) overlap",
    ]
    return "\n".join(lines)


def _plan_text(experiment: Experiment, stage: Stage, record: dict[str, Any]) -> str:
    of_rows = ", ".join(f"{n}: {x:.2f}" for n, x in record["temporary_gib_by_rows"].items())
    parts, most = record["accumulate"], str(record["rows_a_device"])
    if record["rows_a_device"] == fit.MOST_ROWS:
        most = f"at least {most}"
    if parts is None:
        how = "batch_size does not divide over the mesh"
    else:
        how = f"--config.stages.{stage.name}.accumulate={parts}" if parts > 1 else "at once"
    return "\n".join(
        [
            f"{experiment.config.name} {stage.name} on {record['devices']} x {record['device']}, "
            f"{record['limit_gib']:.1f} GiB each",
            f"  a device holds  parameters {record['parameters_trained_gib']:.2f} GiB trained and "
            f"{record['parameters_frozen_gib']:.2f} frozen, optimizer {record['optimizer_gib']:.2f}, "
            f"average {record['average_gib']:.2f}",
            f"  temporaries     GiB by rows a device: {of_rows or 'none fits'}",
            f"  largest batch   {most} rows a device at once, {record['rows_at_once']} "
            f"in all; the config's {record['batch_size']}: {how if record['rows_a_device'] else 'does not fit'}",
        ]
    )
