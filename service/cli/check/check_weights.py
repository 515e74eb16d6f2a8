"""Whether the network accepts the weights behind a URL or in a file: by the header alone, or by every byte."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from service.blob import BlobRef
from service.checksum import is_checksum
from service.cli.diagnosis import Expected, Finding
from service.cli.encryption import commitment_of, commitment_of_plain
from service.cli.header_check import Checked, FileHead, check_header, model_config
from service.cli.urls import is_url
from service.cli.usage import BadUsage
from service.config import Settings
from workers.architectures import CURRENT_VERSION, load_architecture

if TYPE_CHECKING:
    from service.download.downloader import Downloader

NON_FINITE = "non-finite-weights"
"""The code of a finding that is no rule of the network's: it accepts such files."""
_TRAIN_AGAIN = (
    "take an earlier checkpoint: the network accepts the file, but its loss is almost certainly not finite, "
    "and a model without a finite loss wins nothing"
)


OnBytes = Callable[[int, int | None], None]
"""Called with how many bytes are done, of how many."""


def parse_expected(key: bytes | None, checksum: str | None, size: int | None) -> Expected:
    """Raises BadUsage for a checksum that cannot be one."""
    if checksum is not None and not is_checksum(checksum):
        raise BadUsage(
            "--checksum is not a Blake2b-256 digest in Base58: copy it once more, 43 or 44 characters"
        )
    return Expected(key, checksum, size)


async def check_weights(
    location: str,
    expected: Expected,
    settings: Settings,
    *,
    full: bool = False,
    allow_non_finite: bool = False,
    on_bytes: OnBytes | None = None,
) -> Checked:
    """Check a URL or a file. `full` reads every byte; of a file, so does an expected checksum.

    With every byte read, a NaN or an infinity in the weights is a finding, or a remark if it is allowed.

    A URL needs neither the cache nor its lock. Raises a ScoringError when it cannot be fetched, OSError when a
    file cannot be read.
    """
    report = on_bytes or (lambda done, total: None)
    whole = _WholeFile(expected, settings, allow_non_finite)
    if not is_url(location):
        if full or expected.checksum is not None:
            return await whole.check(Path(location), report, is_upload=False)
        return await check_header(FileHead(Path(location)), expected, settings, is_upload=False)
    if full:
        async with _downloaded(location, settings, report) as path:
            return await whole.check(path, lambda done, total: None, is_upload=True)
    return await _check_header_of_url(location, expected, settings)


# What downloads is imported where a URL is given. It takes as long to import as all the rest, which a file needs.


async def _check_header_of_url(url: str, expected: Expected, settings: Settings) -> Checked:
    from service.download.downloader import Downloader

    downloader = Downloader.from_settings(settings)
    try:
        checked = await check_header(_UrlHead(downloader, url), expected, settings, is_upload=True)
    finally:
        await downloader.aclose()
    if expected.checksum is not None:
        checked.remarks.append("the checksum was not verified; --full downloads the file and verifies it")
    return checked


@asynccontextmanager
async def _downloaded(url: str, settings: Settings, report: OnBytes) -> AsyncIterator[Path]:
    """The file behind a URL, in a cache of this command's own."""
    from service.lifespan import open_private_cache

    async with (
        open_private_cache(settings) as cache,
        cache.fetch(
            BlobRef(url),
            kind="model",
            max_bytes=settings.max_model_bytes,
            on_progress=lambda progress: report(progress.bytes_done, progress.bytes_total),
        ) as blob,
    ):
        yield blob.path


@dataclass(frozen=True, slots=True)
class _WholeFile:
    """Checks every byte of a file: the header first, then the checksum, then each value."""

    expected: Expected
    settings: Settings
    allow_non_finite: bool

    async def check(self, path: Path, report: OnBytes, *, is_upload: bool) -> Checked:
        checked = await check_header(FileHead(path), self.expected, self.settings, is_upload=is_upload)
        stop = threading.Event()

        def report_or_stop(done: int, total: int | None) -> None:
            if stop.is_set():
                raise InterruptedError
            report(done, total)

        try:
            await asyncio.to_thread(self._read, path, checked, report_or_stop, is_upload)
        finally:
            stop.set()  # else, after a cancel, the thread would read on to the end
        return checked

    def _read(self, path: Path, checked: Checked, report: OnBytes, is_upload: bool) -> None:
        size = checked.size or 0
        is_sound = not checked.findings
        total = 2 * size if is_sound else size
        found = commitment_of(path, lambda done: report(done, total)).checksum
        checked.checksum, checked.is_whole = found, True
        if self.expected.checksum not in (None, found):
            checked.findings.append(self._other_checksum(path, found, is_upload))
        if is_sound:  # else it is not known where the values are
            self._check_values(path, checked, lambda done: report(size + done, total))

    def _check_values(self, path: Path, checked: Checked, on_progress: Callable[[int], None]) -> None:
        architecture = load_architecture(CURRENT_VERSION)
        config = model_config(self.settings)
        for tensor in architecture.find_non_finite(path, self.expected.key, on_progress, config):
            counts = ((tensor.num_nan, "NaN"), (tensor.num_infinite, "infinite"))
            what = " and ".join(f"{count:,} {kind}" for count, kind in counts if count)
            detail = f"{tensor.name}: {what} of {tensor.num_elements:,} values"
            if self.allow_non_finite:
                checked.remarks.append(f"{detail}, as you allow")
            else:
                checked.findings.append(Finding(NON_FINITE, detail, _TRAIN_AGAIN))

    def _other_checksum(self, path: Path, found: str, is_upload: bool) -> Finding:
        expected = self.expected
        detail = f"the file's checksum is {found}, not the one given"
        if expected.key is not None and commitment_of_plain(path, expected.key).checksum == expected.checksum:
            detail += ", which is that of the weights before encryption"
            return Finding("checksum-mismatch", detail, "commit the checksum of the encrypted file")
        verb = "upload" if is_upload else "take"
        remedy = f"{verb} the file that `soma-eval encrypt` printed this checksum for"
        return Finding("checksum-mismatch", detail, remedy)


@dataclass(frozen=True, slots=True)
class _UrlHead:
    downloader: "Downloader"
    url: str

    async def head(self, num_bytes: int) -> tuple[bytes, int | None]:
        return await self.downloader.read_head(self.url, "model", num_bytes)
