"""The server on an engine without a model: answers, streams, failures, keys, limits, clients that go."""

import asyncio
import base64
import io
import json
import socket
import threading

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

from dummies_serving import (
    CARD,
    CHAT,
    DRAW,
    FakeEngine,
    app_of,
    asking,
    call,
    client_of,
    data_url,
    events_of,
    file_of,
    image_part,
    part,
    picture,
    server_of,
    text_part,
    wait_for,
)
from PIL import Image

from janus_jax.errors import UserError
from janus_jax.serving import jobs
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.schemas import chat_request

ROUTES = [
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/janus-test"),
    ("GET", "/no/such/path"),
    ("POST", CHAT),
    ("POST", DRAW),
    ("OPTIONS", CHAT),
]
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


def pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))))


def events(answer):
    """(name, value) of each event of a stream."""
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        data = lines["data"]
        found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found


def test_pictures_come_in_order_with_their_seed():
    engine = FakeEngine()
    body = {"prompt": "a car", "n": 3, "seed": 7, "guidance_scale": 2, "size": "32x32", "top_k": 9}
    with client_of(engine) as client:
        answer = client.post(DRAW, json=body | {"model": CARD.name, "top_p": 0.5}).json()
        unseeded = client.post(DRAW, json={"prompt": "a car"}).json()
    shades = [pixels(entry["b64_json"]) for entry in answer["data"]]
    for i, shown in enumerate(shades):
        np.testing.assert_array_equal(shown, picture(7 + i))
    assert (answer["seed"], answer["size"], answer["output_format"]) == (7, "32x32", "png")
    assert answer["usage"]["total_tokens"] == 305
    wanted = jobs.DrawJob("a car", 3, 7, cfg_weight=2.0, top_k=9, top_p=0.5)
    assert engine.jobs == [wanted, jobs.DrawJob("a car", seed=unseeded["seed"])]


def test_pictures_grow_in_a_stream():
    body = {"prompt": "a car", "n": 2, "seed": 1, "stream": True, "partial_images": 3}
    with client_of() as client:
        answer = client.post(DRAW, json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer)
    assert all(name == value["type"] and value["seed"] == 1 for name, value in found)
    partial = [v for n, v in found if n == "image_generation.partial_image"]
    for i in range(2):
        numbers = [v["partial_image_index"] for v in partial if v["image_index"] == i]
        assert numbers == [0, 1, 2]
    done = [v for n, v in found[-2:] if n == "image_generation.completed"]
    assert [int(pixels(v["b64_json"])[0, 0, 0]) for v in done] == [1, 2]
    assert len(found) == 8 and done[0]["usage"]["output_tokens"] == 200


def test_an_answer_and_its_stream():
    with client_of() as client:
        answer = client.post(CHAT, json=HELLO | {"seed": 5, "max_tokens": 1}).json()
        with_usage = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = events(client.post(CHAT, json=HELLO | {"seed": 5} | with_usage))
    (choice,) = answer["choices"]
    assert choice["message"]["content"] == "You said: hello" and choice["finish_reason"] == "length"
    assert (answer["seed"], answer["model"], answer["usage"]["total_tokens"]) == (5, CARD.name, 14)
    assert streamed.pop() == (None, "[DONE]")
    *chunks, usage = [value for _, value in streamed]
    assert {chunk["id"] for chunk in chunks} == {usage["id"]} and usage["seed"] == 5
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas[1:-1]) == "You said: hello"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 3)


