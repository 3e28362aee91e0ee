"""One run directory, one writer, one config: the lock, and which changes of the config a run survives."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from janus_jax import checkpoints, gcs
from janus_jax.configs.earlier import upgraded, where_it_went
from janus_jax.errors import UserError, nearest
from janus_jax.files import atomic_write, is_leftover, write_json
from janus_jax.run.experiment import Experiment
from janus_jax.run.files import read_json
from janus_jax.training.optimizer_options import optimizer_options

LOCK, CONFIG, CHANGES, METRICS = ".lock", "config.json", "changes.jsonl", "metrics.jsonl"
ABSENT = "<absent>"

# Which stage to run, and which steps to trace: config.json does not have them.
_OF_THIS_PROCESS = ("only_stage", "profile")
# Fields that change no number of a training, by name or by the section they are in.
_FREE = (
    "name only_stage log eval init_required data.threads data.workers data.max_rejected data.manifest "
    "data.sources policy.remat policy.attention policy.targets_at_once policy.pictures_at_once mesh "
    "processor.cfg_weight processor.temperature"
).split()
# Fields that change numbers, but not what a checkpoint holds: with `--allow_change`, from now on.
_ALLOWABLE = (
    "seed data.row data.held_out data.too_long data.streams data.lookahead policy.compute_dtype"
).split()
_ALLOWABLE_OF_STAGE = (
    "learning_rate warmup_steps batch_size ratio sources condition_dropout options"
).split()
# Their keys are the config's own, so a key that is new is a change, not the field of a newer version.
_OPEN = ("model.overrides", "options", "sources")
# What the config of every version has, and as what; and each of its stages.
_ALWAYS = {
    **dict.fromkeys("name model.preset policy.param_dtype processor.template".split(), str),
    **dict.fromkeys("model.overrides data.row stages log eval mesh".split(), dict),
    **dict.fromkeys("init_from tokenizer".split(), object),
    "seed": int,
    "stage_order": list,
}
_ALWAYS_OF_STAGE = {
    "objective": str,
    **dict.fromkeys("steps batch_size".split(), int),
    "learning_rate": int | float,
    **dict.fromkeys("trainable ratio".split(), list),
    "sources": dict,
}
# Scores that are out of date when one of these has changed.
_SCORED_BY = "eval.benchmarks processor.cfg_weight processor.temperature".split()


@dataclasses.dataclass(frozen=True)
class Change:
    """One field that differs from the run's config: its dotted name, and both values."""

    path: str
    old: Any
    new: Any

    def __str__(self) -> str:
        if self.old == ABSENT:
            return f"config.{self.path} was not there, now {self.new!r}"
        if self.new == ABSENT:
            return f"config.{self.path} was {self.old!r}, now it is not there"
        return f"config.{self.path} was {self.old!r}, now {self.new!r}"


@contextlib.contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """Makes the directory, and holds it for this process until the end, however that comes.

    Raises:
      UserError: another process holds it, it holds something else than a run, or it cannot be written.
    """
    with one_line_errors(run_dir, "read"):
        if run_dir.is_dir():
            check_holds_run(run_dir)
    with one_line_errors(run_dir, "write to"):
        if run_dir.exists() and not run_dir.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is a file", str(run_dir))
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+", encoding="utf-8")
    with file:
        _take(file, run_dir)
        yield


