"""The page over HTTP without a browser: who may ask, which routes there are, which files, what ends with whom."""

import asyncio
import base64
import json
import re
import sys
import urllib.parse

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")
pytest.importorskip("gradio", minversion="6")

from dummies_serving import CARD, DRAW, FakeEngine, app_of, client_of, file_of, server_of, wait_for
from starlette.responses import Response
from starlette.routing import Mount, Route

from janus_jax.cli import serve
from janus_jax.serving.page.files import PictureFiles
from janus_jax.serving.page.guard import Guard
from janus_jax.serving.page.sessions import Sessions

PATHS = ["/", "/ui", "/ui/", "/ui/config", "/ui/gradio_api/queue/data", "/ui/no/such/path"]
API = "/ui/gradio_api"


def basic(password, user="anybody"):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(scope="module")
def client():
    with client_of(page=True) as client:
        yield client


@pytest.fixture(scope="module")
def locked():
    with client_of(page=True, key="the:key") as client:
        yield client


def test_the_root_leads_to_the_page(client):
    for path in ("/", "/ui"):
        answer = client.get(path, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (307, "/ui/")
    answer = client.get("/ui/")
    assert answer.status_code == 200 and CARD.name in answer.text
    assert client.get("/v1/models").json()["data"][0]["id"] == CARD.name


def test_without_the_page_nothing_of_it_is_there():
    with client_of() as client:
        assert {client.get(path).status_code for path in PATHS} == {404}


def test_nothing_of_the_page_is_of_other_servers(client):
    answer = client.get("/ui/")
    policy = dict(
        p.strip().split(" ", 1) for p in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    assert not any("http" in sources or "*" in sources for sources in policy.values())
    loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"([^\"]*)", answer.text)
    assert loaded and not [url for url in loaded if url.startswith(("http:", "//"))]
    style = client.get("/ui/theme.css").text
    assert "googleapis" not in style and "system-ui" in style


@pytest.mark.parametrize("path", PATHS)
def test_the_page_wants_the_key_as_a_password(locked, path):
    def status(**headers):
        return locked.get(path, headers=headers, follow_redirects=False).status_code

    refused = locked.get(path, follow_redirects=False)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic realm=")
    assert status(**basic("the:key")) != 401 != status(**basic("the:key", user=""))
    assert status(Authorization="Bearer the:key") != 401
    for wrong in ("the:kez", "the", "key", "", "the:key2"):
        assert status(**basic(wrong)) == 401
    for header in ("Basic", "Basic !!", "Basic dGhlOmtleQ", "Basic the:key", "Digest the:key"):
        assert status(Authorization=header) == 401


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/ready", "/uix", "/health/../ui2"])
def test_a_password_is_for_the_page_only(locked, path):
    answer = locked.get(path, headers=basic("the:key"))
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"


SITES = [
    ({}, True),
    ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Sec-Fetch-Site": "same-site"}, False),  # another port of this machine
    ({"Sec-Fetch-Site": "of tomorrow"}, False),
    ({"Origin": "http://127.0.0.1"}, True),
    ({"Origin": "http://127.0.0.1:1234"}, False),
    ({"Origin": "https://example.com"}, False),
    ({"Origin": "null"}, False),
    ({"Origin": "https://example.com", "Sec-Fetch-Site": "cross-site"}, False),
]


@pytest.mark.parametrize(("headers", "allowed"), SITES)
@pytest.mark.parametrize("key", [None, "the:key"])
def test_other_sites_cannot_use_the_page(client, locked, key, headers, allowed):
    asked, known = (client, {}) if key is None else (locked, basic(key))
    for method, path in (("GET", "/ui/config"), ("POST", f"{API}/queue/join"), ("GET", "/ui/")):
        answer = asked.request(method, path, headers={**known, **headers})
        assert (answer.status_code == 403) is not allowed, path
    body = {"prompt": "a"}  # the API does not look: its key is sent by programs only
    known = {} if key is None else {"Authorization": f"Bearer {key}"}
    assert asked.post(DRAW, json=body, headers={**known, **headers}).status_code == 200


def test_a_link_from_elsewhere_leads_to_the_page(client):
    link = {
        "Sec-Fetch-Site": "cross-site",
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
    }
    for path in ("/", "/ui", "/ui/"):
        assert client.get(path, headers=link).status_code == 200
    assert client.get("/ui/config", headers=link).status_code == 403
    assert client.post("/ui/", headers=link).status_code == 403
    assert client.get("/ui/", headers=link | {"Sec-Fetch-Dest": "iframe"}).status_code == 403


def test_the_page_answers_to_localhost_only_without_a_key(client):
    assert client.get("/ui/", headers={"Host": "example.com"}).status_code == 403


def test_no_file_of_the_machine_is_reached(client, tmp_path):
    secret = tmp_path / "checkpoint" / "janus.json"
    secret.parent.mkdir()
    secret.write_text("a secret")
    uploaded = client.post(f"{API}/upload", files={"files": ("a.png", file_of())}).json()[0]
    assert client.get(f"{API}/file={uploaded}").content == file_of()
    folder = uploaded.rsplit("/", 2)[0]
    up = "../" * 12
    for path in (
        "/etc/passwd",
        str(secret),
        __file__,
        f"{folder}/{up}etc/passwd",
        "pyproject.toml",
    ):
        for sent in (
            path,
            urllib.parse.quote(path, safe=""),
            urllib.parse.quote(path).replace(".", "%2e"),
        ):
            answer = client.get(f"{API}/file={sent}")
            assert answer.status_code in (403, 404) and "root:" not in answer.text, sent
            assert "secret" not in answer.text
        for payload in ({"path": path}, {"path": path, "url": f"/ui/gradio_api/file={uploaded}"}):
            question = {
                "text": "what?",
                "files": [{**payload, "meta": {"_type": "gradio.FileData"}}],
            }
            for route in ("queue/join", "run/predict"):
                body = {"fn_index": 4, "session_hash": "s", "data": [None, question, 0, 9]}
                answer = client.post(f"{API}/{route}", json=body)
                assert answer.status_code == 403 and answer.json()["error"]["code"] == "path"


def test_no_url_is_fetched(client, monkeypatch):
    import socket

    def nowhere(*args, **options):
        raise AssertionError("it asks another server")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    for url in (
        "http://example.com/a.png",
        "https://example.com/a.png",
        "ftp://x/y",
        "file:///etc/passwd",
    ):
        assert client.get(f"{API}/file={url}").status_code == 404
        body = {"fn_index": 4, "session_hash": "s", "data": [{"path": url}]}
        assert client.post(f"{API}/queue/join", json=body).status_code == 403


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"{API}/proxy=https://example.com"),
        ("POST", f"{API}/run-history/connect"),
        ("GET", f"{API}/run-history/buckets"),
        ("POST", f"{API}/call/draw"),
        ("POST", f"{API}/api/predict"),
        ("POST", f"{API}/component_server"),
        ("POST", f"{API}/process_recording"),
        ("POST", f"{API}/vibe-edit"),
        ("GET", f"{API}/deep_link"),
        ("GET", f"{API}/dev/reload"),
        ("GET", "/ui/monitoring"),
        ("POST", "/ui/login"),
        ("GET", f"{API}/heartbeat/a/b"),
        ("DELETE", "/ui/config"),
        ("OPTIONS", f"{API}/queue/join"),
    ],
)
def test_routes_of_gradio_that_are_not_needed_do_not_exist(client, method, path):
    answer = client.request(method, path)
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_uploads_have_limits():
    limits = {"picture_bytes": 3000, "body": 9000}
    with client_of(page=True, limits=limits) as client:
        for size, status in ((2000, 200), (4000, 413), (10_000, 413)):
            answer = client.post(f"{API}/upload", files={"files": ("a.png", bytes(size))})
            assert answer.status_code == status


