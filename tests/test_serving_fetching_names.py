"""Pictures by URL: which names are looked up, and that only public addresses are connected to."""

import ipaddress
import threading

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
pytest.importorskip("idna")
pytest.importorskip("prometheus_client")

import httpx
from dummies_serving import CHAT, asking, client_of, file_of, image_part, text_part
from fetching_client import HERE, NAME, ask, error

from janus_jax.serving.http.fetching import Fetcher, resolve
from janus_jax.serving.http.image_hosts import ImageHost, is_public
from janus_jax.serving.http.limits import Limits

PUBLIC = ipaddress.ip_address("93.184.215.14")


class Recorded(httpx.AsyncBaseTransport):
    """A network that notes where it was asked to connect to."""

    def __init__(self, asked):
        self._asked = asked

    async def handle_async_request(self, request):
        self._asked.append(request)
        return httpx.Response(200, content=file_of())


def fetcher_of(resolve, asked=None, **limits):
    """One that may ask one host, and does not get further than `Recorded`."""
    asked = [] if asked is None else asked
    transport = lambda: Recorded(asked)
    return Fetcher([ImageHost(NAME)], Limits(**limits), resolve=resolve, transport=transport)


ANSWERS_OF_NAMES = {
    "loopback": ["127.0.0.1"],
    "loopback of IPv6": ["::1"],
    "metadata": ["169.254.169.254"],
    "a private network": ["10.1.2.3"],
    "a carrier's network": ["100.64.1.1"],
    "this host": ["0.0.0.0"],
    "unique local": ["fd00:ec2::254"],
    "link local": ["fe80::1%eth0"],
    "mapped": ["::ffff:127.0.0.1"],
    "NAT64": ["64:ff9b::7f00:1"],
    "6to4": ["2002:7f00:1::"],
    "multicast": ["224.0.0.1"],
    "a public one and another": ["93.184.215.14", "10.0.0.1"],
    "another behind three public ones": ["8.8.8.8", "8.8.4.4", "1.1.1.1", "127.0.0.1"],
    "none": [],
}


@pytest.mark.parametrize("name", ANSWERS_OF_NAMES)
def test_names_of_addresses_that_are_not_public(name):
    found, asked = [ipaddress.ip_address(text) for text in ANSWERS_OF_NAMES[name]], []
    fetcher = fetcher_of(lambda name, port: found, asked)
    assert error(fetcher, f"https://{NAME}/a.png")[0] == "not_fetched"
    assert asked == []


def test_rebinding_with_the_real_check():
    answers, asked = [[PUBLIC], [HERE]], []
    fetcher = fetcher_of(lambda name, port: answers.pop(0), asked)
    assert is_public(PUBLIC) and ask(fetcher, f"https://{NAME}/a.png")[0] == 200
    (request,) = asked
    assert (request.url.host, request.headers["host"]) == (str(PUBLIC), NAME)
    assert request.extensions["sni_hostname"] == NAME and answers == [[HERE]]


def test_the_log_says_what_the_client_is_not_told(caplog):
    inside = [ipaddress.ip_address("10.0.0.1")]
    error(fetcher_of(lambda *_: inside), f"https://{NAME}/secret?sig=1")
    (record,) = [r for r in caplog.records if r.name == "janus_jax.serving.http.fetching"]
    assert "10.0.0.1" in record.getMessage() and "secret" not in record.getMessage()


def test_hosts_that_are_not_allowed_are_not_looked_up():
    def no_look_up(name, port):
        raise AssertionError("it is looked up")

    fetcher = fetcher_of(no_look_up)
    for url in (
        "https://evil.example/a.png",
        f"http://{NAME}/a.png",
        f"https://{NAME}:8443/a.png",
        "file:///etc/passwd",
        "https://2130706433/",
    ):
        code, message = error(fetcher, url)
        assert code == "unsupported_url" and "data:image/png;base64" in message
    # And a wrong picture of the same request is found before anything is fetched.
    body = asking(image_part(f"https://{NAME}/"), image_part("data:image/png;base64,"), text_part())
    with client_of(fetcher=fetcher) as client:
        assert "is empty" in client.post(CHAT, json=body).json()["error"]["message"]


def test_a_name_server_that_takes_too_long():
    answered = threading.Event()

    def slow(name, port):
        answered.wait(10)
        return [PUBLIC]

    fetcher = fetcher_of(slow, fetch_seconds=0.2)
    code, _ = error(fetcher, f"https://{NAME}/a.png")  # in the end it would be there
    answered.set()
    assert code == "not_fetched"


def test_the_usual_look_up():
    assert resolve("127.0.0.1", 443) == [HERE]
    with pytest.raises(OSError):
        resolve("no-such-name.invalid", 443)