def test_conversations_reach_the_engine_with_pictures_in_place():
    red, blue = (image_part(data_url(file_of(shade, 8))) for shade in (50, 200))
    first = asking(red, text_part("one?"), text_part("two?"))["messages"]
    second = asking(text_part("is"), blue, text_part("like"), red, text_part("?"))["messages"]
    messages = [{"role": "system", "content": "Be brief."}, *first]
    messages += [{"role": "assistant", "content": "yes", "refusal": None}, *second]
    body = {"messages": messages, "stop": "x", "temperature": 1, "top_p": 1.0, "seed": 3}
    job = chat_request(body, CARD, Limits()).job
    assert [m.role for m in job.messages] == ["system", "user", "assistant", "user"]
    assert (job.stop, job.temperature, job.top_p, job.seed) == (("x",), 1.0, 1.0, 3)
    assert job.messages[1].text == "one?\ntwo?"  # a picture in front needs no place
    place = "<image_placeholder>"
    assert job.messages[3].text == f"is\n{place}\nlike\n{place}\n?"
    shown = [p for message in job.messages for p in message.pictures]
    assert [(p.shape, p.dtype, int(p[0, 0, 0])) for p in shown] == [
        ((16, 16, 3), np.uint8, shade) for shade in (50, 200, 50)
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_of_the_web(kind):
    body = asking(image_part(data_url(file_of(90, kind=kind), "IMAGE/x-any")), text_part())
    (message,) = chat_request(body, CARD, Limits()).job.messages
    assert abs(int(message.pictures[0][8, 8, 0]) - 90) < 3


def test_a_picture_of_the_model_size_stays_as_it_is():
    """The engine brings pictures to this size, too: to do so twice must change nothing."""
    from janus_jax.processing import understanding_pixels

    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    np.testing.assert_array_equal(understanding_pixels(Image.fromarray(noise), 16), noise)


FAILURES = [
    (jobs.QueueFull(2.2), 429, "queue_full"),
    (UserError("the prompt is too long"), 400, "invalid_value"),
    (RuntimeError("secret detail"), 500, "internal_error"),
    ([jobs.Failed("invalid", "no")], 400, "invalid_value"),
    ([jobs.Failed("deadline", "too late")], 504, "deadline_exceeded"),
    ([jobs.Failed("error", "broken")], 500, "internal_error"),
]


@pytest.mark.parametrize(("failure", "status", "code"), FAILURES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [(DRAW, {"prompt": "a"}), (CHAT, HELLO)])
def test_failures_before_the_first_event_have_their_status(
    failure, status, code, stream, path, body
):
    with client_of(FakeEngine(lambda job: failure)) as client:
        answer = client.post(path, json=body | {"stream": stream})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text
    if status == 429:
        assert answer.headers["retry-after"] == "3"


def test_a_failure_in_a_stream_is_its_last_event():
    script = [jobs.Delta("half"), jobs.Failed("deadline", "too late")]
    with client_of(FakeEngine(lambda job: script)) as client:
        found = events(client.post(CHAT, json=HELLO | {"stream": True}))
    assert [name for name, _ in found] == [None, None, "error"]
    assert found[-1][1]["error"]["message"] == "too late"


def test_a_job_past_its_deadline(monkeypatch):
    engine = FakeEngine()
    engine.go.clear()
    with client_of(engine, limits={"seconds": 0.05}) as client:
        assert client.post(CHAT, json=HELLO).status_code == 504
    # An engine that says nothing at all.
    monkeypatch.setattr("janus_jax.serving.http.running.GRACE", 0.0)
    silent = FakeEngine(lambda job: iter(()))
    with client_of(silent, limits={"seconds": 0.05}) as client:
        answer = client.post(DRAW, json={"prompt": "a"})
    assert answer.status_code == 504 and "does not answer" in answer.text


def test_every_route_but_health_wants_the_key():
    engine = FakeEngine()
    with client_of(engine, key="a secret") as client:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer a secre"},
            {"Authorization": "a secret"},
            {"Authorization": "Basic a secret"},
            {"Authorization": b"Bearer \xff"},
        ):
            for method, path in ROUTES:
                answer = client.request(method, path, headers=headers, json={})
                assert answer.status_code == 401, path
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert "a secret" not in answer.text
        assert client.get("/health").status_code == 200
        assert client.get("/health/").status_code == 401
        right = {"Authorization": "bearer a secret"}
        assert client.post(CHAT, json=HELLO, headers=right).status_code == 200
        assert client.get("/v1/models", headers=right).json()["data"][0]["id"] == CARD.name
    assert len(engine.jobs) == 1


