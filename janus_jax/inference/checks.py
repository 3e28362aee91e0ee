"""What is refused before anything is computed."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from janus_jax.checkpoints import BEST
from janus_jax.config import JanusConfig, Policy
from janus_jax.errors import UserError
from janus_jax.parallel import AXES
from janus_jax.processing import Processor, ProcessorConfig

_SINGLE = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, Mapping)


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number, of Python or of an array without axes, of at least `least`.

    As all functions here it raises UserError, and names what else was given by its type alone.
    """
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} must be a whole number, not {type(value).__name__}")
    if abs(value) >= 2**63:
        raise UserError(f"{name} is far out of range: it has more than 63 bits")
    if least is not None and value < least:
        raise UserError(f"{name} must be >= {least}, got {value}")
    return int(value)


def number(name: str, value: Any) -> float:
    """As `whole`, for any real number."""
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UserError(f"{name} must be a number, not {type(value).__name__}")
    return float(value) if abs(value) < 2**63 else float("nan" if value != value else "inf")


def listed(name: str, values: Any) -> list[Any]:
    """The list of some values; a text, a file or one picture is none, though most can be iterated."""
    single = isinstance(values, _SINGLE)
    if (
        single
        or hasattr(values, "read")
        or not isinstance(values, Iterable)
        or not getattr(values, "shape", (1,))
    ):
        raise UserError(f"{name} must be a list, not {type(values).__name__}")
    return list(values)


