"""The system's resolver: names to addresses, in threads of their own.

A look-up cannot be cancelled. So each runs in a daemon thread, for which the process does not wait when it ends, and
simultaneous requests for one host share a look-up: a name takes one thread, however often it is requested.
"""

import asyncio
import contextlib
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to addresses as text, in order of preference; raises OSError if there is no answer."""

NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)
"""These errors are an answer: the name has no address. After every other error there was no answer."""

NOT_ONLINE = "the name resolver of this machine does not answer"
"""The message where nothing can be reached from this machine."""

_RESERVED_NAME = "example.com"
"""Reserved for examples (RFC 2606): no publisher controls the names below it."""
_PROBE_TIMEOUT_SECONDS = 5.0


class SystemResolver:
    """Looks names up, at most `num_threads` of them at once. `close` at the end."""

    def __init__(self, num_threads: int = 512) -> None:
        self._free_threads = asyncio.Semaphore(num_threads)
        self._lookups: dict[str, asyncio.Task[list[str]]] = {}
        self._probe: asyncio.Task[bool] | None = None

    async def __call__(self, host: str, port: int) -> list[str]:
        """Every address of a host. Raises OSError (socket.gaierror) if it has none."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = asyncio.create_task(self._look_up(host))
            lookup.add_done_callback(lambda done: self._end_lookup(host, done))
        return list(dict.fromkeys(await asyncio.shield(lookup)))

    async def is_answering(self) -> bool:
        """Whether the resolver answers at all, even if the answer is that a name does not exist.

        If a name gets no answer, its owner's name servers may be at fault, or this machine's resolver or network.
        So the resolver is asked for a random name below a reserved one, which no cache can contain.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(_answers(f"{secrets.token_hex(8)}.{_RESERVED_NAME}"))
        return await asyncio.shield(self._probe)

    def close(self) -> None:
        """Stop waiting for look-ups."""
        for lookup in self._lookups.values():
            lookup.cancel()

    async def _look_up(self, host: str) -> list[str]:
        async with self._free_threads:
            return await _in_own_thread(host)

    def _end_lookup(self, host: str, lookup: "asyncio.Task[list[str]]") -> None:
        del self._lookups[host]
        if not lookup.cancelled():
            lookup.exception()  # asyncio would log an exception that nobody awaits


async def _answers(name: str) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_SECONDS):
            await _in_own_thread(name)
    except socket.gaierror as error:
        return error.errno in NO_SUCH_NAME
    except (OSError, RuntimeError):  # no answer in time, or no descriptor or thread to ask with
        return False
    return True


async def _in_own_thread(host: str) -> list[str]:
    """Raises OSError; RuntimeError where the system has no thread left."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def look_up() -> None:
        try:
            addresses = _resolve(host)
        except Exception as error:
            settle(answer.set_exception, error)
        else:
            settle(answer.set_result, addresses)

    def settle(set_outcome: Callable[[Any], None], outcome: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(lambda: None if answer.done() else set_outcome(outcome))

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await answer


def _resolve(host: str) -> list[str]:
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label too long for IDNA
        raise OSError("the host's name is malformed") from error
    return [_text(sockaddr) for *_, sockaddr in infos]


def _text(sockaddr: tuple[Any, ...]) -> str:
    scope_id = sockaddr[3] if len(sockaddr) == 4 else 0
    return f"{sockaddr[0]}%{scope_id}" if scope_id and "%" not in sockaddr[0] else str(sockaddr[0])
