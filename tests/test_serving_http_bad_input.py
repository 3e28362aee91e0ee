"""What the server refuses: with which status, about which field, and without a job for the engine."""

import base64
import gzip
import json
import struct
import zlib

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")

from dummies_serving import (
    CHAT,
    DRAW,
    FakeEngine,
    asking,
    client_of,
    data_url,
    file_of,
    image_part,
    text_part,
)


def huge_png(width, height):
    """A PNG whose header says that it is huge, and which has next to no pixels."""
    chunks = b""
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 100)),
        (b"IEND", b""),
    ):
        chunks += struct.pack(">I", len(data)) + kind + data
        chunks += struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.fixture(scope="module")
def served():
    engine = FakeEngine()
    with client_of(engine) as client:
        yield client, engine


def refused(served, path, body, **sent):
    client, engine = served
    engine.jobs.clear()
    sent = sent or {"json": body}
    answer = client.post(path, **sent)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and len(error["message"]) < 400
    assert not engine.jobs
    return answer.status_code, error


PNG = data_url(file_of())
SEEN = image_part(PNG)
URL = "messages[0].content[0].image_url.url"
GOOD = [{"role": "user", "content": "hello"}]
DRAWN = {"prompt": "a car"}

PICTURES = {
    "bad base64": ("data:image/png;base64,iVBOR!!!", "base64"),
    "base64 of the wrong length": (PNG[:-1], "base64"),
    "a line break in base64": (PNG[:60] + "\n" + PNG[60:], "base64"),
    "empty": ("data:image/png;base64,", "is empty"),
    "no picture": (data_url(b"%PDF-1.7 and so on"), "no picture"),
    "a truncated PNG": (data_url(file_of(side=300)[:-40]), "truncated"),
    "half a header": (data_url(file_of()[:20]), "no picture"),
    "30k x 30k": (data_url(huge_png(30000, 30000)), "pixels"),
    "26 megapixels": (data_url(huge_png(5000, 5200)), "5000x5200 pixels, at most 25"),
    "a TIFF": (data_url(file_of(kind="TIFF")), "no picture"),
    "11 MB": (data_url(b"\0" * 11 * 2**20), "more than 10 MiB"),
    "not an image type": (data_url(file_of(), "text/plain"), "not fetched"),
    "not in base64": ("data:image/svg+xml,<svg/>", "not fetched"),
    "another encoding": ("data:image/png;charset=x;base64,AAAA", "not fetched"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(served, name):
    url, words = PICTURES[name]
    status, error = refused(served, CHAT, asking(image_part(url), text_part()))
    assert (status, error["param"]) == (400, URL)
    assert words in error["message"]


NOT_FETCHED = [
    "http://127.0.0.1/x.png",
    "http://[::1]/x.png",
    "http://169.254.169.254/latest/meta-data/",
    "https://10.0.0.1/x.png",
    "http://2130706433/x.png",
    "http://[::ffff:127.0.0.1]/x.png",
    "https://example.com/redirect?to=http://localhost",
    "HTTPS://example.com/x.png",
    "file:///etc/passwd",
    "FILE:/etc/passwd",
    "ftp://example.com/x.png",
    "gopher://x",
    "//example.com/x.png",
    "/etc/passwd",
    "../x.png",
    "runs/x.png",
    "\tdata:image/png;base64,AAAA",
    "blob:abc",
    "",
]


@pytest.mark.parametrize("url", NOT_FETCHED)
def test_nothing_is_fetched(served, url, monkeypatch):
    import socket

    def no_network(*args, **kwargs):
        raise AssertionError("the server asks the network")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    status, error = refused(served, CHAT, asking(image_part(url), text_part()))
    assert (status, error["param"], error["code"]) == (400, URL, "unsupported_url")
    assert "data:image/png;base64" in error["message"]


DRAWINGS = {
    "prompt": [None, 3, "", "  \n", "x" * 100_001, ["a"]],
    "n": [0, 11, -1, 1.5, "2", True],
    "size": ["512x512", "32", "32X32", 32],
    "temperature": [-0.1, "1", True, 10**400],
    "cfg_weight": [-1, 10**6],
    "guidance_scale": [-1],
    "top_k": [0, -3, 1.0],
    "top_p": [0, -1, 1.01],
    "seed": [-1, 2**32, 0.5],
    "response_format": ["url", "b64"],
    "output_format": ["jpeg"],
    "partial_images": [4, -1, 1],  # 1 without stream
    "stream": ["true", 1],
    "quality": ["hd"],
    "style": ["natural"],
    "background": ["transparent"],
    "moderation": ["high"],
    "user": [3],
    "model": [3],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f in DRAWINGS for v in DRAWINGS[f]])
def test_drawings(served, field, value):
    text = json.dumps({**DRAWN, field: value})
    headers = {"Content-Type": "application/json"}
    status, error = refused(served, DRAW, None, content=text, headers=headers)
    assert (status, error["param"]) == (400, field)
    assert field in error["message"]


def test_two_names_of_one_setting(served):
    both = {**DRAWN, "cfg_weight": 3, "guidance_scale": 3}
    assert refused(served, DRAW, both)[0] == 400
    both = {"messages": GOOD, "max_tokens": 3, "max_completion_tokens": 3}
    assert refused(served, CHAT, both)[0] == 400


def test_an_unknown_field_is_refused_with_the_nearest_name(served):
    status, error = refused(served, DRAW, {**DRAWN, "cfg_wieght": 3})
    assert (status, error["code"], error["param"]) == (400, "unsupported_field", "cfg_wieght")
    assert "Did you mean 'cfg_weight'?" in error["message"]
    status, error = refused(served, CHAT, {"messages": GOOD, "min_p": 0.1})
    assert (status, error["code"], error["param"]) == (400, "unsupported_field", "min_p")
    inside = {**SEEN, "image_url": {"url": PNG, "width": 3}}
    error = refused(served, CHAT, asking(inside, text_part()))[1]
    assert error["param"] == "messages[0].content[0].image_url.width"
    error = refused(served, CHAT, {"messages": [{**GOOD[0], "refusal": "x"}]})[1]
    assert error["param"] == "messages[0].refusal"


def turns(*roles):
    return [{"role": role, "content": "x"} for role in roles]


CONVERSATIONS = {
    "none": ([], "messages"),
    "no list": ("hello", "messages"),
    "no message": (["hello"], "messages[0]"),
    "an unknown role": (turns("robot"), "messages[0].role"),
    "no role": ([{"content": "x"}], "messages[0].role"),
    "two names": (
        [{**GOOD[0], "name": "ann"}, {**GOOD[0], "name": "bob"}],
        "messages[1].name",
    ),
    "a call of a tool": (
        [*GOOD, {"role": "assistant", "content": None, "tool_calls": [{}]}, *GOOD],
        "messages[1].tool_calls",
    ),
    "the answer of a tool": (turns("user", "tool"), "messages[1].role"),
    "a citation": (
        [*GOOD, {"role": "assistant", "content": "x", "annotations": [{}]}, *GOOD],
        "messages[1].annotations",
    ),
    "an answer of nothing": ([{"role": "assistant", "content": ""}], "messages[0].role"),
    "the assistant first": (turns("assistant", "user"), "messages[0].role"),
    "a late system": (turns("user", "system"), "messages[1].role"),
    "only a system": (turns("system"), "messages[0].role"),
    "the assistant last": (turns("user", "assistant"), "messages[1].role"),
    "201 messages": (turns(*["user", "assistant"] * 100, "user"), "messages"),
    "too many letters": ([{"role": "user", "content": "x" * 100_001}], "messages"),
    "empty": ([{"role": "user", "content": " "}], "messages[0].content"),
    "no content": ([{"role": "user"}], "messages[0].content"),
    "a number": ([{"role": "user", "content": 3}], "messages[0].content"),
    "no text": (asking(SEEN)["messages"], "messages[0].content"),
    "no parts": (asking()["messages"], "messages[0].content"),
    "an unknown part": (asking({"type": "audio"})["messages"], "messages[0].content[0].type"),
    "9 pictures": (asking(*[SEEN] * 9, text_part())["messages"], "messages"),
    "a picture of the system": (
        [{"role": "system", "content": [SEEN, text_part()]}, *GOOD],
        "messages[0].content[0].type",
    ),
    "the place of a picture": (
        asking(SEEN, text_part("<image_placeholder> is?"))["messages"],
        "messages[0].content",
    ),
    "a text as image_url": (
        asking({"type": "image_url", "image_url": PNG}, text_part())["messages"],
        "messages[0].content[0].image_url",
    ),
    "a detail": (
        asking({"type": "image_url", "image_url": {"url": PNG, "detail": "low"}})["messages"],
        "messages[0].content[0].image_url.detail",
    ),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations(served, name):
    messages, param = CONVERSATIONS[name]
    status, error = refused(served, CHAT, {"messages": messages})
    assert (status, error["param"]) == (400, param)


CHATS = {
    "max_tokens": [0, 1025, "9"],
    "temperature": [-0.1, 2.1],
    "top_p": [0, 1.5],
    "n": [2],
    "seed": [-1],
    "stop": ["", [""], ["a"] * 5, 3],
    "stream_options": [{"include_usage": True}],  # without stream
    "logprobs": [True, 0],
    "top_logprobs": [3],
    "frequency_penalty": [0.1, False],
    "presence_penalty": [-1],
    "logit_bias": [{"50256": -100}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}],
    "modalities": [["text", "audio"]],
    "store": [True],
    "service_tier": ["priority"],
    "tools": [[{"type": "function", "function": {"name": "f"}}], {}],
    "tool_choice": ["required", {"type": "function", "function": {"name": "f"}}],
    "parallel_tool_calls": ["true"],
    "metadata": ["x"],
    "user": [{"id": "me"}],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f in CHATS for v in CHATS[f]])
