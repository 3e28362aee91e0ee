"""The package `openai` as it is, against a real server in a thread."""

import base64
import io
import re
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

import openai
from dummies_serving import (
    CARD,
    FakeEngine,
    app_of,
    data_url,
    file_of,
    image_part,
    server_of,
    text_part,
    wait_for,
)
from PIL import Image

from janus_jax.serving import jobs

KEY = "a-key"


@pytest.fixture(scope="module")
def served():
    engine = FakeEngine()
    with server_of(app_of(engine, key=KEY)) as (_, port):
        base = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
            yield client, engine


def ask(client, content="hello", **options):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model=CARD.name, messages=messages, **options)


def shade(picture):
    return Image.open(io.BytesIO(base64.b64decode(picture))).getpixel((0, 0))[0]


def test_models(served):
    client, _ = served
    assert [model.id for model in client.models.list()] == [CARD.name]
    assert client.models.retrieve(CARD.name).owned_by == "janus_jax"


def test_chat_in_turns(served):
    client, engine = served
    answer = ask(client, temperature=0.5, top_p=0.9, seed=3, max_completion_tokens=9, stop=["x"])
    said = answer.choices[0].message
    assert said.content == "You said: hello" and answer.usage.total_tokens == 14
    assert answer.seed == 3
    again = [{"role": "user", "content": "hello"}, said, {"role": "user", "content": "more"}]
    client.chat.completions.create(model=CARD.name, messages=again)
    assert [m.text for m in engine.jobs[-1].messages] == ["hello", "You said: hello", "more"]


def test_vision(served):
    client, engine = served
    answer = ask(client, [text_part("what?"), image_part(data_url(file_of(77)))])
    assert "what?" in answer.choices[0].message.content
    (picture,) = engine.jobs[-1].messages[0].pictures
    assert int(picture[3, 3, 0]) == 77


def test_a_stream(served):
    client, _ = served
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == "You said: hello" and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == 3


def test_images(served):
    client, engine = served
    own = {"seed": 4, "cfg_weight": 2}
    drawn = client.images.generate(
        model=CARD.name, prompt="a", n=2, size="32x32", response_format="b64_json", extra_body=own
    )
    assert [shade(image.b64_json) for image in drawn.data] == [4, 5]
    assert engine.jobs[-1].cfg_weight == 2.0 and drawn.usage.output_tokens == 200


def test_an_image_stream(served):
    client, _ = served
    stream = client.images.generate(
        prompt="a", stream=True, partial_images=2, extra_body={"seed": 9}
    )
    events = list(stream)
    partial, (done,) = events[:-1], events[-1:]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert {event.type for event in partial} == {"image_generation.partial_image"}
    assert done.type == "image_generation.completed" and shade(done.b64_json) == 9
    # What the package declares of an event is there, and of the declared type.
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)


def test_errors_are_exceptions_of_the_package(served):
    client, engine = served
    with pytest.raises(openai.BadRequestError, match=r"size must be 32x32") as caught:
        client.images.generate(prompt="a", size="512x512")
    assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="janus-test only"):
        client.images.generate(prompt="a", model="gpt-image-1")
    usual = engine.script
    try:
        engine.script = lambda job: jobs.QueueFull(1)
        with pytest.raises(openai.RateLimitError):
            ask(client)
        engine.script = lambda job: [jobs.Delta("a"), jobs.Failed("error", "it broke")]
        with pytest.raises(openai.APIError, match="it broke"):
            list(ask(client, stream=True))
    finally:
        engine.script = usual


def test_the_example_of_the_docs(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    client, _ = served
    page = Path(__file__).resolve().parent.parent / "docs" / "serving.md"
    (example,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    example = example.replace("http://127.0.0.1:8000/v1", str(client.base_url))
    exec(example.replace('"none"', repr(KEY)), {})
    assert capsys.readouterr().out == "You said: what is it?"
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["dog_completed.png", "dog_partial_image.png"]


def test_to_close_a_stream_cancels(served):
    client, engine = served
    engine.go.clear()
    try:
        stream = ask(client, stream=True, seed=77)
        next(iter(stream))
        stream.close()
        wait_for(lambda: any(job.seed == 77 for job in engine.cancelled))
    finally:
        engine.go.set()
