"""Who may talk to the server: an address of this machine, or a key."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

from starlette.types import ASGIApp, Receive, Scope, Send

from janus_jax.errors import UserError
from janus_jax.serving.errors import ApiError
from janus_jax.serving.limits import refuse
from janus_jax.untrusted import shown

OPEN_PATHS = ("/health",)  # a load balancer asks without a key


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

    The comparison takes the same time whatever is wrong, so it does not tell how much of a guess is right.
    """

    def __init__(self, app: ASGIApp, key: str):
        self._app, self._wanted = app, _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, key = given.partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(_digest(key.strip()), self._wanted):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            message = "this server wants a key: send the header Authorization: Bearer KEY"
            headers = {"WWW-Authenticate": "Bearer"}
            error = ApiError(message, 401, code="invalid_api_key", headers=headers)
            await refuse(error, scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})


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
