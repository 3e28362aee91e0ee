"""Asks the server about pictures by URL, for tests."""

import ipaddress

from dummies_serving import CHAT, FakeEngine, asking, client_of, image_part, text_part

NAME = "images.example.org"
HERE, THERE = (ipaddress.ip_address(text) for text in ("127.0.0.1", "127.0.0.2"))
URL = "messages[0].content[0].image_url.url"


def url_of(server, path="/a.png", name=NAME):
    return f"https://{name}:{server.port}{path}"


def ask(fetcher, *urls, engine=None, limits=None):
    """(status, body) of a question about pictures."""
    body = asking(*map(image_part, urls), text_part())
    with client_of(engine, fetcher=fetcher, limits=limits or {}) as client:
        answer = client.post(CHAT, json=body)
    return answer.status_code, answer.json()


def error(fetcher, *urls, **options):
    """The error of a question, which reached no engine."""
    engine = FakeEngine()
    status, body = ask(fetcher, *urls, engine=engine, **options)
    assert (status, body["error"]["param"], engine.jobs) == (400, URL, [])
    assert "\n" not in body["error"]["message"]
    return body["error"]["code"], body["error"]["message"]
