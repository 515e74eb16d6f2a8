"""Whether the network accepts a file as weights, as far as its header shows.

The rules are the architecture's own, the ones that workers apply; `diagnosis` explains what they refuse.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from service.cli.diagnosis import Diagnosis, Expected, Finding, header_end
from service.cli.encryption import decrypt_start
from service.config import Settings
from service.scoring.served_architecture import architecture_of
from workers.architectures import CURRENT_VERSION, load_architecture

_FIRST_BYTES = 256 << 10
"""Holds the header of every usual weights file: that of full V1 has 46 KB."""


@dataclass(slots=True)
class Checked:
    """What was found. No finding: as far as it was looked at, the network accepts the file."""

    findings: list[Finding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What is worth knowing and no obstacle."""
    size: int | None = None
    """Bytes as published; None where the server does not say."""
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


class Source(Protocol):
    """Where the first bytes come from."""

    async def head(self, num_bytes: int) -> tuple[bytes, int | None]:
        """The first bytes as published, fewer if there are no more; and the size, if it is known."""


async def check_header(source: Source, expected: Expected, settings: Settings, *, is_upload: bool) -> Checked:
    """What the header shows, and what to do about it; no checksum is computed and no value is read.

    `is_upload` says that the remedy is to upload the file again. Raises whatever the source raises.
    """
    return await _HeaderCheck(source, expected, settings, is_upload=is_upload).run()


def model_config(settings: Settings) -> Any:
    """The shape of the model that the settings ask for."""
    return architecture_of(settings).model


@dataclass(frozen=True, slots=True)
class FileHead:
    """The first bytes of a file on this machine. Raises OSError."""

    path: Path

    async def head(self, num_bytes: int) -> tuple[bytes, int | None]:
        with self.path.open("rb") as file:
            return file.read(num_bytes), self.path.stat().st_size


class _HeaderCheck:
    """The check of one file's header."""

    def __init__(self, source: Source, expected: Expected, settings: Settings, *, is_upload: bool) -> None:
        self._source = source
        self._expected = expected
        self._is_upload = is_upload
        architecture = load_architecture(CURRENT_VERSION)
        self._rules = architecture.weights_header
        small, full = architecture.ModelConfig.small(), architecture.ModelConfig()
        self._config = model_config(settings)
        self._architecture = settings.architecture
        self._small_model = settings.small_model
        self._refusals = (architecture.WeightsInvalid, architecture.DecryptionFailed)
        self._diagnosis = Diagnosis(
            expected,
            self._rules,
            self._refusals,
            self._config,
            {"full": full, "small": small},
            chosen_by="--architecture"
            if settings.architecture
            else "--small-model"
            if settings.small_model
            else "",
            is_upload=is_upload,
        )
        self._checked = Checked()

    async def run(self) -> Checked:
        """Apply the rules, and explain a refusal."""
        published, size = await self._source.head(_FIRST_BYTES)
        self._checked.size = size
        self._check_size(size)
        clear = self._decrypt(published)
        needed = header_end(self._rules, clear)
        if needed is not None and len(published) < needed:
            published, _ = await self._source.head(needed)
            clear = self._decrypt(published)
        self._apply_rules(published, clear, size)
        if size is None:
            self._checked.remarks.append(
                "the server does not say how large the file is; --full shows whether it is cut off"
            )
        return self._checked

    def _decrypt(self, published: bytes) -> bytes:
        key = self._expected.key
        return published if key is None else decrypt_start(published, key)

    def _check_size(self, size: int | None) -> None:
        expected = self._expected.size
        if size and expected is not None and size != expected:
            detail = f"the file has {size:,} bytes, {expected:,} were expected"
            remedy = (
                "upload the file again, and compare the sizes"
                if self._is_upload
                else "take the file that this size was printed for"
            )
            self._checked.findings.append(Finding("size-mismatch", detail, remedy))

    def _apply_rules(self, published: bytes, clear: bytes, size: int | None) -> None:
        end = header_end(self._rules, clear)
        declared = None if end is None or len(clear) < end else self._rules.declared_size(clear[8:end])
        file_size = size if size is not None else (self._expected.size or declared or len(published))
        encrypted = self._expected.key is not None
        try:
            header = self._rules.read_header(
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
        needed = self._rules.expected_shapes(self._config)
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
            remarks.append(
                "checked as the small model, for trying things: the network evaluates the full one"
            )
        if self._architecture is not None:
            remarks.append(f"checked by the architecture of {self._architecture}, not the network's own")
        if self._expected.key is None:
            remarks.append("not encrypted: whoever has the file can read the weights")
