"""Pictures by URL, from real TLS servers on this machine, which stand for hosts of the internet."""

import asyncio
import gzip
import ipaddress
import json
import socket
import time

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("idna")
pytest.importorskip("prometheus_client")

import httpx
from dummies_serving import (
    CHAT,
    FakeEngine,
    app_of,
    asking,
    call,
    client_of,
    data_url,
    file_of,
    image_part,
    part,
    text_part,
    wait_for,
)
from fetching_client import HERE, NAME, THERE, URL, ask, error, url_of
from tls_servers import Authority, TlsServer, response

from janus_jax.serving.http.fetching import Fetcher
from janus_jax.serving.http.image_hosts import ImageHost
from janus_jax.serving.http.limits import Limits


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def start(authority):
    """Starts a server: `start(answer)` sends the bytes `answer`, or calls it with (connection, request)."""
    servers = []

    def new(answer, *names, **where):
        send = answer if callable(answer) else lambda connection, _: connection.sendall(answer)
        context = authority.server(*(names or (f"DNS:{NAME}",)))
        servers.append(TlsServer(context, send, **where))
        return servers[-1]

    yield new
    for server in servers:
        server.close()


@pytest.fixture
def fetcher_of(authority):
    """A fetcher that may ask the given servers, whose names are looked up in `addresses`."""
    made = []

    def new(*servers, addresses=(HERE,), limits=None, **options):
        hosts = [ImageHost(NAME, server.port) for server in servers]
        options = {
            "resolve": lambda name, port: list(addresses),
            "allowed": lambda address: address in (HERE, THERE),
            "context": authority.client(),
        } | options
        made.append(Fetcher(options.pop("hosts", hosts), limits or Limits(), **options))
        return made[-1]

    yield new
    for fetcher in made:
        fetcher.close()


def test_pictures_are_fetched_beside_those_that_are_sent(start, fetcher_of):
    shades = {b"/60.png": 60, b"/200.png": 200}
    server = start(
        lambda connection, request: connection.sendall(
            response(file_of(shades[request.split()[1]]))
        )
    )
    engine = FakeEngine()
    urls = [url_of(server, "/200.png"), data_url(file_of(120)), url_of(server, "/60.png")]
    status, body = ask(fetcher_of(server), *urls, engine=engine)
    assert (status, body["choices"][0]["message"]["content"]) == (200, "You said: what is it?")
    pictures = engine.jobs[0].messages[0].pictures
    assert [(p.shape, int(p[8, 8, 0])) for p in pictures] == [
        ((16, 16, 3), shade) for shade in (200, 120, 60)
    ]


def test_what_the_host_is_asked(start, fetcher_of):
    server = start(response(file_of()))
    path = "/a%2Fb/c//d.png?sig=x%3D&u=https://y/"
    with client_of(fetcher=fetcher_of(server)) as client:
        client.cookies.set("secret", "cookie")
        headers = {"Authorization": "Bearer key", "X-Forwarded-For": "1.2.3.4"}
        body = asking(image_part(url_of(server, f"{path}#fragment")), text_part())
        assert client.post(CHAT, json=body, headers=headers).status_code == 200
    first, *lines = server.requests[0].decode().split("\r\n")
    assert first == f"GET {path} HTTP/1.1"
    sent = dict(line.lower().split(": ", 1) for line in lines if line)
    assert sent.pop("user-agent").startswith("janus_jax/")
    assert sent == {
        "host": f"{NAME}:{server.port}",
        "accept": "image/*",
        "accept-encoding": "identity",
        "connection": "close",
    }
    assert server.names == [NAME]


