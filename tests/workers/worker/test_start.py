"""A worker while it starts: it is heard of before its libraries are there."""

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
