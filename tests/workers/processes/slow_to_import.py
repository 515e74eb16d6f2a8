"""A worker whose libraries are opened from a slow disk."""

import time

time.sleep(2.0)

from tests.workers.processes.misbehaving import MisbehavingRunner  # noqa: E402
from workers.worker.main import main  # noqa: E402

if __name__ == "__main__":
    main(MisbehavingRunner)
