"""Takes the pictures of the documents, of real traffic on this machine's processors.

python -m tests.service.http_api.status_page.pictures docs/images [MINUTES]
"""

import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.service.http_api.status_page.chromium import Chromium, chromium
from tests.service.http_api.status_page.real_traffic import service_with_traffic

MINUTES = 60.0
"""As long as the page remembers."""


def take(
    browser: Chromium, url: str, target: Path, *, width: int, height: int | None, dark: bool = False
) -> None:
    """One picture of a page that is up to date."""
    browser.open(url, width=width, dark=dark)
    browser.wait_for_text("Live", "#connection")
    target.write_bytes(browser.picture(height))
    print(target, target.stat().st_size)  # noqa: T201


def main() -> None:
    """All of them into the folder that the command line names."""
    folder = Path(sys.argv[1])
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else MINUTES
    with (
        tempfile.TemporaryDirectory() as work,
        service_with_traffic(Path(work), minutes) as (service, traffic),
        chromium() as browser,
    ):
        home = f"{service.http_url}/"
        browser.open(home)
        browser.wait_for_text("models failed", "#panel-jobs .active")
        take(browser, home, folder / "status-light.webp", width=1440, height=1080)
        take(browser, home, folder / "status-phone.webp", width=390, height=844)
        with service.client() as client:
            jobs = client.get("/jobs", params={"limit": 100}).json()["jobs"]
        won = next(job for job in jobs if job["kind"] == "score" and job["state"] == "succeeded")
        take(browser, f"{home}jobs/{won['id']}", folder / "status-job.webp", width=1440, height=None)
        os.kill(traffic.workers()[0].pid, signal.SIGSTOP)
        browser.open(home)
        browser.wait_for_text("Yes, with 1 of 2 devices.", "h1")
        take(browser, home, folder / "status-dark.webp", width=1440, height=1080, dark=True)


if __name__ == "__main__":
    main()
