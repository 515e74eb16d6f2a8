"""A real service killed with a job under way: it goes on, downloads nothing again, and leaves no secret on the disk."""

import base64
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import KEY, request_for
from tests.live_service import LiveService, live_service
from tests.postgres import HOST, PORT, USER, postgres_database, url_of
from tests.recipe import TEST_KEY, encrypt, golden_cases, make_data, small_weights_bytes
from tests.sockets import wait_until

GOLDEN = golden_cases()["small-1-mib"]
TOKEN = "canary-token-in-a-query"
API_KEY = "canary-api-key"
IDEMPOTENCY_KEY = "canary-idempotency-key"
ASYNC = {"Prefer": "respond-async", "Authorization": f"Bearer {API_KEY}", "Idempotency-Key": IDEMPOTENCY_KEY}


@pytest.fixture(scope="module")
def work(files: FileServer) -> dict[str, Any]:
    """An encrypted request of some seconds, with secrets in every place that has them."""
    body = request_for(files, "killed.enc", encrypt(small_weights_bytes(GOLDEN.weights)))
    data = make_data({**GOLDEN.data, "size": 256 << 10})
    return {
        **body,
        "weights_url": f"{body['weights_url']}?token={TOKEN}",
        "decryption_key": KEY,
        "data": base64.b64encode(data).decode(),
        "seed": GOLDEN.seed,
    }


@pytest.fixture(params=["sqlite", "postgresql"])
def state_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Of a database of its own; None for the default."""
    if request.param == "sqlite":
        yield None
        return
    with postgres_database() as name:
        yield url_of(name)


def environment(state_url: str | None) -> dict[str, str]:
    return {"SOMA_EVAL_API_KEYS": API_KEY, **({"SOMA_EVAL_STATE_URL": state_url} if state_url else {})}


def client_of(service: LiveService) -> httpx.Client:
    return service.client(headers={"Authorization": f"Bearer {API_KEY}"})


def kill(service: LiveService) -> None:
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.wait()


def dumps_of(folder: Path, state_url: str | None) -> bytes:
    """The database as every kind of copy has it."""
    if state_url is not None:
        name = state_url.rpartition("/")[2]
        command = ["pg_dump", "-h", HOST, "-p", str(PORT), "-U", USER, name]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    backup = folder / "backup.sqlite"
    subprocess.run(["sqlite3", folder / "data/state.sqlite", f".backup {backup}"], check=True)
    files = [backup, *(folder / "data").glob("state.sqlite*")]
    assert {"state.sqlite", "state.sqlite-wal"} <= {file.name for file in files}
    return b"".join(file.read_bytes() for file in files)


def assert_no_secret(content: bytes, work: dict[str, Any]) -> None:
    data = work["data"]
    secrets = [
        *(KEY.encode(), TEST_KEY, base64.b64encode(TEST_KEY), TEST_KEY.hex().encode()),
        *(TOKEN.encode(), base64.b64encode(TOKEN.encode())[:-4], API_KEY.encode(), IDEMPOTENCY_KEY.encode()),
        *(data[:64].encode(), base64.b64decode(data)[:48], base64.b64decode(data)[:48].hex().encode()),
    ]
    for secret in secrets:
        assert secret not in content
        assert secret.hex().encode() not in content  # pg_dump writes bytes in hex


@pytest.mark.slow
def test_a_job_goes_on_after_kill_9(
    tmp_path: Path, files: FileServer, work: dict[str, Any], state_url: str | None
) -> None:
    files.requests.clear()
    with live_service(tmp_path, "--log-level", "debug", environment=environment(state_url)) as service:
        with client_of(service) as client:
            location = client.post("/eval", json=work, headers=ASYNC).headers["location"]
            wait_until(lambda: client.get(location).json()["state"] == "running")
            before = client.get(location).json()
            assert_no_secret(dumps_of(tmp_path, state_url) + service.output().encode(), work)
        kill(service)
    with live_service(tmp_path, "--log-level", "debug", environment=environment(state_url)) as service:
        with client_of(service) as client:
            wait_until(lambda: client.get(location).json()["finished_at"] is not None, 120)
            after = client.get(location).json()
            again = client.post("/eval", json=work, headers=ASYNC)
        assert_no_secret(dumps_of(tmp_path, state_url) + service.output().encode(), work)
    assert (after["state"], after["created_at"]) == ("succeeded", before["created_at"])
    assert after["result"]["num_batches"] == 16
    assert again.headers["location"] == location
    assert len([path for path in files.requests if "killed.enc" in path]) == 1


@pytest.mark.slow
def test_without_its_key_file_a_job_is_interrupted(tmp_path: Path, work: dict[str, Any]) -> None:
    key_file = tmp_path / "keys" / "state.key"
    flags = ("--state-key-file", str(key_file))
    with live_service(tmp_path, *flags, environment=environment(None)) as service:
        with client_of(service) as client:
            location = client.post("/eval", json=work, headers=ASYNC).headers["location"]
        kill(service)
    assert key_file.stat().st_mode & 0o777 == 0o600
    key_file.unlink()
    with (
        live_service(tmp_path, *flags, environment=environment(None)) as service,
        client_of(service) as client,
    ):
        wait_until(lambda: client.get(location).json()["state"] == "failed")
        error = client.get(location).json()["error"]
    assert (error["code"], error["status"], error["fault"]) == ("interrupted", 503, "service")
    assert error["retryable"] is True


@pytest.mark.slow
def test_a_stopped_service_leaves_its_job_to_the_next(tmp_path: Path, work: dict[str, Any]) -> None:
    flags = ("--drain-timeout-seconds", "0.1")
    with live_service(tmp_path, *flags, environment=environment(None)) as service:
        with client_of(service) as client:
            location = client.post("/eval", json=work, headers=ASYNC).headers["location"]
            wait_until(lambda: client.get(location).json()["state"] == "running")
        assert service.stop() == 0
        assert "Traceback" not in service.output()
    with live_service(tmp_path, environment=environment(None)) as service, client_of(service) as client:
        wait_until(lambda: client.get(location).json()["state"] == "succeeded", 120)
        assert re.search("going on with a job", service.output())