def init_or_verify_run_dir(
    run_dir: Path,
    config: ConfigDict,
    experiment: Experiment,
    allow: tuple[str, ...] = (),
    before_writing: Callable[[list[Change]], None] = lambda changes: None,
    address: Path | None = None,
) -> None:
    """Writes the config and what sampling needs into a locked directory, or checks what is there.

    Args:
      run_dir: locked by this process.
      config: of this run.
      experiment: what `config` became.
      allow: names of fields that may differ from now on, though they change the result.
      before_writing: is given the fields that differ (also appended to changes.jsonl) once they are
        found to be harmless or allowed.
      address: of the run, with its checkpoints, where that is not `run_dir`.

    Raises:
      UserError: the directory holds a run with another config; the message names the field.
    """
    check_allowed(allow, config)
    fields, path, changes = jsonable(config), run_dir / CONFIG, None
    address = address or run_dir
    with one_line_errors(run_dir, "read"):
        if path.exists():
            old = _read_config(path)
            changes = differences(old, fields)
            rules = _ChangeRules(run_dir, address, old, fields, experiment)
            _check_changes(changes, run_dir, rules, allow)
    with one_line_errors(run_dir, "write to"):
        if changes is not None:
            before_writing(changes)
            _record(run_dir, changes, progress(address, list(fields["stage_order"])), allow)
        # The config first: with it, a run killed right here can be started again.
        write_json(path, fields)
        write_json(run_dir / "stages.json", [s.name for s in experiment.stages])
        checkpoints.write_metadata(
            run_dir,
            experiment.janus_config,
            experiment.processor.config.to_dict(),
            experiment.processor.tokenizer.to_json(),
        )


def check_allowed(allow: tuple[str, ...], config: ConfigDict) -> None:
    """Raises UserError for an `--allow_change` of a field that the config does not have."""
    known = _names(jsonable(config))
    for name in allow:
        if name not in known:
            wrong = f"no field {name!r} in the config.{nearest(name, known)}"
            raise UserError(f"--allow_change: {where_it_went(name) or wrong}")


