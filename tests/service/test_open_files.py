"""Idle connections never take the descriptors that requests need."""

import errno
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_connection
from typing import Any

import httpx
import pytest

from service.config import ExplicitSettings
from service.open_files import ConnectionLimits, connection_limits
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION as GOLDEN
from tests.golden_requests import competition, request_for
from tests.http2_client import Http2Client
from tests.live_service import SMALL_AND_LOCAL, LiveService, live_service
from tests.network_client import connect, score
from tests.recipe import small_weights_bytes


@pytest.mark.slow
async def test_idle_connections_leave_descriptors_for_admitted_work(
    tmp_path: Path, files: FileServer
) -> None:
    with live_service(tmp_path, max_open_files=200) as service, service.client() as client:
        by_grpc = await connect(service)
        assert await by_grpc.scoring_health()
        assert client.get("/health").status_code == 200
        with idle_connections(service):
            result = await score(by_grpc, competition(files, GOLDEN))
            assert (result.winner, result.loss_score) == (
                GOLDEN.winner,
                [pytest.approx(GOLDEN.losses[GOLDEN.winner], rel=1e-5)],
            )
            body = request_for(files, "beside-idle-connections", small_weights_bytes())
            assert client.post("/eval", json=body).status_code == 200
        assert "cannot be accepted" not in service.output()


@contextmanager
def idle_connections(service: LiveService, num_of_each: int = 300) -> Iterator[None]:
    """As many as the service takes, and more."""
    with ExitStack() as held:
        for _ in range(num_of_each):
            held.enter_context(create_connection(("127.0.0.1", port_of(service.http_url)), 10))
            grpc_client = Http2Client(port_of(service.grpc_url))
            held.callback(grpc_client.close)
        time.sleep(1.0)  # until each is taken or refused
        yield


def port_of(url: str) -> int:
    port = httpx.URL(url).port
    assert port is not None
    return port


@pytest.mark.slow
def test_a_limit_too_small_for_any_work_is_one_line(tmp_path: Path) -> None:
    service = LiveService(tmp_path, *SMALL_AND_LOCAL, max_open_files=100)
    try:
        assert service.process.wait(60) == 3
    finally:
        service.stop()
    begins, line = service.output().splitlines()
    assert begins.startswith("soma-eval: starting a worker")
    assert line.startswith("soma-eval: cannot serve: this process may open 100 files, and needs")


def settings(**given: Any) -> ExplicitSettings:
    return ExplicitSettings(**{"queue_size": 10, "max_weights_at_once": 4, **given})


@pytest.mark.parametrize(
    ("max_open_files", "given", "limits"),
    [
        (65536, {}, ConnectionLimits(http=8192, grpc=1024)),
        (65536, {"queue_size": 1000}, ConnectionLimits(http=8192, grpc=1024)),
        (1000, {}, ConnectionLimits(http=400, grpc=400)),
        (1000, {"grpc_port": "off"}, ConnectionLimits(http=800, grpc=0)),
        (1000, {"queue_size": 1000}, ConnectionLimits(http=16, grpc=16)),
        (172, {}, ConnectionLimits(http=16, grpc=16)),
    ],
)
def test_connections_have_what_requests_do_not_need(
    max_open_files: int, given: dict[str, Any], limits: ConnectionLimits
) -> None:
    assert connection_limits(settings(**given), max_open_files) == limits


def test_less_than_one_request_needs_is_refused() -> None:
    with pytest.raises(OSError, match="may open 171 files") as refused:
        connection_limits(settings(), 171)
    assert refused.value.errno == errno.EMFILE
