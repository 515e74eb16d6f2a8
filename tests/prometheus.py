"""A real Prometheus over a running service, for tests of what it makes of our metrics."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import yaml  # type: ignore[import-untyped]

START_SECONDS = 60.0


def is_installed() -> bool:
    """Whether there is a Prometheus with its promtool."""
    return bool(shutil.which("prometheus") and shutil.which("promtool"))


class Prometheus:
    """Scrapes one service every second."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30.0)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression gives now. Raises AssertionError for one that Prometheus refuses."""
        answer = self._client.post("/api/v1/query", data={"query": expression}).json()
        assert answer["status"] == "success", (expression, answer.get("error"))
        series: list[dict[str, Any]] = answer["data"]["result"]
        return series

    def wait_for_scrapes(self, number: int) -> None:
        """Wait until the service was scraped so many times from now on."""
        before = self._num_scrapes()
        _until(lambda: self._num_scrapes() >= before + number)

    def _num_scrapes(self) -> int:
        series = self.query('count_over_time(up{job="soma-eval"}[1h])')
        return int(series[0]["value"][1]) if series else 0

    def rules(self) -> list[dict[str, Any]]:
        """Every alert rule, once each was evaluated: its query, health and state."""

        def read() -> list[dict[str, Any]]:
            groups = self._client.get("/api/v1/rules").json()["data"]["groups"]
            return [rule for group in groups for rule in group["rules"]]

        _until(lambda: all(rule["health"] != "unknown" for rule in read()))
        return read()

    def close(self) -> None:
        """Close the connections to it."""
        self._client.close()


@contextmanager
def prometheus_over(service_url: str, config: Path, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with the rules of `config` that scrapes this service in place of the one named there."""
    settings = yaml.safe_load(config.read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(config.parent / name) for name in settings["rule_files"]]
    (scrape,) = settings["scrape_configs"]
    scrape["static_configs"] = [{"targets": [urlsplit(service_url).netloc]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{_port_of(process.pid)}")
            try:
                yield prometheus
            finally:
                prometheus.close()
        finally:
            process.terminate()
            process.wait()


def _port_of(pid: int) -> int:
    """Where a process listens, once it does."""
    ports: list[int] = []

    def is_listening() -> bool:
        ports[:] = [
            each.laddr.port for each in psutil.Process(pid).net_connections() if each.status == "LISTEN"
        ]
        return bool(ports)

    _until(is_listening)
    return ports[0]


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
