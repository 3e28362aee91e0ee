"""Drawing a set of prompts into a folder that a scorer reads: in batches, and again from where a kill ended it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from janus_jax import places, untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.benchmark import Predictor
from janus_jax.evaluation.generation.layouts import Layout, layout_name, make_layout
from janus_jax.evaluation.generation.prompts import Prompt, PromptSet
from janus_jax.files import read_json, write_json

RUN_FILE = "run.json"
FORMAT = 1
Progress = Callable[[int, int], None]  # (pictures that are there, pictures in all)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What is in a folder after `draw`.

    Attributes:
      directory, layout: where, and in which form.
      pictures: in all.
      drawn: by this call; the others were there.
    """

    directory: Path
    layout: str
    pictures: int
    drawn: int


def draw(
    predictor: Predictor,
    prompts: PromptSet,
    directory: str | Path,
    samples: int = 4,
    cfg_weight: float = 5.0,
    temperature: float = 1.0,
    seed: int = 0,
    *,
    layout: str | None = None,
    model: str = "",
    batch: int = 16,
    progress: Progress | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> Drawing:
    """Draws `samples` pictures of each prompt, those that are not there already.

    The defaults are the setting with which GenEval's numbers of the Janus-Pro paper have been reproduced: 4
    samples, guidance 5, temperature 1, the prompts as they are. Sample i of a prompt is drawn with a seed that
    is a function of (`seed`, which of several equal prompts it is, i) alone; a predictor whose pictures depend
    on prompt and seed alone (`janus_jax.Janus` does) draws the same pictures in any batches, after any number
    of kills.

    Args:
      predictor: `draw(texts, seed=, cfg_weight=, temperature=, ...)` -> uint8 [len(texts), h, w, 3].
      prompts: `prompt_set("geneval")`, ...; with `.spread(n)` only some of them.
      directory: made if need be; `run.json` in it says how the pictures were drawn.
      samples: pictures of each prompt.
      cfg_weight, temperature: of the sampling.
      seed: 0 to 2**32 - 1.
      layout: a name of `LAYOUTS`; None takes the one of the set.
      model: what draws, such as its path; for `run.json`, and pictures of another are refused.
      batch: prompts at once.
      progress: called with (pictures that are there, pictures in all), at the start and after each batch.
      sampling: further settings of `predictor.draw`, such as {"top_k": 100}.

    Returns:
      See `Drawing`.

    Raises:
      UserError: a bad argument; the folder has pictures of other settings; or the predictor returns no such
        pictures.
    """
    samples = _whole("samples", samples)
    batch = _whole("batch", batch)
    if "://" in str(directory):
        raise UserError(
            f"pictures are drawn into a directory of this machine, not into {untrusted.shown(directory)}: "
            "the scorers read files"
        )
    directory = Path(directory)
    settings = {
        "format": FORMAT,
        "layout": layout_name(layout, prompts),
        "prompt_set": prompts.name,
        "prompt_sha256": prompts.fingerprint,
        "model": str(model),
        "samples": samples,
        "cfg_weight": _number("cfg_weight", cfg_weight),
        "temperature": _number("temperature", temperature),
        "seed": _seed(seed),
        "sampling": _further(sampling or {}),
    }
    place = make_layout(layout, directory, prompts, samples)
    places.check_directory(directory, "pictures in", [RUN_FILE])
    _check_settings(directory / RUN_FILE, settings)
    # Before anything else is there: without it, what is there is a stranger's.
    directory.mkdir(parents=True, exist_ok=True)
    write_json(
        directory / RUN_FILE,
        settings
        | {
            "prompts_of_set": prompts.total,
            "prompts_drawn": len(prompts),
            "prompts": {prompt.key: prompt.text for prompt in prompts.prompts},
        },
    )
    place.start()
    for prompt in prompts.prompts:
        place.prepare(prompt)
    missing = {prompt.number: place.missing(prompt) for prompt in prompts.prompts}
    todo = [prompt for prompt in prompts.prompts if missing[prompt.number]]
    total = samples * len(prompts)
    kept = done = total - sum(map(len, missing.values()))
    if progress:
        progress(done, total)
    options = {"cfg_weight": settings["cfg_weight"], "temperature": settings["temperature"]}
    options |= settings["sampling"]
    for start in range(0, len(todo), batch):
        part = todo[start : start + batch]
        for sample in range(samples):
            wanted = [prompt for prompt in part if sample in missing[prompt.number]]
            for chosen_seed, group in _by_seed(wanted, settings["seed"], sample):
                _draw_group(predictor, place, group, sample, options | {"seed": chosen_seed})
                done += len(group)
                if progress:
                    progress(done, total)
    return Drawing(directory, settings["layout"], total, done - kept)


def seed_of(seed: int, occurrence: int, sample: int) -> int:
    """The seed, 0 to 2**32 - 1, of a sample of the prompt that is the `occurrence`-th with its text, from 0."""
    return int(np.random.SeedSequence((seed, occurrence, sample)).generate_state(1)[0])


def read_run(directory: str | Path) -> dict[str, Any]:
    """How the pictures of a folder were drawn: what `draw` wrote into its `run.json`.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    return read_json(Path(directory, RUN_FILE), dict, "draw into another directory")


def drawing_of(directory: str | Path) -> dict[str, Any]:
    """The settings in the `run.json` of a folder, by which results over it know their pictures; {} without one."""
    if not untrusted.is_file(Path(directory, RUN_FILE)):
        return {}
    run = read_run(directory)
    names = ("prompt_sha256", "model", "samples", "cfg_weight", "temperature", "seed", "sampling")
    return {name: run.get(name) for name in names}


def _by_seed(prompts: Sequence[Prompt], seed: int, sample: int) -> list[tuple[int, list[Prompt]]]:
    """Prompts that one call can draw: nearly always all of them, as few sets have a text twice."""
    groups: dict[int, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.occurrence, []).append(prompt)
    return [(seed_of(seed, i, sample), group) for i, group in sorted(groups.items())]


def _draw_group(
    predictor: Predictor,
    place: Layout,
    prompts: Sequence[Prompt],
    sample: int,
    options: Mapping[str, Any],
) -> None:
    try:
        pictures = np.asarray(predictor.draw([prompt.text for prompt in prompts], **options))
    except UserError as error:  # such as a prompt that is too long
        raise UserError(f"prompts {prompts[0].key} to {prompts[-1].key}: {error}") from error
    sound = pictures.dtype == np.uint8 and pictures.ndim == 4 and pictures.shape[-1] == 3
    if not sound or len(pictures) != len(prompts) or 0 in pictures.shape:
        raise UserError(
            f"the predictor must draw uint8 [{len(prompts)}, height, width, 3] for {len(prompts)} prompts, not "
            f"{pictures.dtype} {list(pictures.shape)}"
        )
    for prompt, picture in zip(prompts, pictures, strict=True):
        place.put(prompt, sample, picture)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if `path` is of a drawing with other settings, or others have put pictures there."""
    if not untrusted.is_file(path):
        directory = path.parent
        strangers = directory.is_dir() and any(
            p.suffix == ".png" or (p / "samples").is_dir() or p.name == "samples"
            for p in directory.iterdir()
        )
        if strangers:
            raise UserError(
                f"{untrusted.printable(directory, 200)} has pictures and no {RUN_FILE}, so it is "
                "not known how they "
                "were drawn: choose another directory"
            )
        return
    found = read_run(path.parent)
    shown = untrusted.printable(path.parent, 200)
    advice = f"choose another directory, or draw with the settings in its {RUN_FILE}"
    for name, value in settings.items():
        if found.get(name) == value:
            continue
        if name == "prompt_sha256":
            raise UserError(f"{shown} has pictures of other prompts: {advice}")
        raise UserError(
            f"{shown} has pictures with {name} {untrusted.shown(found.get(name))}, not "
            f"{untrusted.shown(value)}: {advice}"
        )


def _whole(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{name} must be a whole number from 1, not {value!r}")
    return value


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < np.inf:
        raise UserError(f"{name} must be a finite number >= 0, not {value!r}")
    return float(value)


def _further(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Further settings as `run.json` holds them."""
    if taken := {"seed", "cfg_weight", "temperature"} & set(sampling):
        raise UserError(f"{min(taken)} is an argument of its own, it cannot be in sampling, too")
    try:
        return json.loads(json.dumps(dict(sampling)))
    except (TypeError, ValueError) as error:
        raise UserError(f"sampling must be numbers and texts, {error}") from error


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise UserError(f"seed must be a whole number from 0 to 2**32 - 1, not {value!r}")
    return value
