"""The tables of addresses and the form of URLs, by generated cases and by a list of known tricks."""

import ipaddress
import re
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.egress.url_policy import BadUrl, ForbiddenTarget, ParsedUrl, UrlPolicy

STRICT = UrlPolicy()
OPEN = UrlPolicy(allow_http=True, allow_private_addresses=True)

# The registries' special-purpose blocks, written down a second time and in another form than in the code.
NEVER_V4 = [
    ("0.0.0.0", "0.255.255.255"),
    ("10.0.0.0", "10.255.255.255"),
    ("100.64.0.0", "100.127.255.255"),
    ("127.0.0.0", "127.255.255.255"),
    ("168.63.129.16", "168.63.129.16"),
    ("169.254.0.0", "169.254.255.255"),
    ("172.16.0.0", "172.31.255.255"),
    ("192.0.0.0", "192.0.0.255"),
    ("192.0.2.0", "192.0.2.255"),
    ("192.88.99.0", "192.88.99.255"),
    ("192.168.0.0", "192.168.255.255"),
    ("198.18.0.0", "198.19.255.255"),
    ("198.51.100.0", "198.51.100.255"),
    ("203.0.113.0", "203.0.113.255"),
    ("224.0.0.0", "255.255.255.255"),
]
NEVER_V6 = [
    ("::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("3fff::", "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ("4000::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
]


def is_in_a_never_block(address: IPv4Address | IPv6Address) -> bool:
    blocks = NEVER_V4 if isinstance(address, IPv4Address) else NEVER_V6
    return any(int(ip_address(first)) <= int(address) <= int(ip_address(last)) for first, last in blocks)


# -- addresses -----------------------------------------------------------------------------------------------


@given(st.ip_addresses())
def test_no_address_of_a_never_block_is_dialled(address: IPv4Address | IPv6Address) -> None:
    if is_in_a_never_block(address) or address.is_private or address.is_multicast:
        assert not STRICT.may_dial(str(address))


@given(st.sampled_from(NEVER_V4 + NEVER_V6), st.data())
def test_from_edge_to_edge_of_a_never_block(block: tuple[str, str], data: st.DataObject) -> None:
    first, last = ip_address(block[0]), ip_address(block[1])
    kind = type(first)
    inside = data.draw(st.integers(int(first), int(last)))
    for number in (int(first), inside, int(last)):
        assert not STRICT.may_dial(str(kind(number)))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_dialled_just_if_it_is_in_no_block(address: IPv4Address) -> None:
    harmless_exceptions = ("192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24")  # anycast, of no use here
    if not any(address in IPv4Network(network) for network in harmless_exceptions):
        assert STRICT.may_dial(str(address)) == (not is_in_a_never_block(address))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_in_ipv6_clothes_is_never_dialled(address: IPv4Address) -> None:
    number = int(address)
    clothes = {
        "mapped": (0xFFFF << 32) | number,
        "compatible": number,
        "translated": (0xFFFF << 48) | number,
        "nat64": (0x0064_FF9B << 96) | number,
        "nat64-local": (0x0064_FF9B_0001 << 80) | number,
        "6to4": (0x2002 << 112) | (number << 80) | 1,
        "teredo": (0x2001_0000 << 96) | (number ^ 0xFFFF_FFFF),
        "isatap": (0x2A00_1450 << 96) | (0x0000_5EFE << 32) | number,
        "isatap-universal": (0x2A00_1450 << 96) | (0x0200_5EFE << 32) | number,
    }
    for name, wrapped in clothes.items():
        assert not STRICT.may_dial(str(IPv6Address(wrapped))), name
        if number != 1:  # ::1 is loopback, which may be allowed
            assert not OPEN.may_dial(str(IPv6Address(wrapped))), name


@given(st.ip_addresses())
def test_allowing_private_addresses_adds_only_private_ones(address: IPv4Address | IPv6Address) -> None:
    text = str(address)
    if OPEN.may_dial(text) and not STRICT.may_dial(text):
        shared = address in IPv4Network("100.64.0.0/10") if isinstance(address, IPv4Address) else False
        assert address.is_private or shared
    assert OPEN.may_dial(text) >= STRICT.may_dial(text)
    if address.is_link_local or address.is_multicast or address.is_unspecified:
        assert not OPEN.may_dial(text)


@pytest.mark.parametrize("address", ["100.100.100.200", "fd00:ec2::254", "fd20:ce::254"])
def test_allowing_private_addresses_leaves_out_the_metadata_services_among_them(address: str) -> None:
    assert not OPEN.may_dial(address)
    assert OPEN.may_dial(str(ip_address(address) + 1))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "104.16.0.1", "2606:4700:4700::1111", "2a00:1450:4001:830::200e"]
)
def test_public_addresses_are_dialled(address: str) -> None:
    assert STRICT.may_dial(address)


