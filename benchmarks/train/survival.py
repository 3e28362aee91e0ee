"""Whether a run that is killed, stopped or finds a damaged checkpoint goes on with the same losses.

    python -m benchmarks.train.survival --dir /tmp/survival --json out.json
    python -m benchmarks.train.survival --dir /tmp/survival --whole --kills 10 --terms 4 --damages 4

A stage is started again and again in one directory, saved every 3 steps (in the background). It is the loop of
a stage with its checkpoints, log, signals and a shuffled Grain data set, around a network of three small
matrices with AdamW and an average, in processes that are forked where everything is imported; with --whole,
train.py with stage 2 of the smoke config, of which a start takes ten seconds of two CPUs.

Kills are SIGKILL, at a random moment: one in five from the start of the process on, the others after its first
step. After each, the lines of metrics.jsonl are compared with all that were ever there; at the end a run that
nobody disturbed is made as long, and every loss and gradient norm must be its, value for value. SIGTERM must end
a process with exit code 0 and the step that it said as the newest checkpoint. Damage is done to the newest
checkpoint of a copy of a run, which then goes on for some steps: they must be those of the undisturbed run, from
the checkpoint before, with one line.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import optax

from janus_jax.errors import RunError, UserError
from janus_jax.parallel import make_mesh
from janus_jax.run.claim import lock
from janus_jax.signals import StopSignals
from janus_jax.training import MetricsLog, Stage, Stopped, make_optimizer, run_stage

ROOT = Path(__file__).resolve().parents[2]
STAGE, SAVE_EVERY = "stage2", 3
SETTINGS = {
    "stage_order": (STAGE,),
    f"stages.{STAGE}.batch_size": 2,
    "log.save_every": SAVE_EVERY,
    "log.log_every": 1,
    "eval.benchmarks": (),
    "mesh.fsdp": 1,
}
Line = tuple[float, float]


class Process:
    """A process that trains, forked or started, with its stderr in a file."""

    def __init__(self, run: Path, steps: int, whole: bool):
        self._said = run.with_name(f"{run.name}.stderr")
        self._code: int | None = None
        with self._said.open("w") as file:
            if whole:
                self.pid = subprocess.Popen(_command(run, steps), cwd=ROOT, stderr=file).pid
                return
            sys.stdout.flush()
            self.pid = os.fork()
            if self.pid == 0:
                os.dup2(file.fileno(), 2)
                os._exit(_train_small(run, steps))

    def poll(self) -> int | None:
        return self._reap(os.WNOHANG)

    def end(self, number: signal.Signals | None = None) -> tuple[int, str]:
        """(exit code, stderr) when it has ended, after a signal if there is one."""
        if number is not None and self.poll() is None:
            os.kill(self.pid, number)
        while self._reap(0) is None:
            pass
        return self._code, self._said.read_text()

    def _reap(self, options: int) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


def _command(run: Path, steps: int) -> list[str]:
    flags = [f"--config.{k}={v!r}" for k, v in SETTINGS.items()]
    command = [sys.executable, "train.py", "--config=configs/janus_tiny.py:smoke", "--quiet"]
    return [*command, *flags, f"--config.stages.{STAGE}.steps={steps}", f"--workdir={run}"]


def _train_small(run: Path, steps: int) -> int:
    """Trains the small network in this process, as `janus_jax.run` and the command would; the exit code."""
    stage = Stage(
        name=STAGE,
        objective="janus",
        trainable=("vq",),
        steps=steps,
        learning_rate=1e-2,
        warmup_steps=5,
        batch_size=8,
        ratio=(1.0, 1.0, 1.0),
        ema_decay=0.9,
    )
    run.mkdir(exist_ok=True)
    (run / "config.json").touch()  # or the lock would take it for something else
    keys = jax.random.split(jax.random.key(0), 3)
    params = {"vq": {f"w{i}": jax.random.normal(k, (48, 48)) / 7 for i, k in enumerate(keys)}}
    data = grain.MapDataset.range(500).shuffle(seed=3).repeat().batch(8).to_iter_dataset()
    log, signals = MetricsLog(run), StopSignals()
    with lock(run), signals, signals.deferred():
        try:
            run_stage(
                stage,
                _small_step(stage),
                params,
                iter(grain.experimental.ThreadPrefetchIterDataset(data, prefetch_buffer_size=2)),
                run / "checkpoints" / STAGE,
                log,
                make_mesh(devices=jax.devices()[:1]),
                save_every=SAVE_EVERY,
                log_every=1,
                quiet=True,
                stop=lambda: signals.requested,
            )
        except Stopped as stopped:
            print(stopped, file=sys.stderr, flush=True)
        except (UserError, RunError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return 1
    return 0


def _small_step(stage: Stage) -> Callable:
    optimizer = make_optimizer(stage)

    def loss_of(tree, numbers):
        x = jnp.sin(numbers[:, None] * jnp.arange(1, 49) / 50.0)
        y = x
        for name in sorted(tree["vq"]):
            y = jnp.tanh(y @ tree["vq"][name])
        return jnp.mean((y - jnp.roll(x, 1, axis=1)) ** 2)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, numbers):
        loss, grads = jax.value_and_grad(loss_of)(state.trainable, numbers)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ema = optax.incremental_update(trainable, state.ema, 0.1)
        new = state.replace(step=state.step + 1, trainable=trainable, opt_state=opt_state, ema=ema)
        norm = optax.global_norm(grads)
        return new, {"loss": loss, "grad_norm": norm, "tokens": jnp.float32(8)}

    return lambda state, frozen, batch, done: step(state, batch)


def lines(run: Path) -> dict[int, Line]:
    """Step -> (loss, gradient norm) of metrics.jsonl; a step that is there twice is an error."""
    path, found = run / "metrics.jsonl", {}
    for text in path.read_text().split("\n") if path.exists() else ():
        with contextlib.suppress(ValueError):  # a kill may cut the last line
            record = json.loads(text)
            assert record["step"] not in found, f"step {record['step']} is there twice"
            found[record["step"]] = (record["loss"], record["grad_norm"])
    assert sorted(found) == list(range(1, len(found) + 1)), "a step is missing"
    return found


def checkpoints(run: Path) -> list[int]:
    directory = run / "checkpoints" / STAGE
    names = [p.name for p in directory.iterdir()] if directory.exists() else []
    return sorted(int(name) for name in names if name.isdecimal())


def disturb(
    run: Path, number: signal.Signals, rng: random.Random, seen: dict[int, Line], whole: bool
) -> dict:
    """Starts the run, ends it with a signal at a random moment, and looks at what is there."""
    before, newest = len(lines(run)), (checkpoints(run) or [0])[-1]
    process, slow = Process(run, 10**6, whole), 4 if whole else 1
    early = number == signal.SIGKILL and rng.random() < 0.2
    if early:
        time.sleep(rng.uniform(0, 3 * slow))
    else:
        while process.poll() is None:
            done = lines(run)
            # What was logged after the checkpoint is dropped first.
            if newest < len(done) and (len(done) != before or before == newest):
                break
            time.sleep(0.005)
        time.sleep(rng.uniform(0, slow))
    code, said = process.end(number)
    stage = run / "checkpoints" / STAGE
    saving = any("tmp" in p.name for p in stage.iterdir()) if stage.exists() else False
    found = lines(run)
    different = [s for s in found if seen.setdefault(s, found[s]) != found[s]]
    result = {
        "signal": number.name,
        "early": early,
        "from": newest,
        "to": len(found),
        "saving": saving,
        "newest": (checkpoints(run) or [0])[-1],
        "code": code,
        "different": different,
    }
    if number == signal.SIGTERM:
        saved = re.search(rf"{STAGE} step (\d+) is saved", said)
        result["right"] = code == 0 and (
            int(saved[1]) == result["newest"] == len(found)
            if saved
            else "stopped by SIGTERM; " in said
        )
    else:
        result["right"] = code == -number and not said.strip()
    if not result["right"]:
        result["said"] = said[-400:]
    result["right"] = result["right"] and not different
    return result


def largest(item: str) -> Callable[[Path], Path]:
    return lambda step: max((step / item).rglob("d/*"), key=lambda p: p.stat().st_size)


def flip(path: Path, rng: random.Random, count: int = 1) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(count):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def damages() -> dict[str, Callable[[Path, random.Random], Any]]:
    """Name -> what is done to the directory of the newest step."""
    params, state = largest("params"), largest("state")
    position = lambda s: next((s / "data").iterdir())
    before = lambda s: s.with_name(str(min(checkpoints(s.parents[2]))))
    return {
        "one bit of the parameters": lambda s, r: flip(params(s), r),
        "one bit of the optimizer's state": lambda s, r: flip(state(s), r),
        "a thousand bits of the parameters": lambda s, r: flip(params(s), r, 1000),
        "a thousand bits of the state": lambda s, r: flip(state(s), r, 1000),
        "one bit of the names of the parameters": lambda s, r: flip(s / "params/_METADATA", r),
        "one bit of the names of the state": lambda s, r: flip(s / "state/_METADATA", r),
        "one bit of the position": lambda s, r: flip(position(s), r),
        "one bit of the checksums": lambda s, r: flip(s / "checksums.json", r),
        "one bit of an index": lambda s, r: flip(s / "params/manifest.ocdbt", r),
        "parameters cut in half": lambda s, r: truncate(params(s)),
        "state cut in half": lambda s, r: truncate(state(s)),
        "position cut in half": lambda s, r: truncate(position(s)),
        "without an array file of the parameters": lambda s, r: params(s).unlink(),
        "without the state": lambda s, r: shutil.rmtree(s / "state"),
        "without the position": lambda s, r: position(s).unlink(),
        "without all": lambda s, r: [shutil.rmtree(s), s.mkdir()],
        "parameters and state swapped": lambda s, r: swap(params(s), state(s)),
        "parameters of the step before": lambda s, r: shutil.copyfile(params(before(s)), params(s)),
        "position of the step before": lambda s, r: shutil.copyfile(
            position(before(s)), position(s)
        ),
        "a copy of the step before under its name": lambda s, r: [
            shutil.rmtree(s),
            shutil.copytree(before(s), s),
        ],
    }


def damage_one(
    run: Path, name: str, harm: Callable, rng: random.Random, wanted: dict[int, Line], whole: bool
) -> dict:
    copy = run.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    older, newest = checkpoints(copy)[-2:]
    harm(copy / "checkpoints" / STAGE / str(newest), rng)
    steps = newest + 4
    code, said = Process(copy, steps, whole).end()
    found = lines(copy)
    used = re.search(rf"step {older} is used instead", said)
    right = code == 0 and bool(used) and len(said.strip().splitlines()) == 1
    right = right and found == {s: wanted[s] for s in range(1, steps + 1)}
    return {"damage": name, "right": right, "said": said.strip().replace(str(copy), "RUN")[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--damages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, required=True, help="is made, and removed afterwards")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--whole", action="store_true", help="train.py and the smoke config")
    args = parser.parse_args()
    args.dir.mkdir(parents=True)
    # For this process, which never touches a device, and for those that it makes.
    settings = {"jax_platforms": "cpu", "jax_compilation_cache_dir": str(args.dir / "programs")}
    settings |= {"jax_persistent_cache_min_compile_time_secs": 0.0}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    os.chdir(ROOT)
    rng, run, seen = random.Random(args.seed), args.dir / "run", {}
    order = [signal.SIGKILL] * args.kills + [signal.SIGTERM] * args.terms
    rng.shuffle(order)
    disturbed, began = [], time.time()
    for i, number in enumerate(order):
        disturbed.append(disturb(run, number, rng, seen, args.whole))
        d = disturbed[-1]
        print(
            f"{i + 1:3} {time.time() - began:6.0f} s  {d['signal']:8} from {d['from']:4} to {d['to']:4}"
            f"{' while saving' if d['saving'] else ''}{'' if d['right'] else f'  WRONG {d}'}",
            flush=True,
        )
    steps = max([*seen, 12]) + 8
    code, said = Process(args.dir / "undisturbed", steps, args.whole).end()
    print(f"undisturbed: {steps} steps, exit code {code} {said.strip()}", flush=True)
    reference = lines(args.dir / "undisturbed")
    unequal = [step for step, line in seen.items() if reference[step] != line]
    base, harmed = args.dir / "base", []
    Process(base, 4 * SAVE_EVERY, args.whole).end()
    for name, harm in list(damages().items())[: args.damages]:
        harmed.append(damage_one(base, name, harm, rng, reference, args.whole))
        print(
            f"{name}: {'right' if harmed[-1]['right'] else 'WRONG'}: {harmed[-1]['said']}",
            flush=True,
        )
    of = collections.Counter(d["signal"] for d in disturbed)
    result = {
        "signals": dict(of),
        "signals_right": sum(d["right"] for d in disturbed),
        "while_saving": sum(d["saving"] for d in disturbed),
        "before_the_first_step": sum(d["to"] == d["from"] for d in disturbed),
        "steps_compared": len(seen),
        "steps_unequal": len(unequal),
        "damages": len(harmed),
        "damages_right": sum(h["right"] for h in harmed),
        "seconds": round(time.time() - began),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps({**result, "runs": disturbed, "harmed": harmed}, indent=1))
    shutil.rmtree(args.dir)
    fine = not unequal and result["signals_right"] == len(order)
    sys.exit(0 if fine and result["damages_right"] == len(harmed) else 1)


if __name__ == "__main__":
    main()
