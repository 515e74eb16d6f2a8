"""`soma-eval serve --pool ray` as a user starts it: on a private cluster of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.file_server import FileServer
from tests.golden_requests import KEY, assert_golden, post_eval, request_for
from tests.live_service import SMALL_AND_LOCAL, live_service
from tests.recipe import encrypt, small_weights_bytes
from tests.sockets import wait_until

WITHOUT_RAY = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "ray" else find_spec(name, package)
"""


def serve(*flags: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """The command, which must end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "service.cli.main", "serve", "--port", "0", "--grpc-port", "off", *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_a_golden_evaluation_on_a_private_cluster_of_which_nothing_is_left(
    tmp_path: Path, files: FileServer
) -> None:
    flags = ("--pool", "ray", "--node-data-dir", str(tmp_path / "nodes"))
    with live_service(tmp_path, *flags) as service:
        with service.client() as client:
            body = request_for(files, "cluster.enc", encrypt(small_weights_bytes()))
            assert_golden(post_eval(client, {**body, "decryption_key": KEY}))
            (device,) = client.get("/ready").json()["devices"]
            assert device["device"] == "cpu"
            assert device["node"]
            assert client.get("/info").json()["devices"] == [device]
        assert f"worker on {device['node']} cpu is ready" in service.output()
        assert KEY not in service.output()
        started = psutil.Process(service.process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in started)
        assert service.stop() == 0
        wait_until(
            lambda: not any(process.is_running() and process.status() != "zombie" for process in started)
        )


@pytest.mark.slow
def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_RAY)
    done = serve(
        *("--pool", "ray", "--data-dir", str(tmp_path / "data"), *SMALL_AND_LOCAL), PYTHONPATH=str(tmp_path)
    )
    assert done.returncode != 0
    assert "pip install 'soma-eval[cluster]'" in done.stderr


def test_a_gpu_is_not_named_by_its_number_in_a_cluster(tmp_path: Path) -> None:
    done = serve("--pool", "ray", "--device", "cuda:1", "--data-dir", str(tmp_path / "data"))
    assert done.returncode != 0
    assert "Ray says which GPU" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["service.cli.main", "service.server", "workers.pool", "workers.cluster.cluster_pool"]
)
def test_nothing_imports_ray_before_it_is_asked_for(module: str) -> None:
    code = f"import sys, {module}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
