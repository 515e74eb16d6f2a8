"""The real service on the device, a publisher of the folder's weights, and what may be asked."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.gpu.pools import first_device
from benchmarks.gpu.setup.weights import commitments_file
from benchmarks.gpu.testbed import Testbed
from tests.file_server import FileServer
from tests.golden_requests import KEY, manifest
from tests.live_service import LiveService, live_service


@dataclass(frozen=True)
class Live:
    """A running service, and where its files come from."""

    testbed: Testbed
    service: LiveService
    files: FileServer

    def eval(self, data: bytes, seed: int) -> httpx.Response:
        """POST /eval of the encrypted weights."""
        body = {
            "data": base64.b64encode(data).decode(),
            "seed": seed,
            **{f"weights_{key}": value for key, value in self._published(self.testbed.encrypted).items()},
            "decryption_key": KEY,
        }
        return self.post("/eval", body)

    def score(self, data: bytes, seed: int) -> httpx.Response:
        """POST /score of two models: the encrypted file and the plain one, which hold the same numbers."""
        published = manifest(self.files, f"data-{len(data)}", data)
        body = {
            **{f"data_{key}": published[key] for key in ("url", "checksum", "size")},
            "model_manifests": [
                {**self._published(self.testbed.encrypted), "decryption_key": KEY},
                self._published(self.testbed.plain),
            ],
            "target_embedding": [1.0] * self.testbed.case.config["embedding_dim"],
            "seed": seed,
        }
        return self.post("/score", body)

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """One request, computed anew."""
        with self.service.client() as client:
            return client.post(path, json=body, headers={"Cache-Control": "no-cache"}, timeout=300)

    def devices(self) -> list[dict[str, Any]]:
        """As /ready has them."""
        with self.service.client() as client:
            devices: list[dict[str, Any]] = client.get("/ready").json()["devices"]
            return devices

    def wait_until_ready(self, seconds: float = 120.0) -> None:
        """Until every worker is ready and none is busy. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not all(device["ready"] and not device["busy"] for device in self.devices()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the service was not ready within {seconds:.0f} s")
            time.sleep(0.05)

    def num_restarts(self) -> int:
        """Of all workers together."""
        return sum(device["restarts"] for device in self.devices())

    def workers(self) -> list[int]:
        """Process ids of its workers."""
        return [pid for pid in _children(self.service.process.pid) if _is_worker(pid)]

    def _published(self, path: Path) -> dict[str, Any]:
        checksum = json.loads(commitments_file(self.testbed).read_text())[path.name]
        return {
            "url": f"{self.files.base_url}/{path.name}",
            "checksum": checksum,
            "size": path.stat().st_size,
        }


@contextmanager
def live(testbed: Testbed, *flags: str, device: str = "") -> Iterator[Live]:
    """A service with weights of the testbed's size, on one device unless others are named."""
    size = "--full-model" if testbed.is_gpu else "--small-model"
    with (
        FileServer(testbed.folder).running() as files,
        live_service(
            testbed.folder / "service",
            *("--device", device or first_device(testbed), "--max-kept-results", "0", size, *flags),
        ) as service,
    ):
        yield Live(testbed, service, files)


def used_bytes_of_card() -> int:
    """Memory of the first card that all processes hold, this one's own context included."""
    import torch

    free, total = torch.cuda.mem_get_info(0)
    return total - free


def _children(pid: int) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if parent == pid:
            yield int(path.parent.name)


def _is_worker(pid: int) -> bool:
    try:
        return b"workers.worker.main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
