"""Publishers that are slow or hang, on the real service: they cost their own models, and nobody else."""

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION as GOLDEN
from tests.golden_requests import competition, manifest
from tests.golden_requests import request_for as eval_request
from tests.live_service import LiveService, live_service
from tests.misbehaving_server import MisbehavingServer, Reply, Request, honest, silent, slow_body
from tests.problems import assert_problem
from tests.recipe import golden_cases, make_data, small_weights_bytes

pytestmark = pytest.mark.slow

WEIGHTS = small_weights_bytes()
NO_CHECKSUM = "1" * 32


@pytest.fixture(scope="module")
def short_timeouts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """Any rate is good enough, a request may take no more than some seconds, and the disk is small."""
    flags = ("--request-timeout-seconds", "8", "--min-download-rate", "1", "--cache-max-bytes", "4000000")
    with live_service(tmp_path_factory.mktemp("short_timeouts"), *flags) as service:
        yield service


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """One download at a time, given up after six seconds in which too little comes."""
    flags = ("--max-weights-at-once", "1", "--download-base-timeout-seconds", "6")
    with live_service(tmp_path_factory.mktemp("narrow"), *flags) as service:
        yield service


@asynccontextmanager
async def client_of(service: LiveService) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=service.http_url, trust_env=False, timeout=120.0, limits=limits
    ) as client:
        yield client


def model_at(server: MisbehavingServer, name: str) -> dict[str, Any]:
    return {
        "url": server.url(f"/{name}"),
        "checksum": NO_CHECKSUM,
        "size": len(WEIGHTS),
        "decryption_key": None,
    }


def hung_eval(known: dict[str, Any], server: MisbehavingServer, number: int) -> dict[str, Any]:
    return {**known, "weights_url": server.url(f"/{number}"), "weights_checksum": NO_CHECKSUM}


async def wait_until_asked(server: MisbehavingServer, num_requests: int = 1) -> None:
    async with asyncio.timeout(60):
        while len(server.requests) < num_requests:
            await asyncio.sleep(0.02)


@asynccontextmanager
async def hanging_requests(
    client: httpx.AsyncClient, known: dict[str, Any], server: MisbehavingServer, num_requests: int
) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """So many evaluations of weights that never come, the first of them asked for already."""
    hanging = [
        asyncio.create_task(client.post("/eval", json=hung_eval(known, server, i)))
        for i in range(num_requests)
    ]
    await wait_until_asked(server)
    try:
        yield hanging
    finally:
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging)


async def test_a_slow_publisher_costs_the_others_nothing(
    short_timeouts: LiveService, files: FileServer
) -> None:
    """Its download alone would take longer than the request may."""
    body = competition(files, GOLDEN)
    async with (
        MisbehavingServer(slow_body(WEIGHTS, bytes_per_second=200), tls=False) as server,
        client_of(short_timeouts) as client,
    ):
        models = [model_at(server, "slow"), *body["model_manifests"]]
        response = await client.post("/score", json={**body, "model_manifests": models})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["winner"] == 1 + GOLDEN.winner
    error = answer["models"][0]["error"]
    assert (error["code"], error["fault"], error["retryable"]) == ("download-timeout", "model_owner", True)


async def test_slow_data_is_its_submitters_fault(short_timeouts: LiveService, files: FileServer) -> None:
    data = make_data(GOLDEN.data)
    async with (
        MisbehavingServer(slow_body(data, bytes_per_second=len(data) / 60), tls=False) as server,
        client_of(short_timeouts) as client,
    ):
        body = {**competition(files, GOLDEN), "data_url": server.url("/data")}
        problem = assert_problem(await client.post("/score", json=body), "download-timeout")
    assert (problem["fault"], problem["blob"]) == ("data_submitter", "data")


