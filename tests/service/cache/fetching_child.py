"""A process that fetches blobs and may be killed. It reads one job per line and forks for each.

Forking from a process that has imported everything makes a fresh process cost milliseconds, not a second.
"""

import asyncio
import json
import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache
from service.download.downloader import Downloader
from service.egress.url_policy import UrlPolicy
from service.errors import ScoringError
from tests.service.delivery import QUICK

LIMITS = replace(QUICK, base_timeout_seconds=30.0, min_bytes_per_second=100.0, sync_bytes=1 << 14)


async def fetch_all(job: dict[str, Any]) -> list[str]:
    """The codes of the failures, or the checksums."""
    downloader = Downloader(UrlPolicy(allow_http=True, allow_private_addresses=True), LIMITS)
    cache = BlobCache(Path(job["directory"]), downloader, max_bytes=1 << 30)
    await cache.start()
    outcomes = []
    for blob in job["blobs"]:
        try:
            async with cache.fetch(BlobRef(**blob), kind="model", max_bytes=1 << 30) as cached:
                outcomes.append(cached.checksum)
        except ScoringError as failure:
            outcomes.append(failure.full_code)
    await cache.close()
    await downloader.aclose()
    return outcomes


def run(job: dict[str, Any]) -> None:
    """Do one job in this process and end it."""
    if "max_file_bytes" in job:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["max_file_bytes"],) * 2)
    outcomes = asyncio.run(fetch_all(job))
    os.write(sys.stdout.fileno(), f"outcomes {json.dumps(outcomes)}\n".encode())
    os._exit(0)


def main() -> None:
    """Print the process id of each job's process, and then its outcomes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run(json.loads(line))
        os.write(sys.stdout.fileno(), f"pid {pid}\n".encode())


if __name__ == "__main__":
    main()
