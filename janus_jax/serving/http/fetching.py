"""Fetches pictures from other hosts for requests that name them, and gives no way into the network of the server.

Only hosts that are allowed are asked (`image_hosts`), over TLS. A name is resolved once, all its addresses must be
public, and the connection goes to one of those addresses, so a second answer of its name server is of no use;
the certificate is checked against the name. Redirects are not followed, proxies of the environment not used.
What comes is bounded in bytes and time. A client learns that a picture could not be fetched, not why: the log
says that.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from janus_jax import __version__
from janus_jax.serving.http.errors import ApiError
from janus_jax.serving.http.image_hosts import Address, ImageHost, ImageUrl, address_of, is_public
from janus_jax.serving.http.limits import Limits
from janus_jax.serving.http.pictures import RemotePicture, picture_of_file, too_large, wrong_picture
from janus_jax.untrusted import printable

log = logging.getLogger(__name__)

_NAMES = 4  # names that are resolved at the same time: a thread that waits for a name server cannot be stopped
_TRIED = 3  # addresses of a name
_CONNECT_SHARE = 0.4  # of the time of a fetch, which one address may take to answer
_OK = 200
_HEADERS = {
    "User-Agent": f"janus_jax/{__version__}",
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # what is small on the wire could be large in memory
    "Connection": "close",
}


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name; waits for a name server.

    Raises:
      OSError: there is no such name.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [ipaddress.ip_address(address[0]) for *_, address in found]


class _Unfetched(Exception):
    """Why a picture did not come, for the log."""


class Fetcher:
    """Fetches for all requests of a server.

    Args:
      hosts: that may be asked; without any, nothing is ever fetched.
      limits: of bytes, time, and pictures at the same time.
      resolve: name and port -> addresses, in a thread.
      allowed: whether a connection to an address may be made.
      context: of TLS; by default it trusts the usual authorities ($SSL_CERT_FILE names others).
      transport: of one connection; by default a new one to the network.
    """

    def __init__(
        self,
        hosts: Sequence[ImageHost],
        limits: Limits,
        *,
        resolve: Callable[[str, int], list[Address]] = resolve,
        allowed: Callable[[Address], bool] = is_public,
        context: ssl.SSLContext | None = None,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
    ):
        self.hosts = tuple(hosts)
        self._limits, self._resolve, self._allowed = limits, resolve, allowed
        self._places = asyncio.Semaphore(limits.fetches)
        self._names = ThreadPoolExecutor(_NAMES, "names")
        if transport is None and self.hosts:
            context = context or httpx.create_ssl_context()
            transport = lambda: httpx.AsyncHTTPTransport(verify=context, trust_env=False)
        self._transport = transport

    def close(self) -> None:
        """Nothing is fetched afterwards."""
        self._names.shutdown(wait=False, cancel_futures=True)

    async def fill(self, pictures: Sequence[RemotePicture], pool: ThreadPoolExecutor) -> None:
        """Fetches the pictures of one request and fills their pixels; to cancel it closes its connections.

        Args:
          pictures: of hosts that are allowed.
          pool: threads that decode them.

        Raises:
          ApiError: one could not be fetched, is too large or no picture, or too many are being fetched (429).
        """
        try:
            async with asyncio.TaskGroup() as group:
                for picture in pictures:
                    group.create_task(self._fill(picture, pool))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _fill(self, picture: RemotePicture, pool: ThreadPoolExecutor) -> None:
        try:
            async with asyncio.timeout(self._limits.fetch_seconds):
                await self._places.acquire()
        except TimeoutError:
            busy = "the server is fetching too many pictures: try again in 1 s"
            raise ApiError(busy, 429, code="queue_full", headers={"Retry-After": "1"}) from None
        # The place is held until the file is decoded, so that few of them are in memory.
        try:
            data = await self._fetch(picture)
            decoding = (picture_of_file, data, len(picture.pixels), self._limits, picture.param)
            picture.pixels[:] = await asyncio.get_running_loop().run_in_executor(pool, *decoding)
        finally:
            self._places.release()

    async def _fetch(self, picture: RemotePicture) -> bytes:
        """The file."""
        seconds = self._limits.fetch_seconds
        try:
            async with asyncio.timeout(seconds):
                addresses = await self._addresses(picture.url)
                return await self._ask_one_of(addresses, picture)
        except TimeoutError:
            why = f"it took more than {seconds:g} s"
        except (OSError, httpx.HTTPError, _Unfetched) as error:
            why = printable(error, 200) or type(error).__name__
        log.warning("no picture from %s: %s", picture.url.authority, why)
        raise wrong_picture(
            picture.param,
            f"could not be fetched: its host must give the file to anybody within {seconds:g} s; or send "
            "the file itself as data:image/png;base64,...",
            "not_fetched",
        )

    async def _addresses(self, url: ImageUrl) -> list[Address]:
        """Where to connect to; the name is asked for here and nowhere else."""
        address = address_of(url.host)
        if address is None:
            asking = (self._names, self._resolve, url.host, url.port)
            found = await asyncio.get_running_loop().run_in_executor(*asking)
        else:
            found = [address]
        if not found:
            raise _Unfetched("the name has no address")
        for address in found:
            if not self._allowed(address):
                raise _Unfetched(f"{address} is no address of the public internet")
        return list(dict.fromkeys(found))[:_TRIED]

    async def _ask_one_of(self, addresses: Sequence[Address], picture: RemotePicture) -> bytes:
        """The file, from the first address that can be connected to."""
        *others, last = addresses
        for address in others:
            try:
                return await self._ask(address, picture)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._ask(last, picture)

    async def _ask(self, address: Address, picture: RemotePicture) -> bytes:
        """The file, from one address. A connection is for one picture: others may be of another name."""
        url = picture.url
        request = httpx.Request(
            "GET",
            httpx.URL(
                scheme="https",
                host=str(address),
                port=url.port,
                raw_path=url.target.encode("ascii"),
            ),
            headers={"Host": url.authority, **_HEADERS},
            # The name that TLS asks for, and that the certificate must have.
            extensions={"sni_hostname": url.host, "timeout": self._timeouts()},
        )
        async with self._transport() as transport:
            response = await transport.handle_async_request(request)
            try:
                return await self._read(response, picture)
            finally:
                await response.aclose()

    def _timeouts(self) -> dict[str, float]:
        """Of single steps; that of the whole is in `_fetch`."""
        seconds = self._limits.fetch_seconds
        return {
            "connect": _CONNECT_SHARE * seconds,
            "read": seconds,
            "write": seconds,
            "pool": seconds,
        }

    async def _read(self, response: httpx.Response, picture: RemotePicture) -> bytes:
        """The body as it comes, within the limit whatever its header says."""
        if response.has_redirect_location:
            raise wrong_picture(
                picture.param,
                "is answered with a redirect, which is not followed: give the address where it leads to",
                "redirected",
            )
        if response.status_code != _OK:
            raise _Unfetched(f"status {response.status_code}")
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise _Unfetched(f"content encoding {printable(encoding, 30)}")
        most = self._limits.picture_bytes
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large(self._limits, picture.param)
        data = bytearray()
        async for part in response.stream:
            data += part
            if len(data) > most:
                raise too_large(self._limits, picture.param)
        return bytes(data)
