"""Each way in which a connection fails has a message, and no publisher is at fault for this machine's network."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from service.egress.resolver import SystemResolver
from service.errors import ScoringError
from tests import misbehaving_server as servers
from tests.misbehaving_server import Reply, Request, random_bytes
from tests.service.delivery import QUICK, FakeDns, delivery

CONTENT = random_bytes(10_000)
LIMITS = replace(QUICK, max_attempts=2, base_timeout_seconds=3.0)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def _server(
    answer: Callable[[asyncio.StreamWriter], None], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Something that listens and does one thing with each connection; its port."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(1)
            answer(writer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def _reset(writer: asyncio.StreamWriter) -> None:
    Reply(writer).reset()


def _speak_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def _strange_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


async def _why(tmp_path: Path, port: int, **options: Any) -> str:
    """The words about a fetch and about a look at the head, which are the same."""
    async with delivery(tmp_path, limits=LIMITS, **options) as d:
        blob = replace(d.blob(), url=f"https://127.0.0.1:{port}/file?token=secret")
        failure = await d.refused(blob)
        assert (failure.full_code, failure.retryable) == ("model-unavailable", True)
        with pytest.raises(ScoringError) as caught:
            await d.downloader.read_head(blob.url, "model", 10)
        assert failure.detail == f"{caught.value.detail} (2 tries)"
        return caught.value.detail


async def test_refused(tmp_path: Path) -> None:
    assert await _why(tmp_path, _free_port()) == "the connection was refused"


async def test_a_plain_port(tmp_path: Path) -> None:
    async with _server(_speak_http) as port:
        words = "the TLS handshake failed: the server does not speak TLS on that port"
        assert await _why(tmp_path, port) == words


async def test_reset_in_the_handshake(tmp_path: Path) -> None:
    async with _server(_reset) as port:
        assert await _why(tmp_path, port) == "the TLS handshake failed: the server reset the connection"


async def test_an_unknown_certificate(tmp_path: Path) -> None:
    async with _server(_reset, _strange_context()) as port:
        words = "the TLS handshake failed: the server's certificate is not trusted"
        assert await _why(tmp_path, port) == words


async def test_a_certificate_for_another_host(tmp_path: Path) -> None:
    async with delivery(tmp_path, dns=FakeDns(elsewhere_example=[["127.0.0.1"]])) as d:
        failure = await d.refused(d.blob(host="elsewhere.example"))
        words = "the TLS handshake failed: the server's certificate is for another host (5 tries)"
        assert failure.detail == words


@pytest.mark.parametrize(
    ("behave", "words"),
    [
        (servers.breaking_after(0, CONTENT, reset=True), "the server reset the connection"),
        (servers.replying(503), "the server answered with status 503"),
        (servers.redirecting("/", servers.silent, num_times=99), "the server redirects more than 3 times"),
        (servers.replying(404), "the server answered with status 404"),
    ],
)
async def test_what_a_server_does_with_a_request(
    tmp_path: Path, behave: servers.Behaviour, words: str
) -> None:
    async with delivery(tmp_path, behave, content=CONTENT, limits=LIMITS) as d:
        failure = await d.refused()
        assert (failure.full_code, failure.detail.removesuffix(" (2 tries)")) == ("model-unavailable", words)


async def test_no_word_of_the_server_reaches_a_message(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.raw(
            b"HTTP/1.1 404 \x1b[31mevil\r\nETag: \x1b[2J\r\nLocation: \x1b]0;evil\r\nContent-Length: 0\r\n\r\n"
        )

    async with delivery(tmp_path, behave, limits=LIMITS) as d:
        failure = await d.refused()
        assert failure.detail.isprintable()
        assert "evil" not in failure.detail


# -- names -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _dns(monkeypatch: pytest.MonkeyPatch, answers: Callable[[str], int | None]) -> Iterator[list[str]]:
    """The system's resolver fails with a number for some names; every look-up is noted."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        asked.append(host)
        number = answers(host)
        if number is None:
            return real("127.0.0.1", *args, **options)
        raise socket.gaierror(number, "as configured")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield asked


NO_ANSWER_AT_ALL = {"publisher.test": socket.EAI_AGAIN, "control": socket.EAI_AGAIN}
ONLY_THE_PUBLISHER_DOES_NOT = {"publisher.test": socket.EAI_AGAIN, "control": socket.EAI_NONAME}
NO_SUCH_NAME = {"publisher.test": socket.EAI_NONAME, "control": socket.EAI_AGAIN}
NO_MEMORY = {"publisher.test": socket.EAI_MEMORY, "control": None}


@pytest.mark.parametrize(
    ("answers", "code", "words"),
    [
        (NO_SUCH_NAME, "model-unavailable", "the host was not found (2 tries)"),
        (
            ONLY_THE_PUBLISHER_DOES_NOT,
            "model-unavailable",
            "the look-up of the host's name got no answer (2 tries)",
        ),
        (NO_ANSWER_AT_ALL, "out-of-resources", "the name resolver of this machine does not answer"),
        (NO_MEMORY, "out-of-resources", "this machine is out of memory"),
    ],
    ids=["no such name", "only this one", "no answer at all", "no memory"],
)
async def test_a_name_without_an_answer_is_a_service_failure_only_if_no_name_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, int | None], code: str, words: str
) -> None:
    with _dns(monkeypatch, lambda host: answers.get(host, answers["control"])):
        async with delivery(tmp_path, limits=LIMITS, dns=SystemResolver()) as d:
            failure = await d.refused(d.blob(host="publisher.test"))
            assert (failure.full_code, failure.detail) == (code, words)
            assert (failure.fault == "service") is (code == "out-of-resources")


async def test_without_a_network_no_publisher_is_to_blame_for_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is not accepted in time, by an address: there is no name to look up."""
    answers: dict[str, int | None] = {"127.0.0.1": None}
    for number, code in ((socket.EAI_AGAIN, "out-of-resources"), (socket.EAI_NONAME, "download-timeout")):
        limits = replace(LIMITS, base_timeout_seconds=0.5)
        with _dns(monkeypatch, lambda host, number=number: answers.get(host, number)):  # type: ignore[misc]
            async with delivery(tmp_path, servers.silent, limits=limits, dns=SystemResolver()) as d:
                assert (await d.refused()).full_code == code


def test_look_ups_that_hang_do_not_hold_up_the_end_of_the_process() -> None:
    code = """
import asyncio, socket, time
from service.egress.resolver import SystemResolver
socket.getaddrinfo = lambda *args, **options: time.sleep(3600)

async def main():
    resolver = SystemResolver()
    tasks = [asyncio.create_task(resolver(f"{i}.test", 443)) for i in range(100)]
    await asyncio.sleep(0.2)
    resolver.close()

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=30, check=True, capture_output=True)
    assert done.stderr == b""