def test_a_server_without_a_key_answers_to_localhost_only():
    with client_of() as client:
        for host, status in (
            ("localhost:8000", 200),
            ("127.0.0.1", 200),
            ("[::1]:80", 200),
            ("[::1]", 200),
            ("evil.example:8000", 403),
            ("localhost.evil.example", 403),
            ("", 403),
        ):
            assert client.get("/v1/models", headers={"Host": host}).status_code == status, host
    with client_of(local_only=False) as client:
        assert client.get("/v1/models", headers={"Host": "janus.example"}).status_code == 200


def test_health_tells_that_the_engine_has_stopped():
    engine = FakeEngine()
    engine.failed, engine.ready = True, False
    with client_of(engine) as client:
        for path in ("/health", "/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_stopped")


def test_an_engine_that_is_stuck_does_not_keep_the_server(monkeypatch, caplog):
    engine, left = FakeEngine(), threading.Event()
    engine.close = lambda: left.wait(10)
    monkeypatch.setattr("janus_jax.serving.http.app.CLOSING", 0.05)
    with client_of(engine):
        pass
    assert "does not end" in caplog.text and not left.is_set()
    left.set()


def test_ready_and_metrics_and_the_end():
    engine = FakeEngine()
    engine.ready = False
    with client_of(engine) as client:
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 503
        engine.ready = True
        assert client.get("/ready").status_code == 200
        client.post(CHAT, json=HELLO)
        client.get("/made/up")
        lines = client.get("/metrics").text.splitlines()
        assert engine.closed is None
    assert engine.closed is True
    for line in (
        "janus_ready 1.0",
        'janus_engine_waiting{kind="draw"} 2.0',
        'janus_engine_made_total{kind="chat"} 1.5',
        f'janus_http_requests_total{{path="{CHAT}",status="200"}} 1.0',
        'janus_http_requests_total{path="/ready",status="503"} 1.0',
        'janus_http_requests_total{path="other",status="404"} 1.0',
    ):
        assert line in lines


def test_bodies_that_are_too_large():
    engine = FakeEngine()
    with client_of(engine, limits={"body": 1000, "bodies": 1500}) as client:
        answer = client.post(CHAT, json=HELLO | {"x": "y" * 1000})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        # Without a length: in pieces.
        answer = client.post(CHAT, content=(b"x" * 100 for _ in range(11)))
        assert answer.status_code == 413
        assert client.post(CHAT, json=HELLO).status_code == 200
    assert len(engine.jobs) == 1


def test_a_body_that_does_not_arrive_and_too_many_at_once():
    limits = {"body_seconds": 0.2, "bodies": 1000}

    async def slow():
        app = app_of(FakeEngine(), limits=limits)
        first, second = asyncio.Queue(), asyncio.Queue()
        first.put_nowait(part(b"x" * 900, more=True))
        sent, waits = call(app, first)
        await asyncio.sleep(0.01)
        second.put_nowait(part(b"x" * 200, more=True))
        refused, ends = call(app, second)
        await ends
        assert refused[0]["status"] == 429
        await waits
        assert sent[0]["status"] == 408
        # What they held is free again.
        third = asyncio.Queue()
        third.put_nowait(part(json.dumps(HELLO).encode().ljust(900)))
        answered, ends = call(app, third)
        await ends
        assert answered[0]["status"] == 200

    asyncio.run(slow())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_goes_away_cancels_its_job_alone(stream, started):
    def script(job):
        if started:
            yield jobs.Delta("a")
        while not engine.go.is_set():
            engine.go.wait(0.005)
            yield jobs.Delta("")
        yield from events_of(job)

    engine = FakeEngine(script)
    engine.go.clear()
    body = json.dumps(HELLO | {"stream": stream, "seed": 1}).encode()
    other = json.dumps(HELLO | {"stream": stream, "seed": 2}).encode()

    async def go():
        app = app_of(engine)
        leaves, stays = asyncio.Queue(), asyncio.Queue()
        leaves.put_nowait(part(body))
        stays.put_nowait(part(other))
        _, gone = call(app, leaves)
        answered, ends = call(app, stays)
        await asyncio.to_thread(wait_for, lambda: len(engine.jobs) == 2)
        leaves.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(gone, 5)
        await asyncio.to_thread(wait_for, lambda: engine.cancelled)
        engine.go.set()
        await asyncio.wait_for(ends, 5)
        assert b"said: " in b"".join(m.get("body", b"") for m in answered)

    asyncio.run(go())
    assert [job.seed for job in engine.cancelled] == [1]


