"""Is this what the network accepts as weights? Judged from the first bytes alone, or from all of them.

The verdict is that of the architecture's own judge of headers, the one that workers use; `diagnosis` explains it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from service.blob import BlobRef
from service.checksum import is_checksum
from service.cli.check.diagnosis import Diagnosis, Expected, Finding, declared_size, header_end
from service.cli.encryption import commitment_of, commitment_of_plain, decrypt_start
from service.cli.question import BadUsage, is_url
from service.config import Settings
from service.download.downloader import Downloader
from service.lifespan import open_private_cache
from workers.architectures import CURRENT_VERSION, load_architecture

_FIRST_BYTES = 256 << 10
"""Holds the header of every usual weights file: that of full V1 has 46 KB."""

NON_FINITE = "non-finite-weights"
"""The code of a finding that the network's own judge of files does not have."""
_TRAIN_AGAIN = (
    "take an earlier checkpoint: the network accepts the file, but its loss is almost certainly not finite, "
    "and a model without a finite loss wins nothing"
)


@dataclass(slots=True)
class Checked:
    """What was found. No finding: as far as it was looked at, the network accepts the file."""

    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What is worth knowing and no obstacle."""
    size: int | None = None
    """Bytes as published; None where the server does not tell."""
    checksum: str | None = None
    """As computed; None where not every byte was read."""
    num_tensors: int | None = None
    is_whole: bool = False
    """Whether every byte was read."""

    def to_json(self) -> dict[str, Any]:
        """What `soma-eval check --json` prints."""
        return {
            "accepted": not self.findings,
            "findings": [asdict(finding) for finding in self.findings],
            "remarks": self.remarks,
            "size": self.size,
            "checksum": self.checksum,
            "num_tensors": self.num_tensors,
            "full": self.is_whole,
        }


OnBytes = Callable[[int, int | None], None]
"""Told how many bytes are done, of how many."""


class Source(Protocol):
    """Where the first bytes come from."""

    async def head(self, num_bytes: int) -> tuple[bytes, int | None]:
        """The first bytes as published, fewer if there are no more; and the size, if it is known."""


def parse_expected(key: bytes | None, checksum: str | None, size: int | None) -> Expected:
    """Raises BadUsage for a checksum that can be none."""
    if checksum is not None and not is_checksum(checksum):
        raise BadUsage(
            "--checksum is not a Blake2b-256 digest in Base58: copy it once more, 43 or 44 characters"
        )
    return Expected(key, checksum, size)


async def check(
    place: str,
    expected: Expected,
    settings: Settings,
    *,
    full: bool = False,
    allow_non_finite: bool = False,
    on_bytes: OnBytes | None = None,
) -> Checked:
    """Look at a URL or a file. `full` reads every byte; of a file, a promised checksum does so too.

    With every byte read, a NaN or an infinity in the weights is a finding, or a remark if it is allowed.

    A URL needs neither the cache nor its lock. Raises a ScoringError when it cannot be fetched, OSError when a
    file cannot be read.
    """
    report = on_bytes or (lambda done, total: None)
    whole = _WholeFile(expected, settings, allow_non_finite)
    if not is_url(place):
        if full or expected.checksum is not None:
            return await whole.check(Path(place), report, is_upload=False)
        return await _Check(_File(Path(place)), expected, settings, is_upload=False).run()
    if full:
        async with _downloaded(place, settings, report) as path:
            return await whole.check(path, lambda done, total: None, is_upload=True)
    downloader = Downloader.from_settings(settings)
    try:
        return await _Check(_Url(downloader, place), expected, settings, is_upload=True).run()
    finally:
        await downloader.aclose()


async def diagnose(
    path: Path, key: bytes | None, settings: Settings, *, is_upload: bool = False
) -> list[Finding]:
    """Why the network would not accept a file as weights, with what to do; empty if its header is in order.

    `is_upload` says that the file was downloaded, so that it is to be uploaded again. Raises OSError.
    """
    checked = await _Check(_File(path), Expected(key), settings, is_upload=is_upload).run()
    return checked.findings


def model_config(settings: Settings) -> Any:
    """The shape of the model that the settings ask for."""
    config = load_architecture(CURRENT_VERSION).ModelConfig
    return config.small() if settings.small_model else config()


@asynccontextmanager
async def _downloaded(url: str, settings: Settings, report: OnBytes) -> AsyncIterator[Path]:
    """The file behind a URL, in a cache of this command's own."""
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
    """Looks at every byte of a file: the header first, then the checksum, then each value."""

    expected: Expected
    settings: Settings
    allow_non_finite: bool

    async def check(self, path: Path, report: OnBytes, *, is_upload: bool) -> Checked:
        checked = await _Check(_File(path), self.expected, self.settings, is_upload=is_upload).run()
        stop = threading.Event()

        def report_or_stop(done: int, total: int | None) -> None:
            if stop.is_set():
                raise InterruptedError
            report(done, total)

        try:
            await asyncio.to_thread(self._read, path, checked, report_or_stop, is_upload)
        finally:
            stop.set()  # or a thread that nobody waits for would read on to the end
        return checked

    def _read(self, path: Path, checked: Checked, report: OnBytes, is_upload: bool) -> None:
        size = checked.size or 0
        is_sound = not checked.findings
        total = 2 * size if is_sound else size
        found = commitment_of(path, lambda done: report(done, total)).checksum
        checked.checksum, checked.is_whole = found, True
        if self.expected.checksum not in (None, found):
            checked.findings.append(self._other_checksum(path, found, is_upload))
        if is_sound:  # else nobody knows where its values lie
            self._judge_values(path, checked, lambda done: report(size + done, total))

    def _judge_values(self, path: Path, checked: Checked, on_progress: Callable[[int], None]) -> None:
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
        detail = f"the file's checksum is {found}, not the one promised"
        if expected.key is not None and commitment_of_plain(path, expected.key).checksum == expected.checksum:
            detail += ", which is that of the weights before encryption"
            return Finding("checksum-mismatch", detail, "commit the checksum of the encrypted file")
        verb = "upload" if is_upload else "take"
        remedy = f"{verb} the file that `soma-eval encrypt` printed this checksum for"
        return Finding("checksum-mismatch", detail, remedy)