@pytest.mark.parametrize(
    "text", ["", "localhost", "8.8.8.8:80", "8.8.8", "2606:4700::1%eth0", "[::1]", "8.8.8.8/8"]
)
def test_what_is_no_address_is_not_dialled(text: str) -> None:
    assert not OPEN.may_dial(text)


@given(st.text(max_size=40))
def test_checking_any_text_as_an_address_never_fails(text: str) -> None:
    if OPEN.may_dial(text):
        ipaddress.ip_address(text)


def test_the_library_alone_would_let_some_of_them_pass() -> None:
    """Why there is a table: these are global to `ipaddress`, or were in one of its versions."""
    for address in ("168.63.129.16", "64:ff9b::7f00:1", "2a00:1450::5efe:7f00:1"):
        assert ip_address(address).is_global
        assert not STRICT.may_dial(address)


# -- URLs ----------------------------------------------------------------------------------------------------

TRICKS = {
    "user as host": "https://public.example@127.0.0.1/",
    "password as host": "https://a:b@127.0.0.1/",
    "empty user": "https://@127.0.0.1/",
    "fragment before a user": "https://public.example#@127.0.0.1/",
    "backslash before a user": "https://public.example\\@127.0.0.1/",
    "backslashes for slashes": "https:\\\\127.0.0.1\\",
    "one slash": "https:/127.0.0.1/",
    "no slash": "https:127.0.0.1/",
    "three slashes": "https:///127.0.0.1/",
    "no scheme": "//127.0.0.1/",
    "tab in the host": "https://127.0\t.0.1/",
    "newline in the host": "https://127.0.0.1\n.public.example/",
    "carriage return and a header": "https://public.example/\r\nX-Header: 1",
    "null in the host": "https://public.example\x00.127.0.0.1/",
    "space before": " https://public.example/",
    "space after": "https://public.example/ ",
    "no-break space": "https://public.example/\u00a0",
    "soft hyphen in the host": "https://127.0.0\u00ad.1/",
    "full-width digits": "https://\uff11\uff12\uff17.0.0.1/",
    "kelvin sign": "https://public.\u212a/",
    "circled digits": "https://\u2460\u2461\u2466.0.0.1/",
    "ideographic full stop": "https://127\u30020\u30020\u30021/",
    "percent in the host": "https://127%2e0.0.1/",
    "percent slash in the host": "https://public.example%2f@127.0.0.1/",
    "octal": "https://0177.0.0.1/",
    "number too large": "https://256.0.0.1/",
    "zone": "https://[fe80::1%25eth0]/",
    "bare zone": "https://[fe80::1%eth0]/",
    "IPv6 without brackets": "https://::1/",
    "text after brackets": "https://[::1].public.example/",
    "future address": "https://[v1.x]/",
    "empty brackets": "https://[]/",
    "double port": "https://public.example:443:80/",
    "empty port": "https://public.example:/",
    "port with a sign": "https://public.example:+443/",
    "port zero": "https://public.example:0/",
    "port too large": "https://public.example:65536/",
    "Arabic digits as a port": "https://public.example:\u0664\u0664\u0663/",
    "empty label": "https://public..example/",
    "leading dot": "https://.public.example/",
    "only a dot": "https://./",
    "label too long": "https://" + "a" * 64 + ".example/",
    "host too long": "https://" + "a." * 130 + "example/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:6379/_INFO",
    "data": "data:text/plain,weights",
    "jar": "jar:https://public.example!/",
    "scheme in a scheme": "https+unix://%2fvar%2frun%2fdocker.sock/",
    "url prefix": "url:https://public.example/",
    "comma list of hosts": "https://public.example,127.0.0.1/",
    "semicolon in the host": "https://public.example;127.0.0.1/",
}


@pytest.mark.parametrize("url", TRICKS.values(), ids=TRICKS.keys())
def test_a_known_trick_is_refused_by_its_form(url: str) -> None:
    with pytest.raises(BadUrl) as caught:
        OPEN.parse(url)
    assert not url.strip() or url not in str(caught.value)


SPELLINGS = ["127.1", "0x7f.1", "0x7f000001", "2130706433", "0x7f.0x0.0x0.0x1", "017700000001", "127.0.0.1"]