def test_a_stream_that_cannot_be_sent_cancels_its_job():
    """As of servers that raise where the client has gone, instead of saying so."""
    engine = FakeEngine()
    engine.go.clear()

    async def go():
        connection = asyncio.Queue()
        connection.put_nowait(part(json.dumps(HELLO | {"stream": True}).encode()))

        def broken(message):
            if message["type"] == "http.response.body":
                raise OSError("the pipe is broken")

        _, ends = call(app_of(engine), connection, on_send=broken)
        with pytest.raises(OSError, match="pipe"):
            await asyncio.wait_for(ends, 5)
        await asyncio.to_thread(wait_for, lambda: engine.cancelled)

    asyncio.run(go())


def test_a_connection_that_is_closed_on_a_real_server():
    engine = FakeEngine()
    engine.go.clear()
    body = json.dumps({"prompt": "a", "stream": True, "partial_images": 1}).encode()
    head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with server_of(app_of(engine)) as address:
        with socket.create_connection(address) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_for(lambda: engine.jobs)
        wait_for(lambda: engine.cancelled)


def test_a_client_that_does_not_read_its_stream_is_given_up(monkeypatch):
    import httpx

    monkeypatch.setattr("janus_jax.serving.http.sse.READING", 0.2)
    # 30 of them are more than sockets hold
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)

    engine = FakeEngine(lambda job: [jobs.Preview(0, noise, 1, 2)] * 30)
    body = json.dumps({"prompt": "a", "stream": True, "partial_images": 3}).encode()
    head = f"POST {DRAW} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    done = f'janus_http_requests_total{{path="{DRAW}",status="200"}}'
    server = server_of(app_of(engine, limits={"seconds": 0.5}))
    with server as address, socket.create_connection(address) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        url = "http://{}:{}/metrics".format(*address)
        wait_for(lambda: done in httpx.get(url).text)


def test_a_stop_waits_for_what_is_running():
    import httpx

    engine = FakeEngine()
    engine.go.clear()
    found = []

    def ask():
        found.append(httpx.post(f"http://127.0.0.1:{port}{CHAT}", json=HELLO, timeout=10))

    with server_of(app_of(engine)) as (_, port):
        asking_thread = threading.Thread(target=ask)
        asking_thread.start()
        wait_for(lambda: engine.jobs)
        threading.Timer(0.3, engine.go.set).start()
    asking_thread.join()
    assert found[0].status_code == 200 and engine.closed is True and not engine.cancelled


def test_a_request_that_is_slow_to_read_does_not_hold_up_others(monkeypatch):
    go = threading.Event()

    def slow(*args):
        assert go.wait(5)
        return chat_request(*args)

    monkeypatch.setattr("janus_jax.serving.http.chat_api.chat_request", slow)

    async def run():
        app = app_of(FakeEngine())
        question, drawing = asyncio.Queue(), asyncio.Queue()
        question.put_nowait(part(json.dumps(HELLO).encode()))
        drawing.put_nowait(part(b'{"prompt": "a"}'))
        answered, ends = call(app, question)
        await asyncio.sleep(0.05)
        drawn, drawing_ends = call(app, drawing, DRAW)
        await asyncio.wait_for(drawing_ends, 4)
        assert drawn[0]["status"] == 200 and not answered
        go.set()
        await ends
        assert answered[0]["status"] == 200

    asyncio.run(run())
