"""A pool whose service has no folder, or no descriptors left: each in a process of its own."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

WITHOUT_ITS_FOLDER = """
import asyncio, shutil, signal, sys
sys.path.append(sys.argv[1])
from pathlib import Path
from tests.workers.processes.pools import job, misbehaving_pool, right_cross_entropy, send_signal, until_whole

async def main():
    Path("jobs").mkdir()
    async with misbehaving_pool() as pool:
        await pool.evaluate(job("dies-once", Path("jobs")))  # a relative path
        shutil.rmtree(Path.cwd())
        send_signal(pool, signal.SIGKILL)
        result = await pool.evaluate(job("dies-once", Path(sys.argv[2])))
        assert result.cross_entropy == right_cross_entropy()

asyncio.run(main())
"""

WITHOUT_DESCRIPTORS = """
import asyncio, os, resource, signal, sys
sys.path.append(sys.argv[1])
from pathlib import Path
from tests.workers.processes.pools import job, misbehaving_pool
from tests.workers.processes.pools import right_cross_entropy, send_signal, until, until_whole

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    async with misbehaving_pool() as pool:
        held = []
        try:
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        send_signal(pool, signal.SIGKILL)
        await until(lambda: pool.status()[0].restarts >= 2)
        print(pool.status()[0].trouble)
        for descriptor in held:
            os.close(descriptor)
        await until_whole(pool)
        result = await pool.evaluate(job("good", Path(sys.argv[2])))
        assert result.cross_entropy == right_cross_entropy()

asyncio.run(main())
"""


def run(script: str, folder: Path) -> str:
    """Run it in a folder of its own within this one, and return what it printed."""
    current = folder / "current"
    current.mkdir()
    command = [sys.executable, "-c", script, str(ROOT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=current, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_workers_are_started_again_when_the_current_folder_is_gone(tmp_path: Path) -> None:
    run(WITHOUT_ITS_FOLDER, tmp_path)


def test_a_start_that_fails_is_tried_again(tmp_path: Path) -> None:
    assert "could not be started: Too many open files" in run(WITHOUT_DESCRIPTORS, tmp_path)
