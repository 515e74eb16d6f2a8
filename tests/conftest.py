"""Fixtures for every folder of tests: one live service and one file server for each process of the run."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import KEY, request_for
from tests.live_service import LiveService, live_service
from tests.recipe import encrypt, small_weights_bytes

# Read when torch is first imported. Threads of torch that wait for one another should sleep: spinning ones starve the
# other processes of tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


LONG_FILES = (
    "tests/service/scoring/test_slow_publishers.py",
    "tests/workers/cluster/test_on_ray.py",
    "tests/workers/cluster/test_service_limits.py",
    "tests/service/test_killed_service.py",
    "tests/benchmarks/gpu/test_on_cpu.py",
    "tests/examples/test_examples.py",
    "tests/service/cli/screen/test_screen.py",
    "tests/service/test_other_architecture.py",
    "tests/service/scoring/test_screen.py",
    "tests/service/test_three_nodes.py",
    "tests/workers/cluster/test_cut_off.py",
    "tests/workers/processes/test_soak.py",
    "tests/workers/processes/test_process_pool.py",
    "tests/workers/processes/test_golden_numbers.py",
    "tests/workers/processes/test_changing_devices.py",
    "tests/service/cli/test_demo.py",
    "tests/service/cli/test_whole_loop.py",
    "tests/service/cli/score/test_streams.py",
    "tests/service/cli/encrypt/test_encrypt.py",
    "tests/service/cli/publish/test_publish.py",
    "tests/service/cli/watch/test_command.py",
    "tests/service/test_draining.py",
    "tests/service/scoring/test_eval.py",
    "tests/soma_eval/test_client.py",
    "tests/workers/processes/test_blame.py",
    "tests/workers/v1/test_model_runner.py",
)
"""Those that take longest come first: a run of several processes is not to end with one that waits for the others."""


def pytest_configure() -> None:
    """Helpers whose assertions are to say what differs; here, as worker processes of tests import no pytest."""
    pytest.register_assert_rewrite("tests.service.delivery", "tests.problems")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first; and tests that start a Ray cluster are skipped where Ray is not installed."""
    if missing := [name for name in LONG_FILES if not (config.rootpath / name).is_file()]:
        raise pytest.UsageError(f"LONG_FILES in tests/conftest.py names what is not there: {missing}")
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
    if importlib.util.find_spec("ray") is None:
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(
                    pytest.mark.skip(reason="Ray is not installed: pip install 'soma-eval[cluster]'")
                )


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """`soma-eval serve` with the small model; shared, so a test must leave it as it found it."""
    with live_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def client(service: LiveService) -> Iterator[httpx.Client]:
    """An HTTP client of the shared service."""
    with service.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """A file server on loopback."""
    folder: Path = tmp_path_factory.mktemp("files")
    with FileServer(folder).running() as server:
        yield server


@pytest.fixture(scope="session")
def plain(files: FileServer) -> dict[str, Any]:
    """A valid /eval request: golden data inline, golden weights unencrypted."""
    return request_for(files, "plain.safetensors", small_weights_bytes())


@pytest.fixture(scope="session")
def sealed(files: FileServer) -> dict[str, Any]:
    """The same, encrypted."""
    return {**request_for(files, "sealed.enc", encrypt(small_weights_bytes())), "decryption_key": KEY}
