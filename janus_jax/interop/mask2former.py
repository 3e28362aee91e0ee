"""A detector and a classifier of colours out of transformers, for GenEval where its own stack does not build.

A proxy, and named so: GenEval's detector is Mask2Former with a Swin-S backbone, too, but of mmdet and with
other weights. What is done with the outputs follows mmdet: the surest 100 of all (query, class), a score that
is weighed by how clear the mask is, and the box around the mask. Colours follow GenEval: CLIP between ten
colours, in crops of the boxes where what is outside of the mask is grey.

Needs torch and transformers, and the weights: of the Hub, or directories on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from janus_jax.errors import UserError

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
COLORS = "openai/clip-vit-large-patch14"
LIMIT = 100  # (query, class) of a picture
GREY = 0x99  # outside of a mask
TEMPLATES = (
    "a photo of a {color} {name}",
    "a photo of a {color}-colored {name}",
    "a photo of a {color} object",
)
Found = dict[str, list[list[float]]]  # class -> [[x1, y1, x2, y2, score], ...]


class Mask2Former:
    """Finds objects in pictures, and their colours.

    Args:
      classes: the 80 names of COCO's classes, in COCO's order.
      colors: names to choose from.
      detector, color_model: names on the Hub, or directories; without a `color_model` no colours are known.
      device: of torch, such as "cuda"; None takes a GPU if there is one.

    Raises:
      UserError: a package or the weights are missing, or the model has other classes.
    """

    def __init__(
        self,
        classes: Sequence[str],
        colors: Sequence[str],
        detector: str = DETECTOR,
        color_model: str | None = COLORS,
        device: str | None = None,
    ):
        try:
            import torch
            from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation
        except ImportError as error:
            raise UserError(
                f"the detector needs torch and transformers ({error}): pip install torch transformers"
            ) from error
        self._torch, self._classes, self._colors = torch, list(classes), list(colors)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._processor = _loaded(AutoImageProcessor, detector)
        self._model = _loaded(Mask2FormerForUniversalSegmentation, detector).eval().to(self._device)
        if self._model.config.num_labels != len(self._classes):
            raise UserError(
                f"{detector} knows {self._model.config.num_labels} classes, not the {len(self._classes)} of COCO"
            )
        self._color_model = Clip(torch, color_model, self._device) if color_model else None
        self.name = f"proxy: {detector}, {color_model or 'no colours'}"

    def __call__(self, picture: np.ndarray) -> tuple[Found, Callable[[str], list[str]]] | Found:
        """Finds objects in uint8 [h, w, 3].

        Returns:
          {class: [[x1, y1, x2, y2, score], ...]}, and a function from a class to the colour of each of its boxes.
        """
        torch = self._torch
        inputs = self._processor(images=picture, return_tensors="pt").to(self._device)
        with torch.no_grad():
            outputs = self._model(**inputs)
            masks = torch.nn.functional.interpolate(
                outputs.masks_queries_logits, size=picture.shape[:2], mode="bilinear"
            )
        logits = outputs.class_queries_logits[0].float().cpu().numpy()
        boxes, shapes = instances(logits, masks[0].float().cpu().numpy(), self._classes)
        if self._color_model is None:
            return boxes

        def colors_of(name: str) -> list[str]:
            crops = [
                cut_out(picture, box, shape)
                for box, shape in zip(boxes[name], shapes[name], strict=True)
            ]
            return self._color_model(crops, name, self._colors)

        return boxes, colors_of


class Clip:
    """Which of several colours pictures of an object have; see `TEMPLATES`."""

    def __init__(self, torch: Any, model: str, device: str):
        from transformers import AutoProcessor, CLIPModel

        self._torch, self._device = torch, device
        self._processor = _loaded(AutoProcessor, model)
        self._model = _loaded(CLIPModel, model).eval().to(device)
        self._texts: dict[tuple[str, ...], np.ndarray] = {}

    def __call__(self, crops: Sequence[np.ndarray], name: str, colors: Sequence[str]) -> list[str]:
        """The colour of each picture uint8 [h, w, 3] of an object."""
        key = (name, *colors)
        if key not in self._texts:
            texts = [t.format(color=color, name=name) for color in colors for t in TEMPLATES]
            self._texts[key] = text_means(self._embed(text=texts), len(colors))
        shown = unit(self._embed(images=list(crops)))
        return [colors[i] for i in (shown @ self._texts[key].T).argmax(axis=1)]

    def _embed(self, **given: Any) -> np.ndarray:
        """Embeddings [N, D] of texts or pictures, not yet of unit length."""
        inputs = self._processor(**given, return_tensors="pt", padding=True).to(self._device)
        embed = self._model.get_text_features if "text" in given else self._model.get_image_features
        with self._torch.no_grad():
            found = embed(**inputs)
        # Of transformers 5 an output with fields, of 4 the tensor itself.
        return getattr(found, "pooler_output", found).float().cpu().numpy()


def instances(
    logits: np.ndarray, masks: np.ndarray, classes: Sequence[str], limit: int = LIMIT
) -> tuple[Found, dict[str, list[np.ndarray]]]:
    """Objects out of a model's outputs.

    Args:
      logits: float [Q, classes + 1] of the queries; the last class is "nothing".
      masks: float [Q, h, w], above 0 inside.
      classes: their names.
      limit: how many (query, class) are looked at, the surest.

    Returns:
      (class -> boxes with scores, class -> mask bool [h, w] of each box); empty masks are left out.
    """
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (shifted / shifted.sum(axis=1, keepdims=True))[:, :-1]
    order = np.argsort(-sure, axis=None, kind="stable")[:limit]
    boxes: Found = {}
    shapes: dict[str, list[np.ndarray]] = {}
    for query, label in zip(*np.unravel_index(order, sure.shape), strict=True):
        inside = masks[query] > 0
        if not inside.any():
            continue
        clear = (1 / (1 + np.exp(-masks[query][inside]))).sum() / (inside.sum() + 1e-6)
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, sure[query, label] * clear]
        boxes.setdefault(classes[label], []).append([float(value) for value in box])
        shapes.setdefault(classes[label], []).append(inside)
    return boxes, shapes


def cut_out(picture: np.ndarray, box: Sequence[float], inside: np.ndarray) -> np.ndarray:
    """The part of a picture in a box, grey outside of the mask."""
    x1, y1, x2, y2 = (round(value) for value in box[:4])
    shown = np.where(inside[..., None], picture, np.uint8(GREY))
    return shown[y1:y2, x1:x2]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] of length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def text_means(embedded: np.ndarray, count: int) -> np.ndarray:
    """Texts [count * T, D] -> the mean direction [count, D] of each T texts that follow each other."""
    return unit(unit(embedded).reshape(count, -1, embedded.shape[-1]).mean(axis=1))


def _loaded(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name} cannot be loaded: {reason}; give the name of a model on the Hub or its directory"
        ) from error
