"""Takes the pictures of the documents.

python -m tests.service.http_api.status_page.pictures docs/images
"""

import sys
import tempfile
from pathlib import Path

from tests.file_server import FileServer
from tests.service.http_api.status_page.busy_service import BusyPool, busy_service, jobs_of
from tests.service.http_api.status_page.chromium import Chromium, chromium


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
    with tempfile.TemporaryDirectory() as work, chromium() as browser:
        published = Path(work) / "files"
        published.mkdir()
        with FileServer(published).running() as files, busy_service(Path(work) / "data", files) as service:
            home = f"{service.http_url}/"
            assert isinstance(service.pool, BusyPool)
            service.pool.is_whole = True
            take(browser, home, folder / "status-light.webp", width=1440, height=925)
            service.pool.is_whole = False
            take(browser, home, folder / "status-dark.webp", width=1440, height=960, dark=True)
            take(browser, home, folder / "status-phone.webp", width=390, height=844)
            take(
                browser,
                service.http_url + jobs_of(service)["won"],
                folder / "status-job.webp",
                width=1440,
                height=None,
            )


if __name__ == "__main__":
    main()
