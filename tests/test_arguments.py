"""Arguments of wrong types are one line that names them, and does not print what was given."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dummies_model import LONGER, make_janus, picture, random_params

from janus_jax.errors import UserError
from janus_jax.inference import Janus, make_sampling_params

SECRET = "secret"
NO_NUMBERS = {
    "none": None,
    "bool": True,
    "numpy bool": np.True_,
    "text": SECRET,
    "bytes": SECRET.encode(),
    "list": [1],
    "array": np.array([1, 2]),
    "complex": 1j,
    "too large": 10**400,
    "too large to print": -(10**6000),
}
NOT_WHOLE = NO_NUMBERS | {"float": 2.0, "float32": np.float32(2)}
NO_TEXTS = {
    "none": None,
    "number": 1,
    "bytes": SECRET.encode(),
    "list": [None],
    "half a character": f"{SECRET}\ud800",
    "path": Path(SECRET),
    "picture": picture(0),
}
NO_LISTS = {
    "none": 0.5,
    "text": SECRET,
    "bytes": SECRET.encode(),
    "bytearray": bytearray(SECRET.encode()),
    "path": Path(SECRET),
    "mapping": {0: SECRET},
    "picture": picture(0),
    "array of one picture": np.zeros((4, 4, 3), np.uint8),
    "array of one grey picture": np.zeros((4, 4), np.uint8),
    "file": io.BytesIO(SECRET.encode()),
}
NO_PROMPTS = {name: v for name, v in NO_LISTS.items() if name != "text"} | {"nothing": None}
NO_PICTURES = {"none": None, "bytes": SECRET.encode(), "number": 7, "list": [SECRET]}
# No picture, no list of them, and not None, which is a question about none.
NOT_SHOWN = {"bytes": SECRET.encode(), "number": 7, "list": [SECRET.encode()], "nested": [[SECRET]]}


def optional(values):
    return {name: value for name, value in values.items() if name != "none"}


ask = lambda j, *args: list(j.conversation().ask(*args))
asks = lambda j, *args: list(j.conversations(2).ask(*args))
PLACES = [
    ("n", NOT_WHOLE, lambda j, v: j.generate("a cat", v)),
    ("seed", NOT_WHOLE, lambda j, v: j.generate("a cat", seed=v)),
    ("seed", NOT_WHOLE, lambda j, v: j.answer(picture(0), "what?", seed=v)),
    ("seed", NOT_WHOLE, lambda j, v: j.conversation(seed=v)),
    ("preview_every", optional(NOT_WHOLE), lambda j, v: j.generate("a", preview_every=v)),
    ("max_new_tokens", NOT_WHOLE, lambda j, v: j.answer(picture(0), "what?", v)),
    ("max_new_tokens", NOT_WHOLE, lambda j, v: ask(j, "what?", [], v)),
    ("count", NOT_WHOLE, lambda j, v: j.conversations(v)),
    ("top_k", optional(NOT_WHOLE), lambda j, v: j.generate("a cat", top_k=v)),
    ("tokens", NOT_WHOLE, lambda j, v: j.warmup([], [], tokens=v)),
    ("pictures", NOT_WHOLE, lambda j, v: j.warmup([v])),
    ("answers", NOT_WHOLE, lambda j, v: j.warmup([], [v])),
    ("step", optional(NOT_WHOLE), lambda j, v: Janus.load("somewhere", step=v)),
    ("cfg_weight", optional(NO_NUMBERS), lambda j, v: j.generate("a cat", cfg_weight=v)),
    ("temperature", optional(NO_NUMBERS), lambda j, v: j.generate("a cat", temperature=v)),
    ("temperature", NO_NUMBERS, lambda j, v: j.answer(picture(0), "a", temperature=v)),
    ("top_p", optional(NO_NUMBERS), lambda j, v: j.conversation(top_p=v)),
    ("prompt|text", NO_TEXTS, lambda j, v: j.generate([v])),
    ("prompt", NO_PROMPTS, lambda j, v: j.generate(v)),
    ("question|text", NO_TEXTS, lambda j, v: j.answer(picture(0), v)),
    ("questions", NO_LISTS, lambda j, v: j.answer_batch([picture(0)], v)),
    ("message|text", NO_TEXTS, lambda j, v: ask(j, v)),
    ("messages", NO_LISTS | {"none": None}, lambda j, v: asks(j, v)),
    ("answer|text", NO_TEXTS, lambda j, v: j.conversation().add("what?", v)),
    ("answers", NO_LISTS | {"none": None}, lambda j, v: j.conversations(6).add(["a"] * 6, v)),
    ("images", NO_LISTS | {"none": None}, lambda j, v: j.answer_batch(v, ["what?"] * 4)),
    ("images", NO_LISTS | {"none": None}, lambda j, v: ask(j, "what?", v)),
    ("images", NO_LISTS, lambda j, v: asks(j, ["a", "b"], v)),
    ("images", NOT_SHOWN, lambda j, v: j.answer(v, "what?")),
    ("images", NOT_SHOWN, lambda j, v: j.answer_batch([v], ["what?"])),
    ("images", NO_PICTURES, lambda j, v: ask(j, "what?", [v])),
    ("directory", optional(NO_PICTURES) | {"none": None}, lambda j, v: Janus.load(v)),
    ("progress", {"number": 1, "text": SECRET}, lambda j, v: j.generate("a cat", progress=v)),
    ("preview", {"number": 1, "text": SECRET}, lambda j, v: j.generate("a cat", preview=v)),
]


@pytest.fixture(scope="module")
def janus():
    return make_janus(LONGER)


@pytest.mark.parametrize("place", range(len(PLACES)), ids=lambda i: f"{i}-{PLACES[i][0]}")
def test_wrong_types_are_named_and_not_printed(janus, place):
    name, values, call = PLACES[place]
    for value in values.values():
        with pytest.raises(UserError, match=name) as error:
            call(janus, value)
        message = str(error.value)
        assert "\n" not in message and SECRET not in message and len(message) < 200


@pytest.mark.parametrize(
    "options",
    [
        {"max_batch": 0},
        {"max_batch": 2.0},
        {"memory_limit": "1"},
        {"memory_limit": float("inf")},
        {"int8": "weights"},
        {"int8": [b"cache"]},
        {"int8": 8},
        {"memory_limit": -5},
        {"memory_limit": 0},
        {"memory_limit": float("nan")},
        {"policy": "bfloat16"},
        {"policy": jnp.bfloat16},
        {"policy": {"param_dtype": "bfloat16"}},
        {"mesh": "x"},
        {"mesh": 3},
        {"mesh": jax.devices()},
        {"mesh": jax.make_mesh((1,), ("x",))},
    ],
    ids=str,
)
def test_wrong_options_are_named(janus, options):
    with pytest.raises(UserError, match=f"^{next(iter(options))}"):  # before anything is read
        Janus.load("nowhere", **options)
    with pytest.raises(UserError, match=next(iter(options))):
        Janus(LONGER, random_params(LONGER), janus.processor, **options)


def test_a_limit_that_is_set_later_is_named(janus, monkeypatch):
    for limit in (-5, 0, SECRET):
        monkeypatch.setattr(janus, "memory_limit", limit)
        for call in (lambda: janus.generate("a cat"), lambda: janus.answer(picture(0), "what?")):
            with pytest.raises(UserError, match=r"^memory_limit must be a number"):
                call()


def test_numbers_of_numpy_are_numbers():
    sampling, _ = make_sampling_params(
        16, np.float32(2), np.array(0.5), np.int64(3), np.float64(0.25)
    )
    assert sampling == (2.0, 0.5, 3, 0.25)
    assert [type(k) for k in sampling] == [float, float, int, float]


def test_what_can_be_a_list_is_one(janus):
    """Tuples, generators, arrays of several pictures."""
    shown = np.zeros((2, 6, 6, 3), np.uint8)
    asked = ["what?", "a cat"]
    answers = janus.answer_batch(list(shown), asked, max_new_tokens=np.int64(3), seed=np.uint8(1))
    for images in (shown, tuple(shown), iter(shown)):
        for questions in (tuple(asked), iter(asked), np.array(asked)):
            if images is shown or not hasattr(questions, "__next__"):
                images = iter(shown) if hasattr(images, "__next__") else images
                assert janus.answer_batch(images, questions, 3, seed=1) == answers
