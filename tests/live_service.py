"""The real thing for tests: `soma-eval serve` as a process of its own, on free ports, with its output kept."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.exec_prepared import Inherited, prepared

START_SECONDS = 240.0
"""Long, because a busy machine starts a service slowly; a test ends after 300 seconds."""


class LiveService:
    """A running service, where it listens, and all that it has printed."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        max_open_files: int | None = None,
    ) -> None:
        self.data_dir = folder / "data"
        self._log = folder / "output.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                prepared(
                    [
                        *(sys.executable, "-m", "service.cli.main", "serve"),
                        *("--port", "0", "--grpc-port", "0", "--data-dir", str(self.data_dir), *flags),
                    ],
                    Inherited(max_open_files=max_open_files),
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**_environment(), **(environment or {})},
            )
        self.http_url = ""
        self.grpc_url = ""

    def wait_until_ready(self) -> None:
        """Wait until the addresses are printed. Raises RuntimeError when the service ends, or takes too long."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            found = dict(re.findall(r"^(HTTP|gRPC)\s+(http://\S+)", self.output(), re.MULTILINE))
            if len(found) == 2:
                self.http_url, self.grpc_url = found["HTTP"], found["gRPC"]
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"the service did not start:\n{self.output()}")

    def output(self) -> str:
        """Everything printed so far, on both streams."""
        return self._log.read_text(errors="replace")

    def client(self, **options: object) -> httpx.Client:
        """An HTTP client of this service. There is no TLS for which certificates would have to be loaded."""
        return httpx.Client(base_url=self.http_url, trust_env=False, verify=False, timeout=120.0, **options)  # type: ignore[arg-type]

    def stop(self, seconds: float = 60.0) -> int:
        """Send SIGTERM; returns the exit code. A service that takes longer is killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def blobs(self) -> list[str]:
        """Names of the files the service keeps."""
        return sorted(path.name for path in self.data_dir.rglob("*") if path.is_file())


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("SOMA_EVAL_")}


SMALL_AND_LOCAL = ("--small-model", "--device", "cpu", "--allow-http", "--allow-private-addresses")


@contextmanager
def live_service(
    folder: Path,
    *flags: str,
    environment: dict[str, str] | None = None,
    max_open_files: int | None = None,
) -> Iterator[LiveService]:
    """A small-model CPU service that may fetch from loopback, for the length of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    service = LiveService(
        folder, *SMALL_AND_LOCAL, *flags, environment=environment, max_open_files=max_open_files
    )
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()
