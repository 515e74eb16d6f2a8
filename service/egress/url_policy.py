"""Which URLs may be fetched and which addresses may be connected to. Pure: no network, no DNS, no state.

There are two checks, and both must pass. A URL is checked by its form, which says nothing about where it leads. An
address is checked against the tables below just before the connection, whatever name it was resolved from: `127.1`,
`0x7f.1`, `2130706433` and a hostile DNS answer are all the same address by then.

Not covered: a network's own NAT64 prefix inside 2000::/3, and public hosts that trust this
machine by its address. Both need a firewall.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

MAX_URL_LENGTH = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}

_FORBIDDEN_V4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host; Linux dials itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata service at 100.100.100.200
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # a cloud's host agent, on an otherwise public address
        "169.254.0.0/16",  # link-local; metadata services
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; a cloud's metadata service at 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnels (AMT)
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)

# Whatever is outside is loopback, mapped (::ffff:0:0/96), NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard,
# unique-local, link-local, site-local, multicast or not assigned to anybody.
_GLOBAL_V6 = IPv6Network("2000::/3")
_FORBIDDEN_V6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: any IPv4 address inside
        "2620:4f:8000::/48",  # AS112
        "3ffe::/16",  # the 6bone, given back
        "3fff::/20",  # documentation
    )
)

# What `allow_private_addresses` allows. Not link-local addresses: no closed network serves weights from there, and
# most metadata services are there. Metadata services among private addresses stay forbidden too.
_PRIVATE = (
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.168.0.0/16"),
    IPv6Network("::1/128"),
    IPv6Network("fc00::/7"),
)

_METADATA = frozenset(
    ip_address(address)
    for address in (
        "100.100.100.200",  # Alibaba Cloud
        "fd00:ec2::254",  # Amazon EC2
        "fd20:ce::254",  # Google Cloud
    )
)

_URL = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?",
    re.IGNORECASE | re.ASCII,
)
_AUTHORITY = re.compile(
    r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE | re.ASCII
)
_FOUR_NUMBERS = re.compile(r"[0-9]+(\.[0-9]+){3}")


class BadUrl(ValueError):
    """The text is not a URL of acceptable form."""


class ForbiddenTarget(Exception):
    """The URL leads to a forbidden address or protocol."""


@dataclass(frozen=True, slots=True)
class ParsedUrl:
    """A URL of acceptable form."""

    scheme: str
    host: str
    """A name or an address (IPv6 without brackets), in lower case."""
    port: int


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What is allowed beyond https to public addresses."""

    allow_http: bool = False
    allow_private_addresses: bool = False

    def parse(self, url: str) -> ParsedUrl:
        """Check a URL by its form.

        Raises BadUrl for what is not http(s), malformed, or has userinfo, a fragment or a zone id;
        ForbiddenTarget for plain http where that is not allowed. Neither message repeats the URL.
        """
        if len(url) > MAX_URL_LENGTH:
            raise BadUrl(f"the URL is longer than {MAX_URL_LENGTH} characters")
        if any(char.isspace() or not char.isprintable() or char == "\\" for char in url):
            raise BadUrl("the URL has a space, a backslash or a control character in it")
        parts = _match_url(url)
        scheme = parts["scheme"].lower()
        if scheme not in DEFAULT_PORTS:
            raise BadUrl("the URL is neither https nor http")
        host, port = _split_authority(parts["authority"])
        if scheme == "http" and not self.allow_http:
            raise ForbiddenTarget("only https is allowed")
        return ParsedUrl(scheme, host, DEFAULT_PORTS[scheme] if port is None else port)

    def check_redirect(self, origin: ParsedUrl, target: ParsedUrl) -> None:
        """Raise ForbiddenTarget for a redirect from https to http."""
        if origin.scheme == "https" and target.scheme != "https":
            raise ForbiddenTarget("a redirect leads from https to http")

    def may_dial(self, address: str) -> bool:
        """Whether an address, as the text that a resolver returns, may be connected to; never one with a zone id."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.scope_id is not None:
            return False
        if _is_public(parsed):
            return True
        is_private = parsed not in _METADATA and any(parsed in network for network in _PRIVATE)
        return self.allow_private_addresses and is_private


def _match_url(url: str) -> dict[str, str]:
    if "#" in url:
        raise BadUrl("the URL has a fragment")
    match = _URL.fullmatch(url)
    if match is None:
        raise BadUrl("the text is not an absolute URL")
    return match.groupdict()


def _split_authority(authority: str) -> tuple[str, int | None]:
    if "@" in authority:
        raise BadUrl("the URL has a user or a password in it")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise BadUrl("the URL's host or port is malformed")
    host, port = match["host"].lower(), match["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise BadUrl("the URL's port is out of range")
    if host.startswith("["):
        host = _check_literal(host[1:-1])
    elif _FOUR_NUMBERS.fullmatch(host):
        host = _check_literal(host)
    elif len(host) > 253 or any(not 0 < len(label) < 64 for label in host.removesuffix(".").split(".")):
        raise BadUrl("the URL's host is malformed")
    return host, None if port is None else int(port)


def _check_literal(host: str) -> str:
    """Refuse `0177.0.0.1`, which some read as octal, `256.1.1.1`, and malformed IPv6 addresses."""
    try:
        ip_address(host)
    except ValueError:
        raise BadUrl("the URL's host is malformed") from None
    return host


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _FORBIDDEN_V4)
    if address not in _GLOBAL_V6 or _is_isatap(address):
        return False
    return not any(address in network for network in _FORBIDDEN_V6)


def _is_isatap(address: IPv6Address) -> bool:
    """Whether the lower half is an IPv4 address to tunnel to, under whatever prefix (RFC 5214)."""
    return (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE
