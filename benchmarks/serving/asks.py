"""What is asked of the server: bodies of requests that are made before the clock starts.

A request is a function of its number, so that the same one can be sent at every load and its answers compared.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

DRAW, CHAT = "/v1/images/generations", "/v1/chat/completions"
ANSWER_TOKENS = 48  # of an answer under load, at most
WORDS = "a red blue green apple cat bus dog car on the left right of two three and above".split()
# (name, path, body, status) of requests that must be refused, whatever the load
BAD: list[tuple[str, str, Any, int]] = [
    ("no prompt", DRAW, {}, 400),
    ("an empty prompt", DRAW, {"prompt": " "}, 400),
    ("too many pictures", DRAW, {"prompt": "a cat", "n": 99}, 400),
    ("an unknown field", DRAW, {"prompt": "a cat", "colour": "red"}, 400),
    ("a number as text", DRAW, {"prompt": "a cat", "seed": "one"}, 400),
    ("no JSON", CHAT, None, 400),
    ("no messages", CHAT, {"messages": []}, 400),
    ("another model", CHAT, {"model": "other", "messages": []}, 404),
    ("no such path", "/v1/nothing", {}, 404),
]
_BAD_URLS = {
    "a picture to fetch": "http://127.0.0.1/a.png",
    "a picture that is none": "data:image/png;base64,AAAA",
    "a picture in no base64": "data:image/png;base64,???",
}


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
      name: of its kind.
      number: of the request; equal names and numbers are equal requests.
      path, body: of HTTP; the body is JSON.
      stream: whether the answer comes as events.
      pictures: how many are to be drawn.
      status: that is expected.
    """

    name: str
    number: int
    path: str
    body: bytes
    stream: bool = False
    pictures: int = 0
    status: int = 200


def words(number: int, count: int) -> str:
    """A text of so many words."""
    return " ".join(random.Random(number).choices(WORDS, k=count))


@functools.lru_cache(maxsize=64)
def photo(width: int, height: int, seed: int, kind: str = "JPEG") -> str:
    """A `data:` URL of a picture with shapes and grain, so that it takes bytes as a photograph does."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(height // 64, 2), max(width // 64, 2), 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.integers(0, 24, (height, width, 1), np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.maximum(smooth, 24) - grain).save(file, kind)
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return f"data:image/{kind.lower()};base64,{encoded}"


def draw(number: int, n: int = 1, stream: bool = True, name: str = "draw", **fields: Any) -> Ask:
    """Pictures of a text; a stream shows each once before it is finished, unless `fields` say otherwise."""
    body = {"prompt": words(number, 2 + number % 8), "n": n, "seed": number, "stream": stream}
    body |= ({"partial_images": 1} if stream else {}) | fields
    return Ask(name, number, DRAW, _json(body), stream, pictures=n)


def chat(
    number: int,
    urls: Sequence[str] = (),
    stream: bool = True,
    name: str = "chat",
    **fields: Any,
) -> Ask:
    """A question, greedy unless `fields` say otherwise."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": u}} for u in urls]
    parts.append({"type": "text", "text": f"what is it? {words(number, 2 + number % 8)}"})
    body = {
        "messages": [{"role": "user", "content": parts}],
        "seed": number,
        "max_tokens": ANSWER_TOKENS,
        "stream": stream,
    }
    body |= ({"stream_options": {"include_usage": True}} if stream else {}) | fields
    return Ask(name, number, CHAT, _json(body), stream)


def chat_about_picture(number: int) -> Ask:
    """A question about a picture of everyday size."""
    return chat(number, [photo(640, 480, number % 4)], name="chat with a picture")


def mixed(number: int) -> Ask:
    """One of the three in turn."""
    make = (draw, chat, chat_about_picture)[number % 3]
    return dataclasses.replace(make(number), name="mix")


KINDS: dict[str, Callable[[int], Ask]] = {
    "draw": draw,
    "chat": chat,
    "chat with a picture": chat_about_picture,
    "mix": mixed,
}


def bad(number: int) -> Ask:
    """A request that must be refused."""
    urls = [(name, url) for name, url in _BAD_URLS.items()]
    number %= len(BAD) + len(urls)
    if number >= len(BAD):
        name, url = urls[number - len(BAD)]
        return dataclasses.replace(chat(number, [url], False, name), status=400)
    name, path, body, status = BAD[number]
    content = b'{"messages": ' if body is None else _json(body)
    return Ask(name, number, path, content, status=status)


def references() -> list[Ask]:
    """Requests whose answers are known: sent alone, and then again among others. Each once as a stream and once
    at once, which must be the same."""
    found = []
    for stream in (False, True):
        found += [
            draw(1, 2, stream, "reference draw"),
            draw(2, 1, stream, "reference draw", cfg_weight=3, top_k=50, temperature=0.9),
            chat(3, (), stream, "reference chat"),
            chat(4, [photo(320, 240, 1, "PNG")], stream, "reference chat"),
            chat(5, (), stream, "reference chat", temperature=1.0, top_p=0.9),
        ]
    return found


def anything(number: int) -> Ask:
    """A request of a random kind with random settings; one in ten is wrong."""
    rng = random.Random(number)
    if rng.random() < 0.1:
        return bad(number)
    stream = rng.random() < 0.5
    if rng.random() < 0.5:
        fields: dict[str, Any] = {"temperature": rng.choice([0.5, 1.0, 1.3])}
        if rng.random() < 0.4:
            fields["cfg_weight"] = rng.choice([1, 2.5, 5])
        if rng.random() < 0.3:
            fields["top_k"] = rng.choice([1, 20, 500])
        if rng.random() < 0.3:
            fields["top_p"] = rng.choice([0.5, 0.95])
        if stream:
            fields["partial_images"] = rng.randrange(4)
        return draw(number, rng.randint(1, 3), stream, "any draw", **fields)
    fields = {"max_tokens": rng.choice([1, 7, 40, 120])}
    if rng.random() < 0.6:
        fields |= {"temperature": rng.choice([0.7, 1.0]), "top_p": rng.choice([0.5, 1.0])}
    if rng.random() < 0.2:
        fields["stop"] = ["red", "."]
    kinds = ((320, 240, "PNG"), (640, 480, "JPEG"), (1600, 1200, "JPEG"), (1200, 900, "WEBP"))
    urls = []
    for _ in range(rng.randrange(3)):
        width, height, kind = rng.choice(kinds)
        urls.append(photo(width, height, rng.randrange(2), kind))
    return chat(number, urls, stream, "any chat", **fields)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