def test_no_event_waits_for_another_page(client):
    config = client.get("/ui/config").json()
    queued = [event for event in config["dependencies"] if event["queue"]]
    assert len(queued) == 4  # draw, ask, ask again, take a picture over
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
    assert config["enable_queue"] and not config.get("analytics_enabled")
    guard = next(route.app for route in client.app.routes if isinstance(route, Mount))
    page = guard._app.get_blocks()
    assert {page.fns[event["id"]].concurrency_limit for event in queued} == {None}
    assert page._queue.max_thread_count >= 1000 and page.has_launched


def test_more_pages_draw_at_once_than_gradio_has_threads():
    engine = FakeEngine()
    engine.go.clear()
    with client_of(engine, page=True) as client:
        events = client.get("/ui/config").json()["dependencies"]
        draw = next(event["id"] for event in events if len(event["inputs"]) == 8)
        for number in range(60):
            data = ["a cat", 1, str(number), 5, 1, "", "", None]
            body = {"fn_index": draw, "session_hash": f"s{number}", "data": data}
            assert client.post(f"{API}/queue/join", json=body).status_code == 200
        wait_for(lambda: len(engine.jobs) == 60)
        engine.go.set()
        guard = next(route.app for route in client.app.routes if isinstance(route, Mount))
        wait_for(lambda: not guard._sessions._visits)
    assert {job.seed for job in engine.jobs} == set(range(60))