def test_a_body_in_chunks_and_one_that_ends_with_the_connection(start, fetcher_of):
    data = file_of(77)
    pieces = [data[i : i + 9] for i in range(0, len(data), 9)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    chunked = response(chunks + b"0\r\n\r\n", length=False, transfer_encoding="chunked")

    def until_the_end(connection, request):
        connection.sendall(response(data, length=False))
        connection.unwrap()

    for answer in (chunked, until_the_end):
        server = start(answer)
        engine = FakeEngine()
        assert ask(fetcher_of(server), url_of(server), engine=engine)[0] == 200
        assert engine.jobs[0].messages[0].pictures[0][8, 8, 0] == 77


LARGE = Limits(picture_bytes=5000)
PNG = file_of()
ANSWERS = {
    "404": (response(PNG, "404 Not Found"), "not_fetched"),
    "403": (response(b"secret of the host", "403 Forbidden"), "not_fetched"),
    "201": (response(PNG, "201 Created"), "not_fetched"),
    "206": (response(PNG, "206 Partial Content"), "not_fetched"),
    "304": (response(status="304 Not Modified"), "not_fetched"),
    "500": (response(PNG, "500 Oops"), "not_fetched"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", "not_fetched"),
    "a header of megabytes": (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 10**6, "not_fetched"),
    "gzip": (response(gzip.compress(PNG), content_encoding="gzip"), "not_fetched"),
    "identity and gzip": (response(PNG, content_encoding="identity, br"), "not_fetched"),
    "too large, and it says so": (response(b"", length=False, content_length=5001), "picture_too_large"),
    "too large by far": (response(b"", length=False, content_length=10**18), "picture_too_large"),
    "too large without a length": (response(b"x" * 6000, length=False), "picture_too_large"),
    "too large in one chunk": (
        response(b"1770\r\n" + b"x" * 6000, length=False, transfer_encoding="chunked"),
        "picture_too_large",
    ),
    "two lengths": (response(PNG, content_length=5), "not_fetched"),
    "less than its length": (response(PNG[:40], length=False, content_length=60), "not_fetched"),
    "more than its length": (response(PNG, length=False, content_length=40), "invalid_picture"),
    "empty": (response(b""), "invalid_picture"),
    "a page": (response(b"<html>secret of the host</html>", content_type="image/png"), "invalid_picture"),
    "a TIFF": (response(file_of(kind="TIFF")), "invalid_picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_of_hosts_that_are_no_picture(name, start, fetcher_of):
    answer, code = ANSWERS[name]

    def send(connection, request):
        connection.sendall(answer)
        connection.unwrap()  # else the rest would be waited for

    server = start(send)
    found, message = error(fetcher_of(server, limits=LARGE), url_of(server))
    assert found == code and "secret" not in message
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
def test_redirects_are_not_followed(status, start, fetcher_of):
    other = start(response(file_of()))
    location = url_of(other)
    server = start(response(status=status, location=location))
    code, message = error(fetcher_of(server, other), url_of(server))
    assert code == "redirected" and "not followed" in message and location not in message
    assert (server.connections, other.connections) == (1, 0)


def test_proxies_of_the_environment_are_not_used(start, fetcher_of, monkeypatch):
    proxy = start(response(file_of()))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    server = start(response(file_of()))
    assert ask(fetcher_of(server), url_of(server))[0] == 200
    assert proxy.connections == 0


@pytest.mark.parametrize(
    "names", [("DNS:evil.example",), ("IP:127.0.0.1",), ("DNS:*.images.example.org",)]
)
def test_a_certificate_of_another_name(names, start, fetcher_of):
    """That of the address must not do, as the connection goes there for the name."""
    server = start(response(file_of()), *names)
    assert error(fetcher_of(server), url_of(server))[0] == "not_fetched"
    assert server.connections == 1 and server.requests == []


def test_a_certificate_of_nobody(start, fetcher_of, tmp_path):
    server = start(response(file_of()))
    usual = httpx.create_ssl_context()  # knows nothing of the authority of these tests
    assert error(fetcher_of(server, context=usual), url_of(server))[0] == "not_fetched"
    assert server.requests == []


def test_an_address_has_its_own_certificate(start, fetcher_of):
    for names, status in ((("IP:127.0.0.1",), 200), ((f"DNS:{NAME}",), 400)):
        server = start(response(file_of()), *names)
        fetcher = fetcher_of(hosts=[ImageHost("127.0.0.1", server.port)], addresses=())
        assert ask(fetcher, url_of(server, name="127.0.0.1"))[0] == status


def test_the_name_is_resolved_once_and_the_connection_goes_there(start, fetcher_of, monkeypatch):
    """Rebinding: the second answer of the name server would be another server, with a good certificate."""
    server = start(response(file_of()))
    inside = start(response(file_of()), address=str(THERE), port=server.port)
    asked = []

    def resolve(name, port):
        asked.append((name, port))
        return [HERE] if len(asked) == 1 else [THERE]

    fetcher = fetcher_of(server, resolve=resolve)
    usual = socket.getaddrinfo
    monkeypatch.setattr(  # fails for names
        socket,
        "getaddrinfo",
        lambda host, *a, **k: usual(ipaddress.ip_address(host).exploded, *a, **k),
    )
    assert ask(fetcher, url_of(server))[0] == 200
    assert asked == [(NAME, server.port)]
    assert (server.connections, inside.connections) == (1, 0)


def test_all_that_goes_wrong_with_a_host_is_said_with_the_same_words(start, fetcher_of):
    """Else a client could find out which machines and ports there are."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        free = closed.getsockname()[1]
    nobody = ImageHost(NAME, free)

    def no_name(name, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    server = start(response(PNG, "404 Not Found"))
    inside = [ipaddress.ip_address("10.0.0.1")]
    found = {
        error(fetcher, f"https://{NAME}:{port}/a.png")
        for fetcher, port in (
            (fetcher_of(hosts=[nobody]), free),
            (fetcher_of(hosts=[nobody], resolve=no_name), free),
            (fetcher_of(hosts=[nobody], addresses=inside), free),
            (fetcher_of(server), server.port),
        )
    }
    assert len(found) == 1


def test_another_address_is_tried_if_one_does_not_answer(start, fetcher_of):
    server = start(response(file_of()))
    assert ask(fetcher_of(server, addresses=[THERE, HERE]), url_of(server))[0] == 200


def dripping(connection, request):
    """A byte now and then, for ever."""
    connection.sendall(response(length=False, content_length=3000))
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def silent(connection, request):
    connection.recv(1)
    raise OSError("the other side has gone")


def headers_for_ever(connection, request):
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


@pytest.mark.parametrize("answer", [dripping, silent, headers_for_ever])
def test_a_host_that_takes_too_long(answer, start, fetcher_of):
    server = start(answer)
    fetcher = fetcher_of(server, limits=Limits(fetch_seconds=0.4))
    code, message = error(fetcher, url_of(server))
    assert code == "not_fetched" and "within 0.4 s" in message
    assert server.gone.wait(5)


def test_a_handshake_that_does_not_end(fetcher_of):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # connects, and says nothing
        port = listener.getsockname()[1]
        fetcher = fetcher_of(hosts=[ImageHost(NAME, port)], limits=Limits(fetch_seconds=0.3))
        assert error(fetcher, f"https://{NAME}:{port}/a.png")[0] == "not_fetched"


def test_few_are_fetched_at_the_same_time(start, fetcher_of):
    now, most = [], []

    def answer(connection, request):
        now.append(1)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()
        connection.sendall(response(file_of()))

    server = start(answer)
    fetcher = fetcher_of(server, limits=Limits(fetches=2))
    assert ask(fetcher, *[url_of(server)] * 6)[0] == 200
    assert len(most) == 6 and max(most) == 2


def test_a_request_does_not_wait_for_a_place_for_ever(start, fetcher_of):
    server = start(dripping)
    limits = Limits(fetch_seconds=0.3, fetches=0)
    status, body = ask(fetcher_of(server, limits=limits), url_of(server))
    assert (status, body["error"]["code"]) == (429, "queue_full")
    assert server.connections == 0


def test_one_that_fails_ends_the_others(start, fetcher_of, caplog):
    slow, bad = start(dripping), start(response(PNG, "404 Not Found"))
    fetcher = fetcher_of(slow, bad, limits=Limits(fetch_seconds=20))
    status, body = ask(fetcher, url_of(slow), url_of(bad))
    assert (status, body["error"]["param"]) == (400, URL.replace("content[0]", "content[1]"))
    assert slow.gone.wait(5) and "more than" not in caplog.text


def test_a_client_that_goes_away_ends_its_fetch(start, fetcher_of):
    server = start(dripping)
    engine = FakeEngine()
    fetcher = fetcher_of(server, limits=Limits(fetch_seconds=60))
    body = json.dumps(asking(image_part(url_of(server)), text_part())).encode()

    async def go():
        connection = asyncio.Queue()
        connection.put_nowait(part(body))
        _, ends = call(app_of(engine, fetcher=fetcher), connection)
        await asyncio.to_thread(wait_for, lambda: server.requests)
        connection.put_nowait({"type": "http.disconnect"})
        await asyncio.wait_for(ends, 5)

    asyncio.run(go())
    assert server.gone.wait(5) and engine.jobs == []
