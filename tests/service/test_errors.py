"""What this machine lacks is this service's trouble, and what a server does is not."""

import errno
import os
import resource
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from service.errors import InsufficientStorage, OutOfResources, exhaustion_of


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    held = []
    try:
        with suppress(OSError):
            while True:
                held.append(os.dup(0))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


@pytest.mark.parametrize("attempt", [socket.socket, Path(__file__).open], ids=["socket", "file"])
def test_no_descriptor_left(attempt: Callable[[], object]) -> None:
    with no_descriptor_left(), pytest.raises(OSError) as caught:
        attempt()
    trouble = exhaustion_of(caught.value)
    assert isinstance(trouble, OutOfResources)
    assert "descriptors" in trouble.detail
    assert (trouble.full_code, trouble.fault, trouble.retryable) == ("out-of-resources", "service", True)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "no") for number in (errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS)),
        *(OSError(number, "no") for number in (errno.EADDRNOTAVAIL, errno.EIO, errno.EROFS, errno.ENOENT)),
        socket.gaierror(socket.EAI_MEMORY, "no"),
        RuntimeError("can't start new thread"),
        MemoryError(),
    ],
    ids=repr,
)
def test_what_this_machine_lacks(error: Exception) -> None:
    assert type(exhaustion_of(error)) is OutOfResources


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(number: int) -> None:
    assert type(exhaustion_of(OSError(number, "no"))) is InsufficientStorage


def test_an_error_raised_from_exhaustion() -> None:
    with pytest.raises(RuntimeError) as caught:
        raise RuntimeError("cannot connect") from OSError(errno.EMFILE, "no")
    assert isinstance(exhaustion_of(caught.value), OutOfResources)


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "no") for number in (errno.ECONNREFUSED, errno.ECONNRESET, errno.ETIMEDOUT)),
        *(OSError(number, "no") for number in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EPIPE)),
        socket.gaierror(socket.EAI_NONAME, "no"),
        # numbers that would mean EPERM and EIO if they were those of the system
        ssl.SSLError(ssl.SSLErrorNumber.SSL_ERROR_SSL, "no"),
        ssl.SSLError(ssl.SSLErrorNumber.SSL_ERROR_SYSCALL, "no"),
        ssl.SSLCertVerificationError(1, "certificate verify failed"),
        RuntimeError("anything else"),
        ValueError(),
    ],
    ids=repr,
)
def test_what_a_server_does(error: Exception) -> None:
    assert exhaustion_of(error) is None
