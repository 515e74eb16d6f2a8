"""A real service whose PostgreSQL goes away in the middle of its work, and comes back."""

from pathlib import Path

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import request_for
from tests.live_service import live_service
from tests.postgres import Proxy, postgres_database, url_of
from tests.recipe import golden_cases, small_weights_bytes
from tests.sockets import wait_until

ASYNC = {"Prefer": "respond-async"}


def is_refused(response: httpx.Response) -> bool:
    """As a lack of this service that a retry may cure, and told as one."""
    problem = response.json()
    return (response.status_code, problem["code"], problem["fault"], problem["retryable"]) == (
        503,
        "out-of-resources",
        "service",
        True,
    )


@pytest.mark.slow
def test_while_its_database_is_away_what_needs_none_is_answered_and_nothing_is_lost(
    tmp_path: Path, files: FileServer
) -> None:
    body = request_for(files, "away.safetensors", small_weights_bytes(golden_cases()["small-1-mib"].weights))
    with postgres_database() as name:
        proxy = Proxy()
        environment = {"SOMA_EVAL_STATE_URL": url_of(name, proxy.port)}
        with live_service(tmp_path, environment=environment) as service, service.client() as client:
            undisturbed = client.post("/eval", json=body).json()
            running = client.post("/eval", json={**body, "seed": 1}, headers=ASYNC).headers["location"]
            proxy.close()

            assert is_refused(client.post("/eval", json={**body, "seed": 2}, headers=ASYNC))
            assert is_refused(client.get("/jobs"))
            waited = client.post("/eval", json={**body, "seed": 3})
            assert waited.status_code == 200, waited.text
            again = client.post("/eval", json=body).json()
            assert again["loss"] == undisturbed["loss"]
            assert "soma_eval_state_ok 0.0" in client.get("/metrics").text
            assert client.get("/ready").status_code == 200

            proxy.open()
            wait_until(lambda: client.get(running).status_code == 200)
            wait_until(lambda: client.get(running).json()["state"] == "succeeded")
            accepted = client.post("/eval", json={**body, "seed": 2}, headers=ASYNC)
            assert accepted.status_code == 202
            wait_until(lambda: client.get(accepted.headers["location"]).json()["state"] == "succeeded")
            wait_until(lambda: "soma_eval_state_ok 1.0" in client.get("/metrics").text)
            assert len(client.get("/jobs").json()["jobs"]) == 2
        proxy.close()
