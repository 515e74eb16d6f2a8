"""A worker while it starts: it is heard of before its libraries are there."""

import subprocess
import sys
from pathlib import Path

import pytest

from workers.messages import Configure, Heartbeat, SelfTestFailed
from workers.processes.worker_process import WorkerProcess
from workers.types import WorkerConfig

SLOW_TORCH = """
import os, time
while not os.path.exists({opened!r}):
    time.sleep(0.01)
raise ImportError("it cannot be opened")
"""


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that torch waits for, in every process that is started from now on, before its import fails."""
    opened = tmp_path / "opened"
    (tmp_path / "torch.py").write_text(SLOW_TORCH.format(opened=str(opened)))
    monkeypatch.syspath_prepend(str(tmp_path))
    return opened


async def test_heartbeats_come_before_torch_is_imported(opened: Path) -> None:
    config = WorkerConfig("cpu")
    process = await WorkerProcess.spawn(config)
    try:
        process.send(Configure(config, heartbeat_seconds=0.01))
        assert [await process.receive(60) for _ in range(3)] == [Heartbeat()] * 3
        opened.touch()
        while (message := await process.receive(60)) == Heartbeat():
            pass
        assert message == SelfTestFailed("ImportError: it cannot be opened")
    finally:
        await process.kill()


START = """
import sys
from workers.types import WorkerConfig
from workers.worker.runner import Runner

assert Runner(WorkerConfig("cpu", small_model=True)).self_test(with_large=True) is None
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""


@pytest.mark.slow
def test_a_start_does_not_import_the_compiler_of_torch() -> None:
    """Nothing is compiled here, and to import it takes as long as all the rest of torch."""
    ran = subprocess.run([sys.executable, "-c", START], stdout=subprocess.PIPE, text=True, check=True)
    assert ran.stdout == "[]\n"
