"""Limits of a connection: heads, trailers, timeouts, pipelining, their number; and what is not HTTP."""

import collections
import contextlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.http_api.protocol import HttpLimits
from tests.in_process_service import InProcessService, in_process_service
from tests.live_service import LiveService
from tests.problems import assert_problem
from tests.sockets import connect, read_to_the_end, wait_until

GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
POST_EVAL = b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


def test_a_host_that_is_no_host(api: InProcessService) -> None:
    with connect(api.http_url) as connection:
        connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n")
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("length", [b"0" * 5000 + b"2", b"9" * 19, b"9" * 5000], ids=["zeros", "19", "5000"])
def test_a_length_of_many_digits_is_no_server_error(length: bytes, api: InProcessService) -> None:
    with connect(api.http_url) as connection:
        connection.sendall(POST_EVAL + b"Connection: close\r\nContent-Length: " + length + b"\r\n\r\n{}")
        received = read_to_the_end(connection)
    assert int(received.split()[1]) in (400, 413, 422)
    assert b"application/problem+json" in received


def test_what_is_not_http_is_a_problem_too(api: InProcessService) -> None:
    with connect(api.http_url) as connection:
        connection.sendall(b"no request at all\r\n\r\n")
        head, _, body = read_to_the_end(connection).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status == "HTTP/1.1 400 Bad Request"
    headers = dict(line.split(": ") for line in lines)
    assert_problem(httpx.Response(400, headers=headers, content=body), "invalid-request")


@pytest.mark.parametrize(
    "beginning",
    [b"Transfer-Encoding: gzip\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nno number\r\n"],
    ids=["unknown coding", "broken chunk"],
)
def test_a_body_that_is_not_http_is_refused(beginning: bytes, api: InProcessService) -> None:
    with connect(api.http_url) as connection:
        connection.sendall(POST_EVAL + beginning)
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("beginning", "rest"),
    [
        (b"GET /health HTTP/1.1\r\n", b"x: x\r\n"),
        (b"GET /", b"x"),
        (b"GET /health HTTP/1.1\r\nx: ", b"x"),
        (POST_EVAL + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n", b"x: x\r\n"),
    ],
    ids=["headers", "a target", "one header", "trailers"],
)
def test_a_request_without_end_is_aborted(
    beginning: bytes, rest: bytes, api: InProcessService, client: httpx.Client
) -> None:
    block = rest * ((1 << 20) // len(rest))
    with connect(api.http_url) as connection:
        connection.sendall(beginning)
        with pytest.raises(OSError, match=r"(?i)reset|broken pipe"):
            collections.deque(map(connection.sendall, itertools.repeat(block, 256)), maxlen=0)
    assert client.get("/health").status_code == 200


@pytest.fixture(scope="module")
def short_timeouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessService]:
    """A service with short timeouts."""
    limits = HttpLimits(head_timeout_seconds=3.0, unread_body_timeout_seconds=1.0)
    with in_process_service(tmp_path_factory.mktemp("short_timeouts"), http_limits=limits) as running:
        yield running


@pytest.mark.parametrize("before", [b"", GET_HEALTH], ids=["first", "later"])
def test_a_head_that_is_not_finished_times_out(before: bytes, short_timeouts: InProcessService) -> None:
    with connect(short_timeouts.http_url) as connection:
        if before:
            connection.sendall(before)
            response = b""
            while not response.endswith(b"}"):
                response += connection.recv(1 << 16)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
        assert read_to_the_end(connection) == b""


def test_the_rest_of_a_body_times_out_after_the_response(short_timeouts: InProcessService) -> None:
    with connect(short_timeouts.http_url) as connection:
        connection.sendall(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nA")
        received = b""
        while not received:
            received = connection.recv(1 << 16)
        connection.sendall(b"A")
        received += read_to_the_end(connection)
    assert received.startswith(b"HTTP/1.1 405")
    assert received.count(b"HTTP/1.1") == 1


def test_pipelining_does_not_hide_that_the_client_has_disconnected(
    api: InProcessService, plain: dict[str, Any]
) -> None:
    body = json.dumps(plain).encode()
    request = POST_EVAL + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    with api.busy():
        with connect(api.http_url) as connection:
            connection.sendall(request)
            wait_until(lambda: api.pool.num_running == 1)
            connection.sendall(request)
            wait_until(lambda: api.pool.num_running == 0)
            assert read_to_the_end(connection) == b""
        with connect(api.http_url) as connection:
            connection.sendall(2 * request)
            assert read_to_the_end(connection) == b""
        wait_until(lambda: api.pool.num_running == 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may list the service's open files")
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost:",
        GET_HEALTH,
        POST_EVAL + b"Content-Length: 9\r\n\r\n{",
        b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "half a head", "a request", "half a body", "a large response unread"],
)
def test_connections_that_wait_for_their_client_give_way_to_others(sent: bytes, live: LiveService) -> None:
    with contextlib.ExitStack() as held:
        for number in range(300):
            connection = held.enter_context(connect(live.http_url))
            with contextlib.suppress(ConnectionError):  # it may have given way already
                connection.sendall(sent)
            if number > 100 and number % 40 == 0:
                assert is_healthy(live)
        process = psutil.Process(live.process.pid)
        assert len(process.net_connections("tcp")) < 140
    assert live.output().count("too many connections") <= 20  # the warnings are rate-limited


def is_healthy(service: LiveService) -> bool:
    with contextlib.suppress(httpx.TransportError), service.client() as client:
        return client.get("/health").status_code == 200
    return False


def test_connections_that_are_worked_for_do_not_give_way(tmp_path: Path, plain: dict[str, Any]) -> None:
    limits = replace(HttpLimits(), max_connections=2)
    with in_process_service(tmp_path, http_limits=limits) as service, contextlib.ExitStack() as held:
        with service.busy():
            working = [held.enter_context(connect(service.http_url)) for _ in range(2)]
            for number, connection in enumerate(working, start=1):
                body = json.dumps({**plain, "seed": number}).encode()
                head = f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                connection.sendall(POST_EVAL + head + body)
                wait_until(lambda number=number: service.pool.num_running == number)  # type: ignore[misc]
            for _ in range(8):
                with connect(service.http_url) as one_too_many:
                    assert read_to_the_end(one_too_many) == b""
        for connection in working:
            assert read_to_the_end(connection).startswith(b"HTTP/1.1 200")