def test_the_numbers_of_the_page_are_one(client):
    client.get("/ui/config")
    text = client.get("/metrics").text
    assert 'janus_http_requests_total{path="/ui",status="200"}' in text and "/ui/config" not in text


def scope_of(path, query=b""):
    return {
        "type": "http",
        "method": "GET",
        "path": f"/ui{path}",
        "root_path": "/ui",
        "query_string": query,
        "headers": [],
    }


@pytest.mark.parametrize("path", ["/gradio_api/heartbeat/s1", "/gradio_api/queue/data"])
@pytest.mark.parametrize("how", ["goes", "server stops", "is answered"])
def test_a_browser_that_goes_leaves_its_session(tmp_path, path, how):
    async def run():
        sessions, told = Sessions(), []
        ends, gone = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            assert (await receive())["type"] == "http.request"
            waits = [asyncio.create_task(receive()), asyncio.create_task(ends.wait())]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            told.append("ended")

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        guard = Guard(app, sessions, PictureFiles(tmp_path))
        with sessions.visit("s1", "draw") as mine, sessions.visit("s2", "draw") as other:
            seen = [asyncio.create_task(visit.receive()) for visit in (mine, other)]
            asked = asyncio.create_task(guard(scope_of(path, b"session_hash=s1"), receive, None))
            await asyncio.sleep(0.01)
            assert not asked.done()
            {"goes": gone.set, "server stops": guard.close, "is answered": ends.set}[how]()
            await asyncio.sleep(0.01)
            state = asked.done(), [task.done() for task in seen]
            for task in (*seen, asked):
                task.cancel()
        return state

    done, left = asyncio.run(run())
    # Only a heartbeat ends when the server stops: what is drawn is finished first.
    assert done is not (how == "server stops" and path.endswith("data"))
    assert left == [how == "goes", False]


def test_a_server_with_an_open_page_stops_at_once():
    import httpx

    app = app_of(FakeEngine(), page=True)

    async def begin_to_stop(request):  # in the event loop, as a server does it
        app.state.stop_idle()
        return Response()

    app.routes.insert(0, Route("/stop", begin_to_stop))
    with server_of(app) as (host, port), httpx.Client(base_url=f"http://{host}:{port}") as client:
        heartbeat = client.stream("GET", f"{API}/heartbeat/s1", timeout=5)
        with heartbeat as answer:
            lines = answer.iter_lines()
            assert "ALIVE" in next(lines)
            client.get("/stop")
            assert "".join(lines) == ""  # the answer has ended; the next beat is in 15 s


def test_without_gradio_the_server_says_so_once_and_goes_on(monkeypatch, capsys):
    import argparse

    def page(no_ui):
        return serve.has_page(argparse.Namespace(no_ui=no_ui)), capsys.readouterr().err

    assert page(False) == (True, "") and page(True) == (False, "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert page(True) == (False, "")
    without, said = page(False)
    assert not without and said.count("\n") == 1 and 'pip install "janus-jax[ui]"' in said


def test_the_line_names_the_page():
    line = serve.ready_line(("127.0.0.1", 80), None, "x", page=True)
    assert "http://127.0.0.1:80/ui" in line
    assert "/ui" not in serve.ready_line(("127.0.0.1", 80), None, "x")


def test_an_application_without_the_page_does_not_import_gradio():
    import subprocess

    code = (
        "import sys; sys.path.insert(0, 'tests'); from dummies_serving import *; app_of(FakeEngine()); "
        "sys.exit('gradio' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "."}).returncode == 0


def test_a_body_that_is_no_json_is_no_event(client):
    for body in (b"{", b"[" * 10**5, b'"\xff"', json.dumps({"fn_index": 99}).encode()):
        headers = {"Content-Type": "application/json"}
        answer = client.post(f"{API}/queue/join", content=body, headers=headers)
        assert 400 <= answer.status_code <= 503
