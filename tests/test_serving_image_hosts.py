"""From where pictures may come: values of --allow-image-host, URLs that are on such hosts, public addresses."""

import ipaddress

import pytest

pytest.importorskip("idna")

from janus_jax.errors import UserError
from janus_jax.serving.http.image_hosts import (
    ImageHost,
    ImageUrl,
    image_url,
    is_allowed,
    is_public,
    parse_image_host,
)

PUBLIC = [
    "8.8.8.8",
    "93.184.215.14",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
    "64:ff9b::808:808",  # 8.8.8.8 behind NAT64
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2001:10::1",
    "2002:7f00:1::",
    "2002:a00:1::1",
    "2002:c0a8:101::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_other_addresses(text):
    assert not is_public(ipaddress.ip_address(text))


FLAGS = {
    "images.example.org": ImageHost("images.example.org"),
    "Images.Example.ORG.": ImageHost("images.example.org"),
    "images.example.org:443": ImageHost("images.example.org"),
    "images.example.org:8443": ImageHost("images.example.org", 8443),
    "*.example.org": ImageHost("example.org", below=True),
    "*.cdn.example.org:99": ImageHost("cdn.example.org", 99, below=True),
    "bücher.example": ImageHost("xn--bcher-kva.example"),
    "my_bucket.example.org": ImageHost("my_bucket.example.org"),
    "r3---sn-x.example.org": ImageHost("r3---sn-x.example.org"),
    "8.8.8.8": ImageHost("8.8.8.8"),
    "[2606:4700:4700:0::1111]:8443": ImageHost("2606:4700:4700::1111", 8443),
}


@pytest.mark.parametrize("text", FLAGS)
def test_hosts_that_can_be_allowed(text):
    assert parse_image_host(text) == FLAGS[text]


BAD_FLAGS = [
    *("", " ", ".", "*", "*.", "*.*", "*.org", "localhost", "metadata", "images.example.org:"),
    *("images.example.org:0", "images.example.org:65536", "images.example.org:x"),
    *("https://images.example.org", "images.example.org/x", "me@images.example.org"),
    *("a..example.org", "a.*.example.org", "-a.example.org", "a b.example.org", "a\\b.example.org"),
    *("a\n.example.org", "127.0.0.1", "10.0.0.1:8443", "[::1]", "::1", "2130706433", "0x7f.1"),
    *("0177.0.0.1", "127.1", "*.0.0.1", "169.254.169.254", "[::ffff:8.8.8.8]", "x" * 300 + ".org"),
    "x" * 64 + ".org",
]


@pytest.mark.parametrize("text", BAD_FLAGS)
def test_hosts_that_cannot_be_allowed(text):
    with pytest.raises(UserError) as caught:
        parse_image_host(text)
    message = str(caught.value)
    assert message.startswith("--allow-image-host") and "\n" not in message and len(message) < 300


ALLOWED = [
    parse_image_host(text)
    for text in (
        *("images.example.org", "*.cdn.example.org", "bücher.example", "p.example.org:8443"),
        *("8.8.8.8", "[2606:4700:4700::1111]"),
    )
]
TAKEN = {
    "https://images.example.org/a.png": ("images.example.org", 443, "/a.png"),
    "https://images.example.org": ("images.example.org", 443, "/"),
    "https://images.example.org?a=1": ("images.example.org", 443, "/?a=1"),
    "https://IMAGES.example.org.:443/a//../b?c=/d#e": (
        "images.example.org",
        443,
        "/a//../b?c=/d",
    ),
    "https://images.example.org/a?sig=x%2Fy%3D&u=https://u:p@127.0.0.1/": (
        "images.example.org",
        443,
        "/a?sig=x%2Fy%3D&u=https://u:p@127.0.0.1/",
    ),
    "https://images.example.org/ä.png": ("images.example.org", 443, "/%C3%A4.png"),
    'https://images.example.org/"<>^`{|}': (
        "images.example.org",
        443,
        "/%22%3C%3E%5E%60%7B%7C%7D",
    ),
    "https://a.cdn.example.org/": ("a.cdn.example.org", 443, "/"),
    "https://a.b.cdn.example.org/": ("a.b.cdn.example.org", 443, "/"),
    "https://BÜCHER.example/": ("xn--bcher-kva.example", 443, "/"),
    "https://xn--bcher-kva.example/": ("xn--bcher-kva.example", 443, "/"),
    "https://\uff49mages\u3002example\uff0eorg/": ("images.example.org", 443, "/"),
    "https://p.example.org:8443/": ("p.example.org", 8443, "/"),
    "https://8.8.8.8/": ("8.8.8.8", 443, "/"),
    "https://[2606:4700:4700:0:0::1111]/": ("2606:4700:4700::1111", 443, "/"),
}


@pytest.mark.parametrize("url", TAKEN)
def test_urls_that_are_fetched(url):
    parts = image_url(url)
    assert parts == ImageUrl(*TAKEN[url]) and parts.target.isascii()
    assert is_allowed(parts, ALLOWED)


def test_the_host_as_servers_are_told():
    texts = ("https://p.example.org:8443/", "https://[2606::1]/", "https://[2606::1]:99/")
    found = [image_url(text).authority for text in texts]
    assert found == ["p.example.org:8443", "[2606::1]", "[2606::1]:99"]


REFUSED = [
    # Other schemes, and this one in another spelling.
    *("http://images.example.org/", "HTTPS://images.example.org/", "Https://images.example.org/"),
    *("file:///etc/passwd", "ftp://images.example.org/", "gopher://images.example.org/"),
    *("ws://images.example.org/", "https:images.example.org/", "https:/images.example.org/"),
    *("https:///images.example.org/", "//images.example.org/", "images.example.org/", "", "https://"),
    # A user, or what looks like one.
    *("https://me@images.example.org/", "https://me:pw@images.example.org/"),
    *("https://images.example.org@127.0.0.1/", "https://127.0.0.1@images.example.org/"),
    *("https://images.example.org:443@127.0.0.1/", "https://@images.example.org/"),
    # What parsers disagree about.
    *("https://images.example.org\\@127.0.0.1/", "https://127.0.0.1\\.images.example.org/"),
    *("https://127.0.0.1#images.example.org/", "https://127.0.0.1?images.example.org/"),
    *("https://127.0.0.1/images.example.org", "https://127.0.0.1%2f.cdn.example.org/"),
    *("https://127.0.0.1;images.example.org/", "https://127.0.0.1,images.example.org/"),
    *("https://images.example.org%00.evil.example/", "https://images.example.org%2eevil.example/"),
    *("https://im%61ges.example.org/", "https://images.example.org\x00/", "https://[images.example.org]/"),
    *(" https://images.example.org/", "https://images.example.org/ ", "https://images.example.org/a b"),
    *("https://images.example.org/a\r\nHost: x", "https://images.example.org/\x7f", "\thttps://images.example.org/"),
    *("https://images.example.org/\u202e", "https://images.exa\u00admple.org/", "https://images.example.org/\u2028"),
    # Other hosts and ports.
    *("https://evil.example/", "https://images.example.org.evil.example/", "https://example.org/"),
    *("https://cdn.example.org/", "https://evilcdn.example.org/", "https://.cdn.example.org/"),
    *("https://a..cdn.example.org/", "https://images.example.org:8443/", "https://p.example.org/"),
    *("https://images.example.org:80/", "https://images.example.org:/", "https://images.example.org:99999/"),
    *("https://images.example.org:-443/", "https://images.example.org:٤٤٣/", "https://localhost/"),
    # Addresses, in all spellings.
    *("https://127.0.0.1/", "https://2130706433/", "https://0177.0.0.1/", "https://0x7f000001/"),
    *("https://0x7f.0.0.1/", "https://127.1/", "https://127.0.1/", "https://0/", "https://[::1]/"),
    *("https://[::]/", "https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[0:0:0:0:0:0:0:1]/"),
    *("https://[fe80::1%25eth0]/", "https://[::1%eth0]/", "https://169.254.169.254/latest/meta-data/"),
    *("https://10.0.0.1/", "https://100.64.0.1/", "https://0.0.0.0/", "https://[fc00::1]/"),
    *("https://[64:ff9b::a00:1]/", "https://[2002:a00:1::]/", "https://224.0.0.1/", "https://[ff02::1]/"),
    *("https://\uff11\uff12\uff17.0.0.1/", "https://127。0。0。1/", "https://①②⑦.0.0.1/", "https://8.8.8.8.:80/"),
    *("https://134744072/", "https://0x08.8.8.8/", "https://010.8.8.8/", "https://[::ffff:8.8.8.8]/"),
    # Sizes.
    "https://images.example.org/" + "a" * 5000,
    "https://" + "a." * 2000 + "cdn.example.org/",
    "https://" + "a" * 64 + ".cdn.example.org/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_urls_that_are_not_fetched(url):
    parts = image_url(url)
    assert parts is None or not is_allowed(parts, ALLOWED)


def test_nothing_is_allowed_by_default():
    assert not is_allowed(image_url("https://images.example.org/"), ())
