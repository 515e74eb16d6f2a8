"""API keys, and that no secret is ever sent, logged or shown: on the real service."""

import itertools
import re
from pathlib import Path
from typing import Any

import base58

from tests.file_server import FileServer
from tests.live_service import LiveService
from tests.problems import assert_problem
from tests.service.http_api.api_key import CANARY_API_KEY

CANARY_KEY = base58.b58encode(b"canary-decryption-key-canary-key").decode()
CANARY_QUERY = "canary-query-token-0815"


def test_api_key(live: LiveService) -> None:
    with live.client() as client:
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        for authorization in (
            "",
            "Bearer",
            "Bearer wrong",
            f"Basic {CANARY_API_KEY}",
            f"Bearer {CANARY_API_KEY}x",
        ):
            response = client.get("/info", headers={"Authorization": authorization})
            assert_problem(response, "unauthorized")
            assert response.status_code == 401
        assert client.get("/info", headers={"Authorization": f"Bearer {CANARY_API_KEY}"}).status_code == 200


def test_the_docs_open_in_a_browser_that_asks_for_the_key(live: LiveService) -> None:
    with live.client() as client:
        refused = client.get("/docs")
        assert_problem(refused, "unauthorized")
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert client.get("/docs", auth=("", "wrong")).status_code == 401
        assert client.get("/docs", headers={"Authorization": "Basic !"}).status_code == 401
        page = client.get("/docs", auth=("anybody", CANARY_API_KEY))
        assert page.status_code == 200
        for reference in [*re.findall(r'(?:src|href)="([^"]+)"', page.text), "/openapi.json"]:
            assert client.get(reference, auth=("", CANARY_API_KEY)).status_code == 200, reference
        for path in ("/info", "/eval", "/jobs/x"):
            other = client.get(path, auth=("", CANARY_API_KEY))
            assert_problem(other, "unauthorized")
            assert other.headers["www-authenticate"] == "Bearer"


def test_no_secret_is_ever_revealed(live: LiveService, plain: dict[str, Any], files: FileServer) -> None:
    bodies: list[dict[str, Any]] = [
        {**plain, "decryption_key": CANARY_KEY},
        {**plain, "decryption_key": CANARY_KEY + "0"},
        {**plain, "decryption_key": [CANARY_KEY]},
        {**plain, "decryption_key": CANARY_KEY, "seed": CANARY_KEY},
        {**plain, CANARY_KEY: 1},
        {**plain, "weights_url": f"{files.base_url}/absent?token={CANARY_QUERY}"},
        {**plain, "weights_url": f"https://{CANARY_QUERY}:x@localhost/w"},
        {**plain, "weights_url": f"{plain['weights_url']}?token={CANARY_QUERY}", "weights_checksum": None},
        {**plain, "weights_url": f"gopher://{CANARY_QUERY}"},
        {**plain, "data": CANARY_KEY + "!"},
    ]
    texts = []
    with live.client(headers={"Authorization": f"Bearer {CANARY_API_KEY}"}) as client:
        for body in bodies:
            waited = client.post("/eval", json=body)
            assert waited.status_code in (200, 422, 502)
            job = client.post("/eval", json=body, headers={"Prefer": "respond-async"})
            assert job.status_code in (202, 422)
            texts += [waited.text, job.text]
            if job.status_code == 202:
                texts.append(client.get(f"{job.headers['location']}/events").text)  # to the job's end
                texts.append(client.get(job.headers["location"]).text)
                texts.append(client.get(job.headers["location"], headers={"Accept": "text/html"}).text)
                texts.append(client.get(f"/status{job.headers['location']}/panels").text)
        texts.append(client.get("/metrics").text)
        texts.append(client.get("/info").text)
        texts.append(client.get("/").text)
        texts.append(client.get("/status/panels").text)
        with client.stream("GET", "/status/events") as events:
            texts.append("".join(itertools.islice(events.iter_text(), 1)))
        client.post("/sign-in", data={"key": CANARY_API_KEY}, headers={"Sec-Fetch-Site": "same-origin"})
        assert client.cookies
        texts += [*client.cookies.values(), client.get("/").text]
    command_lines = [
        path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")
    ]
    for text in [*texts, *command_lines, live.output()]:
        for secret in (CANARY_KEY, CANARY_API_KEY, CANARY_QUERY):
            assert secret not in text