@dataclass(frozen=True, slots=True)
class _Url:
    downloader: Downloader
    url: str

    async def head(self, num_bytes: int) -> tuple[bytes, int | None]:
        return await self.downloader.read_head(self.url, "model", num_bytes)


@dataclass(frozen=True, slots=True)
class _File:
    path: Path

    async def head(self, num_bytes: int) -> tuple[bytes, int | None]:
        with self.path.open("rb") as file:
            return file.read(num_bytes), self.path.stat().st_size


class _Check:
    """One file's header on its way to a verdict."""

    def __init__(self, source: Source, expected: Expected, settings: Settings, *, is_upload: bool) -> None:
        self._source = source
        self._expected = expected
        self._is_upload = is_upload
        architecture = load_architecture(CURRENT_VERSION)
        self._judge = architecture.weights_header
        small, full = architecture.ModelConfig.small(), architecture.ModelConfig()
        self._config, other = (small, full) if settings.small_model else (full, small)
        self._small_model = settings.small_model
        self._refusals = (architecture.WeightsInvalid, architecture.DecryptionFailed)
        self._diagnosis = Diagnosis(
            expected,
            self._judge,
            self._refusals,
            self._config,
            other,
            small_model=settings.small_model,
            is_upload=is_upload,
        )
        self._checked = Checked()

    async def run(self) -> Checked:
        """Judge, and explain if the verdict is no."""
        published, size = await self._source.head(_FIRST_BYTES)
        self._checked.size = size
        self._judge_size(size)
        clear = self._decrypt(published)
        needed = header_end(self._judge, clear)
        if needed is not None and len(published) < needed:
            published, _ = await self._source.head(needed)
            clear = self._decrypt(published)
        self._judge_head(published, clear, size)
        if size is None:
            self._checked.remarks.append(
                "the server does not tell the file's size; --full would see it cut off"
            )
        if self._expected.checksum is not None and isinstance(self._source, _Url):
            self._checked.remarks.append("the checksum was not looked at; --full downloads the file and does")
        return self._checked

    def _decrypt(self, published: bytes) -> bytes:
        key = self._expected.key
        return published if key is None else decrypt_start(published, key)

    def _judge_size(self, size: int | None) -> None:
        promised = self._expected.size
        if size and promised is not None and size != promised:
            detail = f"the file has {size:,} bytes, {promised:,} are promised"
            remedy = (
                "upload the file again, and compare the sizes"
                if self._is_upload
                else "take the file that this size was printed for"
            )
            self._checked.findings.append(Finding("size-mismatch", detail, remedy))

    def _judge_head(self, published: bytes, clear: bytes, size: int | None) -> None:
        end = header_end(self._judge, clear)
        declared = None if end is None or len(clear) < end else declared_size(clear, end)
        file_size = size if size is not None else (self._expected.size or declared or len(published))
        encrypted = self._expected.key is not None
        try:
            header = self._judge.read_header(
                lambda offset, count: clear[offset : offset + count],
                file_size,
                self._config,
                encrypted=encrypted,
            )
        except self._refusals as refusal:
            unknown = Finding("weights-invalid", refusal.detail, "save the weights again with Model.save")
            self._checked.findings += self._diagnosis.explain(published, clear, file_size) or [unknown]
            return
        self._remark(header)

    def _remark(self, header: Any) -> None:
        needed = self._judge.expected_shapes(self._config)
        self._checked.num_tensors = len(header.tensors)
        remarks = self._checked.remarks
        if len(header.tensors) > len(needed):
            remarks.append(
                f"{len(header.tensors) - len(needed)} more tensors than needed: the network ignores them"
            )
        dtypes = {header.tensors[name].dtype for name in needed} - {"F32"}
        if dtypes:
            remarks.append(f"stored as {', '.join(sorted(dtypes))}: the network converts it to float32")
        if self._small_model:
            remarks.append("judged as the small model, for trying things: the network evaluates the full one")
        if self._expected.key is None:
            remarks.append("not encrypted: whoever has the file can read the weights")
