"""Detectors of objects at the boundary: any function from a picture to what is in it, checked before it is used.

GenEval's numbers are made with one detector (Mask2Former with a Swin-S backbone, of mmdet) and one classifier
of colours (CLIP ViT-L/14). Scores by any other are a proxy, and everything here calls them so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from janus_jax import untrusted
from janus_jax.errors import UserError
from janus_jax.evaluation.generation.drawing import drawing_of
from janus_jax.evaluation.generation.geneval import (
    Result,
    make_objects,
    pictures_of,
    read_results,
    result_line,
)
from janus_jax.evaluation.generation.journal import Journal
from janus_jax.evaluation.generation.rules import Objects
from janus_jax.processing.image import load_image

PROXY = "janus_jax.evaluation.generation.proxy:Proxy"  # comes with the package; needs torch
Progress = Callable[[int, int], None]  # (pictures that are judged, pictures in all)


class Detector(Protocol):
    """What a detector is: a function of a picture, best with a `name`.

    It returns {class: [[x1, y1, x2, y2, score], ...]} with GenEval's names of classes (`geneval_classes`), or a
    pair of this and a function from the name of a class to a colour of `rules.COLORS` for each of its boxes,
    which is called for the classes whose colours a prompt asks for.
    """

    name: str

    def __call__(self, picture: np.ndarray) -> Any:
        """Finds objects in uint8 [h, w, 3]."""
        ...


def load_function(place: str, what: str) -> Callable[..., Any]:
    """A function by "module:function"; of a class, an instance. Its directory must be in PYTHONPATH.

    Raises:
      UserError: there is none of this name; the reason is in the message.
    """
    module, _, name = place.partition(":")
    if not module or not name:
        raise UserError(f"a {what} must be module:function, not {untrusted.shown(place)}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the {what} {untrusted.printable(place)} cannot be imported: "
            f"{untrusted.printable(error)}; is its package "
            "installed, or its directory in PYTHONPATH?"
        ) from error
    found = found() if isinstance(found, type) else found
    if not callable(found):
        raise UserError(f"the {what} {untrusted.printable(place)} is no function")
    return found


def detector_name(detector: Any) -> str:
    """What a detector or judge is called in results."""
    named = getattr(detector, "name", None) or getattr(detector, "__qualname__", None)
    return untrusted.printable(named or type(detector).__qualname__)


def detect(detector: Detector, picture: np.ndarray, wanted: Sequence[str] = ()) -> Objects:
    """What a detector finds, checked; with the colours of the classes in `wanted`, if it knows colours.

    Raises:
      UserError: it returns something else.
    """
    found = detector(picture)
    details, color_of = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    colors = {}
    if color_of is not None and isinstance(details, Mapping):
        colors = {name: list(color_of(name)) for name in wanted if len(details.get(name, ()))}
    return make_objects(details, colors, f"the detector {detector_name(detector)}")


def sanity_check(
    detector: Detector, pictures: Sequence[tuple[np.ndarray, str]] | None = None
) -> str:
    """Whether a detector works on this machine at all, in one line to print before anything is scored.

    A broken installation can find nothing in any picture, and every score is 0 then. On a plain grey picture
    nothing may be found, twice the same picture must give the same, and on given pictures their object must be
    found.

    Args:
      pictures: (picture, class that is in it), such as photographs of one's own.

    Raises:
      UserError: it fails.
    """
    name = detector_name(detector)
    grey = np.full((256, 256, 3), 127, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    empty = detect(detector, grey)
    if sure := [c for c, boxes in empty.boxes.items() if len(boxes) and boxes[:, 4].max() > 0.9]:
        raise UserError(f"the detector {name} is sure of {sure[0]} on a plain grey picture")
    first, second = (detect(detector, noise).boxes for _ in range(2))
    same = first.keys() == second.keys() and all(
        first[c].shape == second[c].shape and np.allclose(first[c], second[c], atol=1e-2)
        for c in first
    )
    if not same:
        raise UserError(f"the detector {name} does not find the same twice in one picture")
    for picture, wanted in pictures or []:
        boxes = detect(detector, picture).boxes.get(wanted, np.zeros((0, 5)))
        if not len(boxes) or boxes[:, 4].max() <= 0.3:
            raise UserError(f"the detector {name} does not find the {wanted} in its own picture")
    shown = (
        f"{len(pictures)} of {len(pictures)} objects found"
        if pictures
        else "no pictures with known objects given"
    )
    return f"detector {name}: nothing sure on grey, the same twice, {shown}"


def judge_pictures(
    detector: Detector, directory: str | Path, out: str | Path, progress: Progress | None = None
) -> list[Result]:
    """Judges a folder in GenEval's layout by a detector; goes on where a kill ended it.

    Args:
      detector: see `Detector`; the official one or a proxy.
      directory: with 00000/metadata.jsonl, 00000/samples/0000.png, ...
      out: JSON lines in the form of the official `results.jsonl`, with the detector's name in the first.

    Raises:
      UserError: no such pictures, an unreadable one, or `out` is of another detector or other pictures.
    """
    found = list(pictures_of(directory))
    header = {"detector": detector_name(detector), "drawing": drawing_of(directory)}
    journal = Journal(out, header, ("filename",))
    for done, (path, metadata) in enumerate(found):
        if progress:
            progress(done, len(found))
        filename = str(path.relative_to(directory))
        if not journal.has(filename=filename):
            objects = detect(detector, np.asarray(load_image(path)), _colored(metadata))
            journal.add(result_line(filename, metadata, objects))
    if progress:
        progress(len(found), len(found))
    return read_results(out)


def _colored(metadata: Mapping[str, Any]) -> list[str]:
    """The classes whose colours a prompt asks for."""
    return [entry["class"] for entry in metadata["include"] if "color" in entry]