def flag(name: str, value: Any) -> bool:
    """True or False; a text such as "no" would count as True otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise UserError(f"{name} must be True or False, not {type(value).__name__}")
    return bool(value)


def counts(name: str, values: Any) -> list[int]:
    """The list of some whole numbers of at least 1."""
    return [whole(f"each of {name}", value, least=1) for value in listed(name, values)]


def prompts(prompt: Any) -> list[Any]:
    """One prompt, or several, as a list that is not empty."""
    several = [prompt] if isinstance(prompt, str) else listed("prompt, if it is no text,", prompt)
    if not several:
        raise UserError("prompt is an empty list: give at least one prompt")
    return several


def pictures(name: str, values: Any) -> list[Any]:
    """The list of some pictures, each of a type that can be one."""
    shape = getattr(values, "shape", None)
    if shape is not None and (len(shape) < 3 or (len(shape) == 3 and shape[-1] in (3, 4))):
        raise UserError(f"{name} must be a list of pictures, not the array of one")
    return [_picture(name, value) for value in listed(name, values)]


def _picture(name: str, value: Any) -> Any:
    readable = isinstance(value, str | os.PathLike | Image.Image | np.ndarray)
    if not readable and not hasattr(value, "read"):
        raise UserError(
            f"{name}: a picture is a file name, a PIL image or a uint8 array, "
            f"not {type(value).__name__}"
        )
    return value


def pictures_of_one(name: str, value: Any) -> list[Any]:
    """The pictures of one question: of None, of one picture, or of several."""
    if value is None:
        return []
    return [_picture(name, value)] if is_one_picture(value) else pictures(name, value)


def is_one_picture(value: Any) -> bool:
    """Whether a value is not a list of pictures; it need not be a picture either."""
    if isinstance(value, _SINGLE) or hasattr(value, "read") or not isinstance(value, Iterable):
        return True
    return hasattr(value, "shape") and len(value.shape) < 4


def pictures_of_each(name: str, values: Any) -> list[list[Any]]:
    """The pictures of each question; one array of several pictures is one for each."""
    shape = getattr(values, "shape", None)
    if shape is not None:
        return [[value] for value in pictures(name, values)]
    return [pictures_of_one(name, value) for value in listed(name, values)]


def stop_strings(value: Any) -> tuple[str, ...]:
    """No, one or several texts that end an answer."""
    if value is None:
        return ()
    try:
        texts = (value,) if isinstance(value, str) else tuple(listed("stop", value))
    except UserError:
        what = type(value).__name__
        raise UserError(f"stop must be a text or a list of texts, not {what}") from None
    for text in texts:
        if not isinstance(text, str) or not text:
            what = "an empty one" if text == "" else type(text).__name__
            raise UserError(f"stop must be texts that are not empty, not {what}")
    return texts


def function(name: str, value: Any) -> None:
    """Raises UserError if `value` is neither None nor can be called."""
    if value is not None and not callable(value):
        raise UserError(f"{name} must be a function, not {type(value).__name__}")


def preview_steps(total: int, every: int | None, name: str = "preview_every") -> int:
    """Codes between two previews of a picture of `total`: an eighth of it unless it is given."""
    return max(1, total // 8) if every is None else whole(name, every, least=1)


def _unwrap(value: Any) -> Any:
    """Arrays without axes as numbers of Python."""
    return value.item() if getattr(value, "shape", None) == () else value


def seed_key(seed: int) -> jax.Array:
    """The random key of a seed; raises UserError if it is not 0 to 2**32 - 1."""
    return jax.random.key(seed_number(seed))


def seed_number(seed: int) -> int:
    """A seed; raises UserError if it is not 0 to 2**32 - 1."""
    seed = whole("seed", seed)
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must be between 0 and {2**32 - 1}, got {seed}")
    return seed


def memory_limit(value: Any) -> None:
    """Raises UserError if `value` is neither None nor a number of bytes that can be stayed within."""
    if value is not None and not 0 < (limit := number("memory_limit", value)) < math.inf:
        raise UserError(
            f"memory_limit must be a number of bytes above 0, or None for what is free, not {limit:g}"
        )


def check_options(
    policy: Any = None,
    max_batch: Any = 1,
    mesh: Any = None,
    int8: Any = (),
    limit: Any = None,
) -> frozenset[str]:
    """What is to be in int8; raises UserError if an option of `Janus` is of another type or out of range."""
    if policy is not None and not isinstance(policy, Policy):
        raise UserError(
            "policy must be a janus_jax.config.Policy, such as Policy('bfloat16', 'bfloat16'), "
            f"not {type(policy).__name__}"
        )
    if mesh is not None and not (isinstance(mesh, Mesh) and mesh.axis_names == AXES):
        what = f"one with {mesh.axis_names}" if isinstance(mesh, Mesh) else type(mesh).__name__
        raise UserError(
            f"mesh must be from janus_jax.parallel.make_mesh, with the axes {', '.join(AXES)}, not {what}"
        )
    whole("max_batch", max_batch, least=1)
    memory_limit(limit)
    parts = frozenset(map(str, listed("int8", int8)))
    if unknown := parts - {"weights", "cache"}:
        raise UserError(f"int8 can be 'weights' and 'cache', not {sorted(unknown)}")
    return parts


def path(name: str, value: Any) -> str:
    """The text of a path, or of a hub id."""
    if not isinstance(value, str | os.PathLike) or not os.fspath(value):
        what = "an empty text" if value == "" else type(value).__name__
        raise UserError(f"{name} must be a path, not {what}")
    return os.fspath(value)


def check_source(id_or_dir: Any, step: Any) -> None:
    """Raises UserError if what to load is of another type."""
    if not isinstance(id_or_dir, str | os.PathLike):
        raise UserError(f"a model directory is a path, not {type(id_or_dir).__name__}")
    if isinstance(step, str):
        if step != BEST:
            raise UserError(f"step must be a whole number or {BEST!r}, not another text")
    elif step is not None:
        whole("step", step, least=0)


def check_hub(revision: Any, token: Any, cache_dir: Any) -> None:
    """Raises UserError if an option about the hub or the cache is of another type."""
    if revision is not None and not (isinstance(revision, str) and revision):
        what = "an empty one" if revision == "" else type(revision).__name__
        raise UserError(f"revision must be text that is not empty, not {what}")
    if token is not None and not isinstance(token, str | bool):
        raise UserError(f"token must be text or a bool, not {type(token).__name__}")
    if cache_dir is not None and not isinstance(cache_dir, str | os.PathLike):
        raise UserError(f"cache_dir must be a path, not {type(cache_dir).__name__}")


def check_fit(config: JanusConfig, processor: Processor) -> None:
    """Raises UserError if the processor was made for another architecture."""
    expected = ProcessorConfig.from_model(config)
    for name in ("und_image_size", "gen_image_size", "num_image_tokens", "num_codes"):
        have, need = getattr(processor.config, name), getattr(expected, name)
        if have != need:
            raise UserError(f"processor config: {name} is {have}, but {config.name} needs {need}")
    if processor.tokenizer.vocab_size > config.decoder.vocab_size:
        raise UserError(
            f"the tokenizer has {processor.tokenizer.vocab_size} tokens, but {config.name} has "
            f"only {config.decoder.vocab_size} embeddings: it belongs to another checkpoint"
        )
