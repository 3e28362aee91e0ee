"""Where pictures go, so that the scorers of their authors read them: GenEval, DPG-Bench, T2I-CompBench, a folder.

| layout | files below the directory | read by |
|---|---|---|
| `geneval` | `00000/metadata.jsonl`, `00000/samples/0000.png` ... | GenEval's `evaluate_images.py` |
| `dpg` | `ID.png`, a grid of 2 x 2 samples | `compute_dpg_bench.py --resolution R --pic-num 4` |
| `compbench` | `samples/PROMPT_000000.png`, numbered through the set | `BLIP_vqa.py --out_dir` ... |
| `folder` | `KEY_0.png` ... | people |

A file is there with its final name or not at all. `run.json` lies beside the pictures of `dpg` and `folder`, too:
DPG's script says of everything that is no picture of its questions that it failed, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from janus_jax import untrusted
from janus_jax.errors import UserError, nearest
from janus_jax.evaluation.generation.prompts import Prompt, PromptSet, is_geneval
from janus_jax.files import atomic_write, remove_leftovers
from janus_jax.processing.image import save_image

GRID_SIDE = 2  # of DPG's grids, in pictures


class Layout(Protocol):
    """Where the pictures of a set of prompts go.

    Args of every layout: the directory, the whole set, and the number of samples.
    """

    def start(self) -> None:
        """Makes the directory; removes what killed writers left."""
        ...

    def prepare(self, prompt: Prompt) -> None:
        """Makes what has to be there beside the pictures of a prompt."""
        ...

    def missing(self, prompt: Prompt) -> list[int]:
        """The samples that are not there."""
        ...

    def put(self, prompt: Prompt, sample: int, picture: np.ndarray) -> None:
        """Takes one picture, uint8 [h, w, 3]; it is on disk once all are given that share its file."""
        ...


class GenEvalLayout:
    """`NUMBER/metadata.jsonl`, the source line byte for byte, and `NUMBER/samples/0000.png`, ...

    Raises:
      UserError: the set has no conditions of GenEval.
    """

    def __init__(self, directory: Path, prompts: PromptSet, samples: int):
        if not is_geneval(prompts):
            raise UserError(
                f'prompts {prompts.name}: GenEval\'s layout needs lines with its "tag" and "include"; '
                "choose another layout: dpg, compbench or folder"
            )
        self._directory, self._samples = directory, samples

    def folder(self, prompt: Prompt) -> Path:
        return self._directory / f"{prompt.number:05d}"

    def path(self, prompt: Prompt, sample: int) -> Path:
        return self.folder(prompt) / "samples" / f"{sample:04d}.png"

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)

    def prepare(self, prompt: Prompt) -> None:
        # The official script stops at a folder without metadata or samples, so both come before a picture.
        folder = self.folder(prompt)
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, r"metadata\.jsonl")
        remove_leftovers(folder / "samples", r"[0-9]+\.png")
        metadata, line = folder / "metadata.jsonl", prompt.line.encode()
        if not metadata.is_file() or metadata.read_bytes() != line:
            atomic_write(metadata, line)

    def missing(self, prompt: Prompt) -> list[int]:
        return [i for i in range(self._samples) if not untrusted.is_file(self.path(prompt, i))]

    def put(self, prompt: Prompt, sample: int, picture: np.ndarray) -> None:
        _save(self.path(prompt, sample), picture)


class DpgLayout:
    """`ID.png`: samples 0, 1 above 2, 3, each of them square.

    Raises:
      UserError: not 4 samples, or an ID with a dot, which the official script would cut there.
    """

    def __init__(self, directory: Path, prompts: PromptSet, samples: int):
        if samples != GRID_SIDE**2:
            raise UserError(
                f"DPG-Bench's layout is a grid of {GRID_SIDE**2} samples, not {samples}"
            )
        for prompt in prompts.prompts:
            if "." in prompt.key:
                raise UserError(
                    f"DPG-Bench's layout: the name {prompt.key!r} must have no dot, as its "
                    "script ends the name there"
                )
        self._directory = directory
        self._waiting: dict[int, dict[int, np.ndarray]] = {}

    def path(self, prompt: Prompt) -> Path:
        return self._directory / f"{prompt.key}.png"

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._directory, r".*\.png")

    def prepare(self, prompt: Prompt) -> None:
        pass

    def missing(self, prompt: Prompt) -> list[int]:
        return [] if untrusted.is_file(self.path(prompt)) else list(range(GRID_SIDE**2))

    def put(self, prompt: Prompt, sample: int, picture: np.ndarray) -> None:
        waiting = self._waiting.setdefault(prompt.number, {})
        waiting[sample] = picture
        if len(waiting) == GRID_SIDE**2:
            pictures = [waiting[i] for i in range(GRID_SIDE**2)]
            _save(self.path(prompt), grid(pictures))
            del self._waiting[prompt.number]


class _FileEach:
    """A file a picture, at `path(prompt, sample)`."""

    _samples: int  # of a prompt

    def prepare(self, prompt: Prompt) -> None:
        pass

    def missing(self, prompt: Prompt) -> list[int]:
        return [i for i in range(self._samples) if not untrusted.is_file(self.path(prompt, i))]

    def put(self, prompt: Prompt, sample: int, picture: np.ndarray) -> None:
        _save(self.path(prompt, sample), picture)


class CompBenchLayout(_FileEach):
    """`samples/PROMPT_000000.png`: the prompt is read from the name, the number counts all pictures of the set.

    Raises:
      UserError: a prompt that cannot be in the name of a file, or that has the _ which ends it there.
    """

    def __init__(self, directory: Path, prompts: PromptSet, samples: int):
        for prompt in prompts.prompts:
            name = prompt.text
            plain = untrusted.printable(name, len(name) + 1) == name and not set(name) & set("/\\_")
            if not plain or name.startswith(".") or len(name.encode()) > 240:
                raise UserError(
                    f"T2I-CompBench's layout: the prompt {untrusted.shown(name)} (number "
                    f"{prompt.number}) cannot be "
                    "in the name of a file (/, \\, _, a control character, or over 240 bytes): "
                    "choose the layout folder"
                )
        self._folder, self._samples = directory / "samples", samples

    def path(self, prompt: Prompt, sample: int) -> Path:
        number = prompt.number * self._samples + sample
        return self._folder / f"{prompt.text}_{number:06d}.png"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._folder, r".*")  # the official script reads a number of every name


class FolderLayout(_FileEach):
    """`KEY_SAMPLE.png`; `run.json` says which prompt a key stands for."""

    def __init__(self, directory: Path, prompts: PromptSet, samples: int):
        self._directory, self._samples = directory, samples

    def path(self, prompt: Prompt, sample: int) -> Path:
        return self._directory / f"{prompt.key}_{sample}.png"

    def start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._directory, r".*\.png")


LAYOUTS: dict[str, Callable[[Path, PromptSet, int], Layout]] = {
    "geneval": GenEvalLayout,
    "dpg": DpgLayout,
    "compbench": CompBenchLayout,
    "folder": FolderLayout,
}


def make_layout(name: str | None, directory: Path, prompts: PromptSet, samples: int) -> Layout:
    """A layout by name; None takes the one of a built-in set, and the plain folder for others.

    Raises:
      UserError: no such layout, or it cannot hold these prompts.
    """
    name = layout_name(name, prompts)
    return LAYOUTS[name](directory, prompts, samples)


def layout_name(name: str | None, prompts: PromptSet) -> str:
    """The name of the layout that `make_layout` takes."""
    if name is None:
        if is_geneval(prompts):
            return "geneval"
        return "dpg" if prompts.name == "dpg" else "folder"
    if name not in LAYOUTS:
        raise UserError(f"no layout {name!r} ({', '.join(LAYOUTS)}).{nearest(name, LAYOUTS)}")
    return name


def grid(pictures: list[np.ndarray]) -> np.ndarray:
    """Four pictures uint8 [R, R, 3] -> [2R, 2R, 3], row by row.

    Raises:
      UserError: they are not square or not of one size.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1 or len({*pictures[0].shape[:2]}) != 1:
        raise UserError(f"DPG-Bench's grid needs square pictures of one size, not {sorted(shapes)}")
    rows = [np.concatenate(pictures[i : i + GRID_SIDE], axis=1) for i in (0, GRID_SIDE)]
    return np.concatenate(rows, axis=0)


def grid_crops(picture: np.ndarray, count: int = GRID_SIDE**2) -> list[np.ndarray]:
    """The first `count` samples of a grid uint8 [2R, 2R, 3]; a grid of one sample is the picture itself.

    Their corners are (0, 0), (R, 0), (0, R), (R, R) as (x, y), the order of the official script.

    Raises:
      UserError: the picture is no grid of squares.
    """
    height, width = picture.shape[:2]
    if count == 1:
        return [picture]
    if height != width or height % GRID_SIDE:
        raise UserError(
            f"a grid of DPG-Bench must be square with an even side, not {width}x{height}"
        )
    side = height // GRID_SIDE
    corners = [(x, y) for y in (0, side) for x in (0, side)]
    return [picture[y : y + side, x : x + side] for x, y in corners[:count]]


def _save(path: Path, picture: np.ndarray) -> None:
    save_image(path, Image.fromarray(picture))
