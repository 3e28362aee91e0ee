"""From which hosts pictures may be fetched: names that whoever runs the server allows, on the public internet.

A URL of a request is taken apart here, once and strictly, and put together again from the parts: no other parser
of URLs, which might see another host in it, reads what a client has sent.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Sequence
from urllib.parse import quote

import idna

from janus_jax.errors import UserError
from janus_jax.untrusted import shown

HTTPS = 443
URL_LETTERS = 4096  # signed URLs of buckets have one or two thousand

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URL = re.compile(
    r"https://(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]/?#@:]+)(?::(?P<port>[0-9]{1,5}))?(?P<rest>[/?].*)?",
    re.DOTALL,
)
_FLAG = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]/?#@:]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # the last label of what resolvers take for an address
# Addresses of IPv6 that are given out for use between machines anywhere; all others are of one network,
# of one machine, or stand for an address of IPv4.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What versions of Python's tables disagree about, and 6to4, which stands for an address of IPv4.
_FURTHER = [
    ipaddress.ip_network(text)
    for text in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")
]


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also where it stands for one of IPv4 (NAT64)."""
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if isinstance(address, ipaddress.IPv6Address) and address not in _GIVEN_OUT:
        return False
    if any(address in network for network in _FURTHER):
        return False
    return address.is_global and not address.is_multicast


@dataclasses.dataclass(frozen=True)
class ImageUrl:
    """Where a picture is.

    Attributes:
      host: a name in lower-case ASCII without the last dot, or an address without brackets.
      port: of TCP.
      target: path and query, percent-encoded, from the "/" on.
    """

    host: str
    port: int
    target: str

    @property
    def address(self) -> Address | None:
        """The host, if it is one."""
        return address_of(self.host)

    @property
    def authority(self) -> str:
        """Host and port as in the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == HTTPS else f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class ImageHost:
    """What is allowed.

    Attributes:
      name: as `ImageUrl.host`.
      port: of TCP.
      below: all names that end in `.name` instead of the name.
    """

    name: str
    port: int = HTTPS
    below: bool = False

    def allows(self, url: ImageUrl) -> bool:
        """Whether `url` is on this host."""
        same = url.host.endswith(f".{self.name}") if self.below else url.host == self.name
        return same and url.port == self.port


def parse_image_host(text: str) -> ImageHost:
    """The value of --allow-image-host: HOST, HOST:PORT, *.DOMAIN or an address, one of IPv6 in brackets.

    Raises:
      UserError: none of them, or an address that is not public.
    """

    def wrong(why: str) -> UserError:
        return UserError(
            f"--allow-image-host {shown(text)} {why}: give a name such as images.example.org, "
            "*.example.org or images.example.org:8443"
        )

    below = text.startswith("*.")
    matched = _FLAG.fullmatch(text[2:] if below else text)
    name = _host(matched["host"]) if matched else None
    port = _port(matched["port"]) if matched else None
    if name is None or port is None:
        raise wrong("is no name of a host")
    address = address_of(name)
    if address is not None:
        if below:
            raise wrong("is no name of a host")
        if not is_public(address):
            raise wrong("is no address of the public internet, and pictures come from there only")
    elif "." not in name:
        raise wrong("allows too much" if below else "is no full name")
    return ImageHost(name, port, below)


def image_url(url: str) -> ImageUrl | None:
    """The parts of an `https:` URL without a user; None for any other text, whatever is wrong with it."""
    if len(url) > URL_LETTERS or not url.isprintable() or " " in url or "\\" in url:
        return None
    matched = _URL.fullmatch(url)
    host = _host(matched["host"]) if matched else None
    port = _port(matched["port"]) if matched else None
    if host is None or port is None:
        return None
    rest = (matched["rest"] or "/").partition("#")[0]
    target = rest if rest.startswith("/") else f"/{rest}"
    return ImageUrl(host, port, quote(target, safe="/?%:@!$&'()*+,;=~"))


def is_allowed(url: ImageUrl, hosts: Sequence[ImageHost]) -> bool:
    """Whether `url` is on one of the hosts."""
    return any(host.allows(url) for host in hosts)


def address_of(host: str) -> Address | None:
    """An address in its usual form, without brackets; None for anything else."""
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None


def _host(text: str) -> str | None:
    """A host in the one form in which hosts are compared."""
    if text.startswith("["):
        address = address_of(text[1:-1])
        return None if address is None else str(address)
    if len(text) > 253:
        return None
    try:
        name = text.lower() if text.isascii() else idna.encode(text, uts46=True).decode("ascii")
    except UnicodeError:  # which idna's own error is, too
        return None
    name = name.removesuffix(".")
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return None
    # 2130706433, 0x7f.1 or 0177.0.0.1: resolvers take all of them for addresses; here only the usual form is one.
    if _NUMBER.fullmatch(labels[-1]) and address_of(name) is None:
        return None
    return name


def _port(text: str | None) -> int | None:
    port = HTTPS if text is None else int(text)
    return port if 0 < port < 2**16 else None