async def test_evaluations_that_take_too_long_are_nobodys_fault(
    short_timeouts: LiveService, files: FileServer
) -> None:
    body = competition(files, GOLDEN)
    data = manifest(files, "long.bin", make_data(golden_cases()["small-1-mib"].data))
    promised = {f"data_{name}": data[name] for name in ("url", "checksum", "size")}
    async with client_of(short_timeouts) as client:
        models = body["model_manifests"] * 5
        response = await client.post("/score", json={**body, **promised, "model_manifests": models})
    problem = assert_problem(response, "deadline-exceeded")
    assert (problem["fault"], problem["model_index"], problem["retryable"]) == ("service", None, True)


async def test_a_cache_that_is_too_small_for_a_file_is_not_its_publishers_fault(
    short_timeouts: LiveService, files: FileServer
) -> None:
    large = eval_request(files, "large.bin", bytes(5_000_000))
    async with client_of(short_timeouts) as client:
        problem = assert_problem(await client.post("/eval", json=large), "insufficient-storage")
    assert (problem["fault"], problem["retryable"]) == ("service", True)


async def test_publishers_that_hang_keep_nobody_waiting(narrow: LiveService, files: FileServer) -> None:
    """What is here is evaluated at once, and what comes is downloaded in between."""
    known = eval_request(files, "known.safetensors", WEIGHTS)
    new = eval_request(files, "new.safetensors", WEIGHTS)
    async with (
        MisbehavingServer(silent, tls=False) as server,
        client_of(narrow) as client,
    ):
        assert (await client.post("/eval", json=known)).status_code == 200
        async with hanging_requests(client, known, server, 5) as hanging:
            assert (await client.post("/eval", json=known)).status_code == 200
            assert (await client.post("/eval", json=new)).status_code == 200
            assert not any(task.done() for task in hanging)


async def test_slots_that_are_given_up_do_not_excuse_a_publisher_that_hangs(
    narrow: LiveService, files: FileServer
) -> None:
    known = eval_request(files, "known.safetensors", WEIGHTS)
    async with (
        MisbehavingServer(silent, tls=False) as server,
        client_of(narrow) as client,
    ):
        responses = await asyncio.gather(
            *(client.post("/eval", json=hung_eval(known, server, i)) for i in range(2))
        )
    for response in responses:
        problem = assert_problem(response, "download-timeout")
        assert (problem["fault"], problem["model_index"]) == ("model_owner", 0)
    assert len(server.requests) > 2  # asked again after a slot had been given up


async def test_a_server_that_takes_long_for_its_first_byte_is_served_among_those_that_hang(
    narrow: LiveService, files: FileServer
) -> None:
    known = eval_request(files, "known.safetensors", WEIGHTS)

    async def late(request: Request, reply: Reply) -> None:
        if request.target != "/late":
            await silent(request, reply)
        await asyncio.sleep(2.5)  # longer than a slot is kept at first while others wait
        await honest(WEIGHTS)(request, reply)

    async with (
        MisbehavingServer(late, tls=False) as server,
        client_of(narrow) as client,
        hanging_requests(client, known, server, 2),
    ):
        response = await client.post("/eval", json={**known, "weights_url": server.url("/late")})
    assert response.status_code == 200, response.text


async def test_a_competition_is_answered_beside_clients_of_single_evaluations(
    service: LiveService, files: FileServer
) -> None:
    body = competition(files, GOLDEN)
    single = {
        **eval_request(files, "single.safetensors", WEIGHTS),
        "data": base64.b64encode(make_data(GOLDEN.data)).decode(),
    }
    num_answered, anew = 0, {"Cache-Control": "no-cache"}
    async with client_of(service) as client:

        async def ask_again_and_again() -> None:
            nonlocal num_answered
            while num_answered < 200:
                assert (await client.post("/eval", json=single, headers=anew)).status_code == 200
                num_answered += 1

        asking = [asyncio.create_task(ask_again_and_again()) for _ in range(3)]
        await asyncio.sleep(0.5)
        num_before = num_answered
        response = await client.post("/score", json=body, headers=anew)
        num_beside = num_answered - num_before
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
    assert response.status_code == 200, response.text
    # An even share would be three for each model.
    assert num_beside <= 12 * len(body["model_manifests"])
