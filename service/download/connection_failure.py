"""Why a connection failed, in one clause for people, and whether this machine's own network may be the reason.

No clause contains an address, a URL or a word of the server's.
"""

import errno
import socket
import ssl
from collections.abc import Iterator

import httpcore
import httpx

from service.download.responses import Broken
from service.egress.asyncio_network import HandshakeFailed, HandshakeTimeout
from service.egress.resolver import NO_SUCH_NAME

_UNREACHABLE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENONET, errno.ETIMEDOUT}
)
_NOT_TLS = frozenset(
    {
        "WRONG_VERSION_NUMBER",
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "UNKNOWN_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
    }
)
_CERTIFICATE = {  # by OpenSSL's number
    9: "is not valid yet",
    10: "has expired",
    62: "is for another host",
    64: "is for another host",
}

_CLAUSES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((socket.gaierror,), "the host was not found"),
    ((ConnectionRefusedError,), "the connection was refused"),
    ((ConnectionResetError, ConnectionAbortedError, BrokenPipeError), "the server reset the connection"),
    ((httpcore.ConnectTimeout, httpx.ConnectTimeout), "there was no answer in time"),
    ((httpcore.TimeoutException, httpx.TimeoutException), "the server fell silent"),
    (
        (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
        "the server closed the connection early, or does not speak HTTP",
    ),
)


def describe(error: BaseException) -> str:
    """What went wrong, by the innermost cause that has a clause."""
    causes = list(_causes(error))
    is_handshake = any(isinstance(cause, HandshakeFailed | HandshakeTimeout) for cause in causes)
    for cause in reversed(causes):
        if (clause := _describe_one(cause)) is not None:
            names_handshake = isinstance(cause, ssl.SSLError)
            return f"the TLS handshake failed: {clause}" if is_handshake and not names_handshake else clause
    return "the TLS handshake failed" if is_handshake else "the connection broke"


def may_be_our_network(error: BaseException) -> bool:
    """Whether the connection would fail in the same way if nothing could be reached from this machine."""
    return any(_may_be_our_network(cause) for cause in _causes(error))


def _may_be_our_network(cause: BaseException) -> bool:
    match cause:
        case socket.gaierror():
            return cause.errno not in NO_SUCH_NAME
        case httpcore.TimeoutException() | httpx.TimeoutException() | TimeoutError():
            return True
        case OSError():
            return cause.errno in _UNREACHABLE
    return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _describe_one(cause: BaseException) -> str | None:
    match cause:
        case ssl.SSLError():
            return f"the TLS handshake failed{_describe_tls(cause)}"
        case socket.gaierror() if cause.errno not in NO_SUCH_NAME:
            return "the look-up of the host's name got no answer"
        case OSError() if cause.errno in _UNREACHABLE:
            return "the host cannot be reached"
        case Broken():
            return str(cause)
    return next((clause for kinds, clause in _CLAUSES if isinstance(cause, kinds)), None)


def _describe_tls(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f": the server's certificate {_CERTIFICATE.get(error.verify_code, 'is not trusted')}"
    return ": the server does not speak TLS on that port" if error.reason in _NOT_TLS else ""