def test_settings_of_answers(served, field, value):
    status, error = refused(served, CHAT, {"messages": GOOD, field: value})
    assert (status, error["param"]) == (400, field)


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "no UTF-8": b'{"prompt": "\xff"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "a field twice": b'{"prompt": "a", "prompt": "b"}',
    "deep": b"[" * 10**5,
    "many digits": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "a list": b"[]",
    "many values": b"[" + b"[]," * 500_000 + b"[]]",
    "half of a character": b'{"prompt": "\\ud800"}',
    "control characters in a name": b'{"prompt": "a", "x\\u001b[2J\\n": 1}',
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(served, name):
    headers = {"Content-Type": "application/json"}
    for path in (DRAW, CHAT) if name != "control characters in a name" else (DRAW,):
        status, error = refused(served, path, None, content=BODIES[name], headers=headers)
        assert status == 400 and error["message"].isprintable()


def test_a_form_of_a_web_page_is_refused(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        sent = {"content": b'{"prompt": "a"}', "headers": {"Content-Type": kind}}
        assert refused(served, DRAW, None, **sent)[0] == 415


def test_a_compressed_body_is_refused(served):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    packed = {"content": gzip.compress(b'{"prompt": "a"}'), "headers": headers}
    status, error = refused(served, DRAW, None, **packed)
    assert status == 415 and "without compression" in error["message"]


def test_another_model_and_other_paths(served):
    status, error = refused(served, DRAW, {**DRAWN, "model": "gpt-9"})
    assert (status, error["code"]) == (404, "model_not_found") and "janus-test" in error["message"]
    assert refused(served, "/v1/embeddings", {})[0] == 404
    assert refused(served, "/health", {})[0] == 405
    assert served[0].get(DRAW).json()["error"]["type"] == "invalid_request_error"
    assert served[0].get("/v1/models/x%1b%0a").status_code == 404


def test_strict_base64_has_no_second_spelling():
    """Unused bits that are set, which Python's decoder lets pass."""
    from janus_jax.serving.http.errors import ApiError
    from janus_jax.serving.http.limits import Limits
    from janus_jax.serving.http.pictures import picture_of_url

    padded = base64.b64encode(file_of()).decode().rstrip("=")
    with pytest.raises(ApiError, match="base64"):
        picture_of_url(f"data:image/png;base64,{padded}=A=", 16, Limits(), "x")