def jsonable(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it, without what is asked of this process alone and no part of the run."""
    fields = json.loads(config.copy_and_resolve_references().to_json_best_effort())
    return {name: value for name, value in fields.items() if name not in _OF_THIS_PROCESS}


def differences(old: Any, new: Any, path: str = "") -> list[Change]:
    """Every field that differs, by name. A weight that is not there is 0."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [Change(path, old, new)]
    missing = 0.0 if path.endswith(".kinds") else ABSENT
    return [
        change
        for key in sorted({*old, *new})
        for change in differences(
            old.get(key, missing), new.get(key, missing), f"{path}.{key}".lstrip(".")
        )
    ]


def outdates_scores(changes: Iterable[Change]) -> bool:
    """Whether scores from before some changes are none of what the config asks for now.

    A field that is new in this version is no change: older runs keep their scores.
    """
    return any(_within(c.path, _SCORED_BY) and c.old != ABSENT for c in changes)


def progress(run_dir: Path, names: list[str]) -> dict[str, int]:
    """Newest saved step of every stage that has one."""
    found = {n: checkpoints.finished_steps(run_dir / "checkpoints" / n) for n in names}
    return {name: steps[-1] for name, steps in found.items() if steps}


def _check_changes(
    changes: list[Change], run_dir: Path, rules: _ChangeRules, allow: tuple[str, ...]
) -> None:
    bad = [(c, reason) for c in changes if (reason := rules.reason(c)) is not None]
    refused = [(c, r) for c, r in bad if not (_within(c.path, allow) and rules.allowable(c))]
    if not refused:
        return
    shown = ", ".join(f"{c}{f' {reason}' if reason else ''}" for c, reason in refused[:3])
    more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
    names = ",".join(c.path for c, _ in refused)
    never = [c.path for c, _ in refused if _within(c.path, allow)]
    way = f"; --allow_change cannot change {', '.join(never)} in a run" if never else ""
    if all(rules.allowable(c) for c, _ in refused):
        way = f"; to change it in this run from its last checkpoint on, add --allow_change={names}"
    raise UserError(
        f"{run_dir} holds the run of another config ({shown}{more}); choose another --workdir{way}"
    )


class _ChangeRules:
    """Which changes of a config leave what a directory holds as good as it was."""

    def __init__(
        self, run_dir: Path, address: Path, old: Mapping, new: Mapping, experiment: Experiment
    ):
        self._run_dir, self._experiment = run_dir, experiment
        self._old, self._new = list(old.get("stage_order", [])), list(new["stage_order"])
        self._steps = {k: v.get("steps") for k, v in new["stages"].items()}
        self._by_steps = {k for run in (old, new) for k, v in run["stages"].items() if _by_steps(v)}
        self._saved = progress(address, list(dict.fromkeys([*self._old, *self._new])))

    def reason(self, change: Change) -> str | None:
        """None for a change that changes no result, else why it is refused ("": it does)."""
        path, parts = change.path, change.path.split(".")
        if _within(path, _FREE) or self._newer_version(change):
            return None
        if path == "init_from":
            return self._init_from(change)
        if path == "tokenizer":
            file = self._run_dir / "tokenizer.json"
            same = file.is_file() and file.read_text(encoding="utf-8").rstrip() == (
                self._experiment.processor.tokenizer.to_json().rstrip()
            )
            return None if same else ""
        if path == "stage_order":
            return self._order()
        if parts[0] == "stages":
            if not (parts[1] in self._old and parts[1] in self._new):
                return None  # what it does not train, or `stage_order` has the last word
            if parts[2] in ("accumulate", "epochs"):  # of these, what counts are the steps
                return None
            if parts[2:] == ["steps"]:
                return self._count(parts[1], change)
        return ""

    def allowable(self, change: Change) -> bool:
        parts = change.path.split(".")
        if parts[0] != "stages" or len(parts) < 3:
            return _within(change.path, _ALLOWABLE)
        name, field = parts[1], parts[2]
        allowable = field in _ALLOWABLE_OF_STAGE
        if field == "steps" and name in self._by_steps:
            allowable = not self._begun_after(name)
        # A text's length is the size of a parameter; what is done cannot be done otherwise.
        done, steps = self._saved.get(name, 0), self._steps.get(name, 0)
        if done and parts[2:4] == ["options", "lora"]:
            return False  # the checkpoints have an adapter of that rank on those layers
        return allowable and parts[-1] != "text_length" and done < steps

    def _newer_version(self, change: Change) -> bool:
        """A field that this version has and the run's did not; its default is what was done before."""
        if change.path == "policy.frozen_dtype":
            return change.old == ABSENT and change.new == "float32"  # it was always that
        if change.path == "data.held_out":
            return change.old == ABSENT and not change.new
        if change.path.endswith(".options.optimizer") and change.old == ABSENT:
            return isinstance(change.new, dict) and not any(change.new.values())
        section, _, _ = change.path.rpartition(".")
        is_open = section == "stages" or any(
            section == name or f".{section}.".find(f".{name}.") >= 0 for name in _OPEN
        )
        return change.old == ABSENT and not is_open

    def _init_from(self, change: Change) -> str | None:
        old, new = str(change.old or ""), str(change.new or "")
        if old and new and os.path.realpath(old) == os.path.realpath(new):
            return None
        if self._saved and (not new or (old and not gcs.absolute(old).exists())):
            return None  # nothing of it is read any more
        return ""

    def _order(self) -> str | None:
        shorter, longer = sorted((self._old, self._new), key=len)
        if longer[: len(shorter)] != shorter:
            return ""
        gone = [n for n in self._old if n not in self._new and n in self._saved]
        return f"though {gone[0]} has begun" if gone else None

    def _count(self, name: str, change: Change) -> str | None:
        done = self._saved.get(name, 0)
        if isinstance(change.new, int) and change.new < done:
            return f"though {done} are done"
        if done and (later := self._begun_after(name)):
            return f"though {later[0]} has begun from where {name} ended"
        if done and name in self._by_steps:
            return f"though the rate of the {done} that are done went by them"
        return None

    def _begun_after(self, name: str) -> list[str]:
        return [n for n in self._new[self._new.index(name) + 1 :] if n in self._saved]


def _by_steps(stage: Mapping[str, Any]) -> bool:
    """Whether the rate of a stage's step depends on how many it has."""
    try:
        return optimizer_options(stage.get("options") or {}).depends_on_steps
    except (UserError, TypeError, ValueError, AttributeError):
        return False  # of another version: it differs by more than its steps


def _within(path: str, names: tuple[str, ...] | list[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _names(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in fields.items():
        found.append(f"{prefix}{key}")
        if isinstance(value, dict):
            found += _names(value, f"{prefix}{key}.")
    return found


def _record(
    run_dir: Path, changes: list[Change], done: Mapping[str, int], allow: tuple[str, ...]
) -> None:
    """Before the config itself, so that no change is ever missing."""
    if not changes:
        return
    record = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "at": done,
        "changes": {c.path: [c.old, c.new] for c in changes},
        "allowed": [c.path for c in changes if _within(c.path, allow)],
    }
    path = run_dir / CHANGES
    before = path.read_bytes() if path.exists() else b""
    # After half a line, which a kill may have left, a new one.
    gap = b"\n" if before and not before.endswith(b"\n") else b""
    atomic_write(path, before + gap + json.dumps(record).encode() + b"\n")
    for change in changes:
        if change.path in record["allowed"] or change.old == ABSENT:
            print(f"changed in this run: {change}", file=sys.stderr)


def check_holds_run(run_dir: Path) -> None:
    """Raises UserError if something is in there, and no run; what a full disk or a kill left of one is no
    thing."""
    names = {p.name for p in run_dir.iterdir() if not is_leftover(p)} - {LOCK}
    if not names or CONFIG in names:
        return
    if any((run_dir / "checkpoints").glob("*/*/params")) or {"stages.json", METRICS} <= names:
        raise UserError(
            f"{run_dir} holds a run whose {CONFIG} is missing: put it back from a copy, or choose another "
            f"--workdir, with --config.init_from={run_dir} to build on it"
        )
    raise UserError(f"{run_dir} is not empty and holds no run; choose another --workdir")


def _read_config(path: Path) -> dict[str, Any]:
    """The config of a run, with the parts that every version wrote.

    Raises:
      UserError: it is damaged. What is absent would otherwise count as new in this version.
    """
    config = upgraded(read_json(path))
    wrong = _wrong(config, _ALWAYS)
    if not wrong:
        order = config["stage_order"]
        if not order or not all(isinstance(name, str) for name in order):
            wrong = [f"stage_order is {order!r}"[:80]]
    if not wrong:
        wrong = _wrong(config["stages"], dict.fromkeys(order, dict), "stages.")
        for name in order if not wrong else ():
            wrong += _wrong(config["stages"][name], _ALWAYS_OF_STAGE, f"stages.{name}.")
    if wrong:
        raise UserError(
            f"{path} is damaged ({', '.join(wrong[:3])}): put it back from a copy, or begin in another "
            f"--workdir with --config.init_from={path.parent}"
        )
    return config


def _take(file: Any, run_dir: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = " ".join(file.read().split()) or "another process"
        raise UserError(
            f"{run_dir} is in use by another run ({holder}): wait for it, or choose another --workdir"
        ) from None
    except OSError as error:
        print(
            f"warning: {run_dir} cannot be locked ({error.strerror}): do not start a second run in it",
            file=sys.stderr,
        )
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def _wrong(fields: Mapping[str, Any], kinds: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What of `fields` is not of its kind, in words, by dotted name."""
    found = []
    for name, kind in kinds.items():
        value: Any = fields
        for part in [name] if prefix else name.split("."):
            value = value.get(part, ABSENT) if isinstance(value, dict) else ABSENT
        if value == ABSENT or not isinstance(value, kind):
            found.append(f"{prefix}{name} is {'missing' if value == ABSENT else repr(value)[:40]}")
    return found


@contextlib.contextmanager
def one_line_errors(run_dir: Path, doing: str) -> Iterator[None]:
    """Turns what the system says about an unusable place into one line; `doing`: "read" or "write to"."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"cannot {doing} the run directory {run_dir}: {error.strerror or error} "
            f"({error.filename}); make it possible, or choose another --workdir"
        ) from error
