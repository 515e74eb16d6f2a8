"""A process that fetches a blob and stores inline data while it is short of something, and again when it is not.

python -m tests.service.download.starved_child FOLDER LACK PORT CHECKSUM: prints a JSON list of the outcomes of
each attempt. The server is on PORT of this host, or a server of this process's own where that is 0.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from service.blob import BlobRef
from service.egress.resolver import SystemResolver
from service.egress.url_policy import UrlPolicy
from service.errors import ScoringError
from tests.service.delivery import QUICK, Delivery, delivery

_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x41
LIMITS = replace(QUICK, max_attempts=2, base_timeout_seconds=30.0)


@contextlib.contextmanager
def few_descriptors(num_left: int) -> Iterator[None]:
    """So many can be opened, and no more."""
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with contextlib.suppress(OSError):
        while True:
            held.append(os.dup(0))
    for _ in range(num_left):
        os.close(held.pop())
    yield
    for fd in held:
        os.close(fd)


@contextlib.contextmanager
def no_new_threads() -> Iterator[None]:
    """There is memory left, but not for the stack of a thread."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (num_pages * resource.getpagesize() + (4 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def no_ports(port: int) -> Iterator[None]:
    """No more connections can be made to the server on this port. Needs a network namespace of its own."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("40000 40003")
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(socket.create_connection(("127.0.0.1", port)))
    yield
    for connection in held:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()


def bring_loopback_up() -> None:
    """In a new network namespace it is down."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))


async def attempt(d: Delivery, blob: BlobRef) -> list[str]:
    """The outcomes of fetching data by URL and of storing inline data."""
    outcomes = []
    for work in (d.fetch(blob, kind="data"), _hold(d)):
        try:
            await work
            outcomes.append("good")
        except ScoringError as error:
            outcomes.append(f"{error.full_code} {error.fault} {error.retryable}")
    return outcomes


async def _hold(d: Delivery) -> None:
    async with d.cache.hold(b"inline"):
        pass


async def main(folder: Path, lack: str, port: int, checksum: str) -> None:
    """One attempt while there is a lack, one after."""
    if lack == "ports":
        bring_loopback_up()
    policy = UrlPolicy(allow_http=True, allow_private_addresses=True)
    resolver = SystemResolver()
    async with delivery(folder, tls=False, policy=policy, limits=LIMITS, dns=resolver) as d:
        kind, _, num_left = lack.partition("-")
        scarce: Callable[[], contextlib.AbstractContextManager[None]] = {
            "descriptors": lambda: few_descriptors(int(num_left)),
            "threads": no_new_threads,
            "ports": lambda: no_ports(d.server.port),
        }[kind]
        blob = BlobRef(f"http://localhost:{port}/file", checksum) if port else d.blob()
        with scarce():
            outcomes = await attempt(d, blob)
        outcomes += await attempt(d, blob)
    os.write(1, json.dumps(outcomes).encode())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
