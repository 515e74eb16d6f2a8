"""Is this what the network accepts as weights? Judged from the first bytes alone, or from all of them.

The verdict is that of the architecture's own judge of headers, the one that workers use. What is added here is
the explanation: what went wrong on the way from training to the URL, and what to do about it.
"""

import asyncio
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from service.checksum import is_checksum
from service.competition import BlobRef, parse_decryption_key
from service.config import Settings
from service.download import Downloader
from service.encryption import commitment_of, commitment_of_plain, decrypt_start
from service.errors import InvalidKey
from service.local_scoring import ARCHITECTURE_VERSION, open_cache
from service.question import BadUsage, is_url
from workers.architectures import load_architecture

_FIRST_BYTES = 256 << 10
"""Holds the header of every usual weights file: that of full V1 has 41 KB."""

_DISGUISES = (
    (b"<!doctype html", "an HTML page", "give the file's own address, not that of the page that shows it"),
    (b"<html", "an HTML page", "give the file's own address, not that of the page that shows it"),
    (b"<?xml", "an XML answer, as storage gives for an error", "open the URL, and read what it says"),
    (b"<error", "an XML answer, as storage gives for an error", "open the URL, and read what it says"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "upload the file it points to"),
    (b"pk\x03\x04", "a zip archive, as torch.save writes it", "save it with Model.save, as safetensors"),
    (b"\x80\x02", "a Python pickle", "save it with Model.save, as safetensors"),
    (b"\x1f\x8b", "a gzip file", "upload it uncompressed, and without Content-Encoding"),
    (b"{", "a JSON text", "open the URL, and read what it says"),
    (bytes(16), "zeros", "upload the file again: nothing has been written"),
)
"""What is stored as weights by mistake: how it begins, in lower case; what it is; what to do."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What is known of the file, as far as it is."""

    key: bytes | None = field(default=None, repr=False)
    checksum: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why the network would not accept the file as it is promised."""

    code: str
    detail: str
    remedy: str


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

    def add(self, code: str, detail: str, remedy: str) -> None:
        self.findings.append(Finding(code, detail, remedy))

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


def parse_promise(key: bytes | None, checksum: str | None, size: int | None) -> Promise:
    """Raises BadUsage for a checksum that can be none."""
    if checksum is not None and not is_checksum(checksum):
        raise BadUsage(
            "--checksum is no Blake2b-256 digest in Base58: copy it once more, 43 or 44 characters"
        )
    return Promise(key, checksum, size)


async def check(
    place: str, promise: Promise, settings: Settings, *, full: bool = False, on_bytes: OnBytes | None = None
) -> Checked:
    """Look at a URL or a file. `full` reads every byte; of a file, a promised checksum does so too.

    Raises a ScoringError when a URL cannot be fetched, OSError when a file cannot be read.
    """
    report = on_bytes or (lambda done, total: None)
    if not is_url(place):
        return await _check_file(Path(place), promise, settings, full or promise.checksum is not None, report)
    if full:
        async with (
            open_cache(settings) as cache,
            cache.fetch(
                BlobRef(place),
                kind="model",
                max_bytes=settings.max_model_bytes,
                on_progress=lambda progress: report(progress.bytes_done, progress.bytes_total),
            ) as blob,
        ):
            return await _check_file(blob.path, promise, settings, True, lambda done, total: None)
    downloader = Downloader.from_settings(settings)
    try:
        return await _Check(_Url(downloader, place), promise, settings).run()
    finally:
        await downloader.aclose()


async def _check_file(
    path: Path, promise: Promise, settings: Settings, full: bool, report: OnBytes
) -> Checked:
    checked = await _Check(_File(path), promise, settings).run()
    if full:
        size = checked.size
        commitment = await asyncio.to_thread(commitment_of, path, lambda done: report(done, size))
        checked.checksum, checked.is_whole = commitment.checksum, True
        if promise.checksum is not None and promise.checksum != commitment.checksum:
            checked.findings.append(
                await asyncio.to_thread(_other_checksum, path, promise, commitment.checksum)
            )
    return checked


def _other_checksum(path: Path, promise: Promise, found: str) -> Finding:
    detail = f"the file's checksum is {found}, not the one promised"
    if promise.key is not None and commitment_of_plain(path, promise.key).checksum == promise.checksum:
        detail += ", which is that of the weights before encryption"
        return Finding("checksum-mismatch", detail, "commit the checksum of the encrypted file")
    return Finding(
        "checksum-mismatch", detail, "upload the file that was encrypted last, or commit this checksum"
    )


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

    def __init__(self, source: Source, promise: Promise, settings: Settings) -> None:
        self._source = source
        self._promise = promise
        architecture = load_architecture(ARCHITECTURE_VERSION)
        self._judge: Any = importlib.import_module(f"{architecture.__name__}.weights_header")
        small, full = architecture.ModelConfig.small(), architecture.ModelConfig()
        self._config, self._other_config = (small, full) if settings.small_model else (full, small)
        self._other_flag = "--full-model" if settings.small_model else "--small-model"
        self._refusals = (architecture.WeightsInvalid, architecture.DecryptionFailed)
        self._checked = Checked()

    async def run(self) -> Checked:
        """Judge, and explain if the verdict is no."""
        published, size = await self._source.head(_FIRST_BYTES)
        self._checked.size = size
        self._judge_size(size)
        clear = self._decrypt(published)
        needed = self._header_end(clear)
        if needed is not None and len(published) < needed:
            published, _ = await self._source.head(needed)
            clear = self._decrypt(published)
        self._judge_head(published, clear, size)
        if size is None:
            self._checked.remarks.append(
                "the server does not tell the file's size; --full would see it cut off"
            )
        if self._promise.checksum is not None and isinstance(self._source, _Url):
            self._checked.remarks.append("the checksum was not looked at; --full downloads the file and does")
        return self._checked

    def _decrypt(self, published: bytes) -> bytes:
        key = self._promise.key
        return published if key is None else decrypt_start(published, key)

    def _header_end(self, clear: bytes) -> int | None:
        """Where the header ends, if the bytes can be the start of a safetensors file at all."""
        length = int.from_bytes(clear[:8], "little")
        if len(clear) <= 8 or not 2 <= length <= self._judge.MAX_HEADER_BYTES:
            return None
        return 8 + length

    def _judge_size(self, size: int | None) -> None:
        promised = self._promise.size
        if size is not None and promised is not None and size != promised:
            if size == 0:
                return
            self._checked.add(
                "size-mismatch",
                f"the file has {size:,} bytes, {promised:,} are promised",
                "upload the file again, or commit the size it has",
            )

    def _judge_head(self, published: bytes, clear: bytes, size: int | None) -> None:
        end = self._header_end(clear)
        expected = None if end is None or len(clear) < end else _file_size(clear[8:end], end)
        file_size = size if size is not None else (self._promise.size or expected or len(published))
        encrypted = self._promise.key is not None
        try:
            header = self._judge.read_header(
                lambda offset, count: clear[offset : offset + count],
                file_size,
                self._config,
                encrypted=encrypted,
            )
        except self._refusals as refusal:
            before = len(self._checked.findings)
            self._explain(published, clear, file_size, expected)
            if len(self._checked.findings) == before:
                self._checked.add("weights-invalid", refusal.detail, "save the weights again with Model.save")
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
        if self._promise.key is None:
            remarks.append("not encrypted: whoever has the file can read the weights")

    def _explain(self, published: bytes, clear: bytes, file_size: int, expected: int | None) -> None:
        end = self._header_end(clear)
        if end is None or clear[8:end].lstrip()[:1] != b"{":
            self._explain_no_header(published, file_size)
        elif end > file_size:
            self._checked.add(
                "truncated",
                f"the file is cut off within its header: it has {file_size:,} bytes, the header alone {end:,}",
                "upload it again, and compare the sizes",
            )
        else:
            self._explain_size(file_size, expected)
            self._explain_tensors(clear[8:end], expected or file_size)

    def _explain_no_header(self, published: bytes, file_size: int) -> None:
        add, key, checksum = self._checked.add, self._promise.key, self._promise.checksum
        start = published.lstrip(b"\xef\xbb\xbf \t\r\n").lower() if published[:1] != b"\0" else published
        disguise = next((row for row in _DISGUISES if start.startswith(row[0])), None)
        if file_size < 9:
            add("truncated", f"the file has {file_size} bytes: nothing is in it", "upload it again")
        elif disguise is not None:
            add("not-weights", f"what is stored there is {disguise[1]}", disguise[2])
        elif key is None:
            add(
                "no-header",
                "there is no safetensors header in the clear: the file is encrypted, or no weights file",
                "give its key with --key-file",
            )
        elif self._header_end(published) is not None:
            add(
                "not-encrypted",
                "the file is in the clear, and a key is promised: decrypting it gives noise",
                "upload the file that `soma-eval encrypt` wrote, or check it without a key",
            )
        elif checksum is not None and self._fits(published, checksum):
            add("swapped", "the checksum is the key, and the key the checksum", "swap the two")
        else:
            add(
                "wrong-key",
                "the key does not fit: decrypting gives no safetensors header",
                "give the key that `soma-eval encrypt` printed for this very file",
            )

    def _fits(self, published: bytes, checksum: str) -> bool:
        try:
            return self._header_end(decrypt_start(published, parse_decryption_key(checksum))) is not None
        except InvalidKey:
            return False

    def _explain_size(self, file_size: int, expected: int | None) -> None:
        if expected is None:
            return
        if file_size < expected:
            self._checked.add(
                "truncated",
                f"the file is cut off: it has {file_size:,} bytes of the {expected:,} its header describes",
                "upload it again, and compare the sizes",
            )
        elif file_size > expected:
            self._checked.add(
                "trailing-bytes",
                f"{file_size - expected:,} bytes follow the last tensor: the file has {file_size:,}, "
                f"its header describes {expected:,}",
                "save the weights again with Model.save, and upload that file whole",
            )

    def _explain_tensors(self, text: bytes, expected: int) -> None:
        try:
            header = self._judge.parse_header(text, expected)
        except (self._judge.NoHeader, *self._refusals) as refusal:
            self._checked.add("header-invalid", str(refusal), "save the weights again with Model.save")
            return
        self._checked.num_tensors = len(header.tensors)
        found = list(self._tensor_findings(header))
        if found and not self._judge.findings(header, self._other_config):
            found = [
                Finding(
                    "other-model",
                    "these are weights of the network's other size of model",
                    f"check them with {self._other_flag}; the network itself evaluates the full model",
                )
            ]
        self._checked.findings.extend(found)

    def _tensor_findings(self, header: Any) -> Iterator[Finding]:
        needed = self._judge.expected_shapes(self._config)
        prefix = _common_prefix(header.tensors, needed)
        if prefix:
            yield Finding(
                "prefixed-names",
                f"every tensor's name begins with {self._judge.quoted(prefix)}",
                "save the bare model, without its wrapper",
            )
            return
        for name, shape in needed.items():
            place = header.tensors.get(name)
            if place is None:
                yield Finding("missing-tensor", f"{name} is missing", f"save it with shape {list(shape)}")
            elif place.shape != shape:
                yield _other_shape(name, place.shape, shape)
            elif place.dtype not in self._judge.CONVERTIBLE_DTYPES:
                yield Finding("wrong-dtype", f"{name} has dtype {place.dtype}", "save it as float32 (F32)")


def _other_shape(name: str, found: tuple[int, ...], needed: tuple[int, ...]) -> Finding:
    if found == needed[::-1]:
        return Finding(
            "transposed-tensor",
            f"{name} is transposed: {list(found)} in place of {list(needed)}",
            "save Linear weights as (in, out), as Model.save of soma-models does",
        )
    shown = str(list(found[:8]))[:-1] + (", ...]" if len(found) > 8 else "]")
    return Finding("wrong-shape", f"{name} has shape {shown}", f"save it with shape {list(needed)}")


def _common_prefix(tensors: dict[str, Any], needed: dict[str, Any]) -> str:
    """What stands before every needed name, if it is the same everywhere."""
    first = next(iter(needed))
    prefixes = {name.removesuffix(first) for name in tensors if name.endswith(first)} - {""}
    return next((p for p in sorted(prefixes) if all(p + name in tensors for name in needed)), "")


def _file_size(header: bytes, end: int) -> int | None:
    """The size a file of this header has, as far as it can be read off it."""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return end + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
