"""Every example, run as its first line says, in order, against one real service."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_service import LiveService

EXAMPLES = Path(__file__).parents[2] / "examples"
SECONDS = 240.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples run."""
    return tmp_path_factory.mktemp("examples")


def command(name: str, *arguments: str) -> list[str]:
    """How an example is run: `python` or `sh`, as its first line says."""
    return [sys.executable if name.endswith(".py") else "sh", str(EXAMPLES / name), *arguments]


def environment(folder: Path) -> dict[str, str]:
    """What a person has who has installed the package: no more than that is given."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder),
        "PYTHONPATH": str(EXAMPLES.parent),
        "OMP_NUM_THREADS": "1",  # on a busy machine, several would wait for each other
    }


STARTING = "soma-eval: starting a worker"
"""What a command says that begins to evaluate."""


def run(folder: Path, name: str, *arguments: str) -> str:
    """What the example prints."""
    ran = subprocess.run(
        command(name, *arguments),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    complaints = [line for line in ran.stderr.splitlines() if not line.startswith(STARTING)]
    assert (ran.returncode, complaints) == (0, []), ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def trained(folder: Path) -> str:
    """What 01 prints."""
    return run(folder, "01_train.py", "30")


@pytest.fixture(scope="module")
def published(folder: Path, trained: str) -> Iterator[str]:
    """What 03 prints; it runs for as long as others need it."""
    log = folder / "03.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command("03_encrypt_and_serve.py", "0"),
            cwd=folder,
            env=environment(folder),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    end = time.monotonic() + SECONDS
    while "serving" not in log.read_text() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    yield log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 0
    assert log.read_text().endswith("stopped\n")


def test_each_is_in_the_readme_and_says_how_to_run_it() -> None:
    names = sorted(path.name for path in EXAMPLES.glob("[0-9]*"))
    assert re.findall(r"^- \[(\S+)\]\(\1\): \S", (EXAMPLES / "README.md").read_text(), re.MULTILINE) == names
    for name in names:
        head = "\n".join((EXAMPLES / name).read_text().splitlines()[:2])
        assert f"examples/{name}" in head
        assert f"def test_{name[:2]}" in Path(__file__).read_text()


def test_01_train(trained: str, folder: Path) -> None:
    losses = [float(loss) for loss in re.findall(r"training loss (\S+)", trained)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert len(list((folder / "example-files").glob("step-*.safetensors"))) == 3


def test_02_score_local(trained: str, folder: Path) -> None:
    printed = run(folder, "02_score_local.py")
    losses = re.findall(r"  loss (\S+)", printed)
    assert len(losses) == 3
    table = printed[printed.index("to best") :]
    assert all(loss in table for loss in losses)


def test_03_encrypt_and_serve(published: str, folder: Path) -> None:
    assert "serving" in published
    made = folder / "example-files"
    assert sorted(path.suffix for path in (made / "published").iterdir()) == [".bin", ".enc", ".enc"]
    assert {(made / name).stat().st_mode & 0o777 for name in ("competition.json", "evaluation.json")} == {
        0o600
    }


def test_04_client_sync(published: str, folder: Path, service: LiveService) -> None:
    printed = run(folder, "04_client_sync.py", service.http_url)
    assert "16 numbers in the embedding" in printed
    assert "winner 1" in printed
    assert "(decryption-failed); at fault: model_owner" in printed


def test_05_client_async(published: str, folder: Path, service: LiveService) -> None:
    assert "over 5 seeds" in run(folder, "05_client_async.py", service.http_url)


def test_06_job_with_progress(published: str, folder: Path, service: LiveService) -> None:
    printed = run(folder, "06_job_with_progress.py", service.http_url)
    assert "succeeded: done" in printed
    assert "winner 1" in printed


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_07_curl(published: str, folder: Path, service: LiveService) -> None:
    printed = run(folder, "07_curl.sh", service.http_url)
    assert [printed.count(text) for text in ('"status":"ok"', '"winner":1', "event: succeeded")] == [1, 2, 1]
    assert '"code":"invalid-request"' in printed


def test_08_soma_sdk(published: str, folder: Path, service: LiveService) -> None:
    printed = run(folder, "08_soma_sdk.py", service.grpc_url)
    assert "healthy: True\nwinner 1" in printed