@pytest.mark.parametrize("host", SPELLINGS)
def test_another_spelling_of_loopback_passes_as_a_host_and_fails_as_an_address(host: str) -> None:
    assert STRICT.parse(f"https://{host}/").host == host
    for *_, sockaddr in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM):
        assert not STRICT.may_dial(str(sockaddr[0]))


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("https://files.example/a/b?c=d&e=%20f", ParsedUrl("https", "files.example", 443)),
        ("HTTPS://Files.Example", ParsedUrl("https", "files.example", 443)),
        ("https://files.example:8443?x", ParsedUrl("https", "files.example", 8443)),
        ("https://files.example./", ParsedUrl("https", "files.example.", 443)),
        ("https://under_score.example/", ParsedUrl("https", "under_score.example", 443)),
        ("https://xn--bcher-kva.example/", ParsedUrl("https", "xn--bcher-kva.example", 443)),
        ("https://[2606:4700::1]:444/", ParsedUrl("https", "2606:4700::1", 444)),
        ("https://files.example/\u00fc?user@host:/[x]'(y)", ParsedUrl("https", "files.example", 443)),
    ],
)
def test_an_ordinary_url_is_read(url: str, parsed: ParsedUrl) -> None:
    assert STRICT.parse(url) == parsed


def test_http_is_only_read_where_it_is_allowed() -> None:
    assert OPEN.parse("http://files.example/").port == 80
    with pytest.raises(ForbiddenTarget):
        STRICT.parse("http://files.example/")


def test_a_redirect_may_change_everything_but_leave_https() -> None:
    plain, encrypted = OPEN.parse("http://a.example/"), OPEN.parse("https://b.example/")
    OPEN.check_redirect(plain, encrypted)
    OPEN.check_redirect(plain, plain)
    with pytest.raises(ForbiddenTarget):
        OPEN.check_redirect(encrypted, plain)


HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.integers(0, 2**33).map(str),
    st.integers(0, 2**33).map(hex),
    st.from_regex(r"(xn--|XN--)?[a-z0-9-]{0,9}[.]xn--[a-z0-9-]{0,9}", fullmatch=True),
    st.from_regex(r"[a-z0-9.@:%\[\]\\#?/-]{0,20}", fullmatch=True),
    st.text(max_size=20),
)
URLS = st.one_of(
    st.text(max_size=60),
    st.builds(
        lambda scheme, host, port, rest: f"{scheme}{host}{port}{rest}",
        st.sampled_from(["https://", "http://", "HTTPS://", "https:/", "//", "https:\\\\", "https://a@"]),
        HOSTS,
        st.sampled_from(["", ":443", ":", ":99999", ":0x50", "@127.0.0.1"]),
        st.one_of(
            st.sampled_from(["", "/", "/x?y", "#z", "?@127.0.0.1/", "\\@127.0.0.1"]), st.text(max_size=20)
        ),
    ),
)


@given(URLS)
def test_whatever_is_accepted_is_read_the_same_way_by_httpx(url: str) -> None:
    try:
        parsed = OPEN.parse(url)
        theirs = httpx.URL(url)
    except (BadUrl, httpx.InvalidURL):
        return
    assert (theirs.scheme, theirs.raw_host.decode()) == (parsed.scheme, parsed.host)
    assert (theirs.port or {"https": 443, "http": 80}[theirs.scheme]) == parsed.port
    assert not theirs.userinfo
    assert not theirs.fragment


@given(URLS)
def test_no_accepted_url_leads_to_a_forbidden_address_without_a_look_up(url: str) -> None:
    """Numeric hosts resolve without DNS: if the system finds an address in one, the address is checked."""
    try:
        host = STRICT.parse(url).host
    except (BadUrl, ForbiddenTarget):
        return
    if not re.fullmatch(r"[0-9a-fx.:]+", host):
        return
    try:
        infos = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:
        return
    for *_, sockaddr in infos:
        address = ip_address(str(sockaddr[0]))
        assert not (is_in_a_never_block(address) and STRICT.may_dial(str(address)))


@given(st.lists(st.ip_addresses(), min_size=1, max_size=4))
def test_the_tables_and_their_second_writing_agree_on_lists(
    addresses: list[IPv4Address | IPv6Address],
) -> None:
    if all(STRICT.may_dial(str(address)) for address in addresses):
        assert not any(is_in_a_never_block(address) for address in addresses)


def test_the_edges_of_what_is_public_in_ipv6() -> None:
    for network, inside in (
        ("2000::/3", True),
        ("1000::/4", False),
        ("4000::/3", False),
        ("e000::/4", False),
    ):
        first = IPv6Network(network).network_address
        assert STRICT.may_dial(str(IPv6Address(int(first) + (0x1234 << 96) + 7))) == inside
