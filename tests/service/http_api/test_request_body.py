"""The body of a request: its headers, its size, its values, and many bodies at once."""

import contextlib
import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.config import Settings
from service.http_api.request_body import MAX_BODIES_AT_ONCE, MAX_VALUES
from service.http_api.requests import ScoreRequest
from service.scoring.competition import MAX_MANIFESTS
from tests.in_process_service import InProcessService
from tests.problems import assert_problem
from tests.sockets import connect, read_to_the_end

JSON = {"content-type": "application/json"}
LARGEST_BODY = Settings().max_body_bytes


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "Content-Type"),
        ({"content-type": "text/plain"}, "Content-Type"),
        ({**JSON, "content-encoding": "gzip"}, "Content-Encoding"),
    ],
    ids=["no type", "text", "gzip"],
)
def test_a_header_that_is_wrong_is_named(
    headers: dict[str, str], named: str, client: httpx.Client, plain: dict[str, Any]
) -> None:
    problem = assert_problem(
        client.post("/eval", content=json.dumps(plain), headers=headers), "invalid-request"
    )
    assert named in problem["detail"]


def test_a_body_over_the_limit_with_a_length(client: httpx.Client) -> None:
    assert_problem(client.post("/eval", content=bytes(8 << 20), headers=JSON), "body-too-large")


def test_a_body_over_the_limit_without_a_length(api: InProcessService) -> None:
    """The response is sent while the client still sends; the rest of the body is received and dropped."""
    head = (
        b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with connect(api.http_url) as connection:
        connection.sendall(head)
        for _ in range(8):
            connection.sendall(chunk)
        connection.sendall(b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = read_to_the_end(connection)
    assert received.startswith(b"HTTP/1.1 413")
    assert b"body-too-large" in received
    assert received.endswith(b'{"status":"ok"}')


def test_a_body_in_chunks_of_a_byte(client: httpx.Client, plain: dict[str, Any]) -> None:
    text = json.dumps(plain).encode() + b" " * 50_000
    response = client.post("/eval", content=(text[i : i + 1] for i in range(len(text))), headers=JSON)
    assert response.status_code == 200, response.text


def test_a_body_that_no_route_reads_is_not_waited_for(api: InProcessService) -> None:
    with connect(api.http_url) as connection:
        connection.sendall(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nA")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 405")


def test_stalled_bodies_give_way_to_others(api: InProcessService, client: httpx.Client) -> None:
    head = (
        "POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {LARGEST_BODY}\r\n\r\n"
    )
    with contextlib.ExitStack() as held:
        stalled = [held.enter_context(connect(api.http_url)) for _ in range(MAX_BODIES_AT_ONCE + 1)]
        for connection in stalled:
            connection.sendall(head.encode() + b" " * (LARGEST_BODY - 1))
        for _ in range(3):
            assert_problem(client.post("/eval", content=b" " * LARGEST_BODY, headers=JSON), "invalid-request")
        refusal = stalled[0].recv(1 << 16)  # the first has held its memory the longest
        assert refusal.startswith(b"HTTP/1.1 429")
        assert b"retry-after" in refusal
        assert b"queue-full" in refusal


def floods() -> Iterable[tuple[str, bytes]]:
    yield "members", b"{" + b",".join(b'"%d":0' % n for n in range(400_000)) + b"}"
    yield "members within", b'{"a":' + b"[" * 500 + b",".join([b"{}"] * 1_000_000) + b"]" * 500 + b"}"
    yield "items", b'{"target_embedding":[' + b",".join([b'"x"'] * 1_000_000) + b"]}"


def test_a_flood_of_values_is_not_even_parsed(client: httpx.Client) -> None:
    for name, flood in floods():
        problem = assert_problem(client.post("/score", content=flood, headers=JSON), "invalid-request")
        assert problem["detail"] == "the body has too many members and items", name


@pytest.mark.parametrize("members", [{"unknown": 0}, {str(n): 0 for n in range(30)}], ids=["one", "thirty"])
def test_of_many_wrong_items_one_is_described(members: dict[str, int]) -> None:
    body = {"model_manifests": [members] * 3_000, "target_embedding": ["x"] * 3_000}
    with pytest.raises(ValidationError) as failure:
        ScoreRequest.model_validate(body)
    assert failure.value.error_count() < 100


def test_a_request_may_have_as_many_values_as_the_limits_allow() -> None:
    assert (1 << 16) + 4 * MAX_MANIFESTS + len(ScoreRequest.model_fields) < MAX_VALUES
