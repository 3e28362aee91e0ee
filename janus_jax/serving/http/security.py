"""Who may talk to the server: an address of this machine, or a key; and a page in a browser no other page."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from janus_jax.errors import UserError
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.limits import refuse
from janus_jax.untrusted import shown

OPEN_PATHS = ("/health",)  # a load balancer asks without a key
PAGE = "/ui"  # for browsers, which cannot be told to send a bearer token


def is_of_page(path: str) -> bool:
    """Whether a path is the page's, or leads there."""
    return path in ("/", PAGE) or path.startswith(f"{PAGE}/")


def is_loopback(host: str) -> bool:
    """Whether an address or name, without port, can only mean this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_binding(host: str, key: str | None, insecure: bool) -> None:
    """Raises a UserError if others could reach the server without a key, or for an unusable key."""
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip() != ""):
        raise UserError("--api-key must be printable ASCII without spaces around it, and not empty")
    if not is_loopback(host) and key is None and not insecure:
        raise UserError(
            f"--host {shown(host)} can be reached by others: give --api-key KEY (or JANUS_API_KEY), or "
            "--insecure to let anybody in"
        )


class ApiKey:
    """Lets in who has the key, and anybody to `OPEN_PATHS`.

    The key is a bearer token. For the page it may also be the password of HTTP's basic authentication, which a
    browser asks for, with any name of a user. The comparison takes the same time whatever is wrong, so it does not
    tell how much of a guess is right.
    """

    def __init__(self, app: ASGIApp, key: str):
        self._app, self._wanted = app, _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        page = is_of_page(scope.get("path", ""))
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        known = scheme.lower() == b"bearer"
        if page and scheme.lower() == b"basic":
            known, key = True, _password(key)
        if hmac.compare_digest(_digest(key.strip()), self._wanted) and known:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            message = "this server wants a key: send the header Authorization: Bearer KEY"
            challenge = "Bearer"
            if page:
                message = "this page wants the key of the server as password, with any user name"
                challenge = 'Basic realm="Janus", charset="UTF-8"'
            headers = {"WWW-Authenticate": challenge}
            error = ApiError(message, 401, code="invalid_api_key", headers=headers)
            await refuse(error, scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})


def _password(encoded: bytes) -> bytes:
    """That of basic authentication; empty, which is no key, if it cannot be read."""
    try:
        return base64.b64decode(encoded.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


class SameSite:
    """Refuses what another web page has a browser send to the page of this server.

    A browser sends a password that it knows, and reaches addresses of its machine, whoever asks. It says who
    asks: in `Sec-Fetch-Site`, and where that is not sent, which is without TLS on other hosts than localhost, in
    `Origin`.
    To follow a link from elsewhere to the page is allowed.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_of_page(scope["path"]) and not _is_same_site(scope):
            message = "the page takes requests of its own only, not those of other web pages"
            error = ApiError(message, 403, code="cross_site")
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_same_site(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    site = headers.get(b"sec-fetch-site", b"").lower()
    if site in (b"same-origin", b"none"):  # none: typed, or a bookmark
        return True
    if site:
        entrance = scope["path"].rstrip("/") in ("", PAGE) and scope["method"] in ("GET", "HEAD")
        mode, dest = headers.get(b"sec-fetch-mode"), headers.get(b"sec-fetch-dest")
        return entrance and (mode, dest) == (b"navigate", b"document")
    origin = headers.get(b"origin")
    if origin is None:
        return True
    return origin.lower().partition(b"://")[2] == headers.get(b"host", b"").lower() != b""


class LocalHost:
    """Refuses requests that were meant for another host.

    For servers without a key on a loopback address. There a web page can have a browser send requests, under a
    name of its own that it has pointed to this machine (DNS rebinding).
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if not is_loopback(name):
                message = (
                    "without a key this server answers to localhost only: start it with --api-key"
                )
                await refuse(ApiError(message, 403, code="wrong_host"), scope, receive, send)
                return
        await self._app(scope, receive, send)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
