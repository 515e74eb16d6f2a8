"""Why the network would not accept a file as weights, and what to do: from its first bytes and what is known of it.

Only explanations: what is refused is decided by the architecture's own rules, see `header_check`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from service.cli.encryption import decrypt_start
from service.cli.printable import printable
from service.errors import InvalidKey
from service.scoring.competition import parse_decryption_key

_PAGE = ("give the file's own address, not that of the page that shows it", "download the file, not the page")
_ANSWER = ("open the URL in a browser: it says what is wrong", "open it in an editor: it says what is wrong")
_AGAIN = ("upload it again, and compare the sizes", "take the whole file: save it or copy it again")
_SAVE = ("save the weights with Model.save, as safetensors",) * 2
_DISGUISES = (
    (b"<!doctype html", "an HTML page", _PAGE),
    (b"<html", "an HTML page", _PAGE),
    (b"<?xml", "an XML answer, as storage gives for an error", _ANSWER),
    (b"<error", "an XML answer, as storage gives for an error", _ANSWER),
    (
        b"version https://git-lfs",
        "a Git LFS pointer",
        ("upload the file it points to", "get it: git lfs pull"),
    ),
    (b"pk\x03\x04", "a zip archive, as torch.save writes it (.pt)", _SAVE),
    (b"\x80\x02", "a Python pickle", _SAVE),
    (b"\x1f\x8b", "a gzip file", ("upload it uncompressed, and without Content-Encoding", "uncompress it")),
    (b"{", "a JSON text", _ANSWER),
    (bytes(16), "zeros", ("upload the file again: none of its bytes arrived", _AGAIN[1])),
)
"""What is stored as weights by mistake: how it begins, in lower case; what it is; what to do with an upload, and
with a local file."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the file is expected to be; None where nothing is known."""

    key: bytes | None = field(default=None, repr=False)
    checksum: str | None = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why the network would not accept the file."""

    code: str
    detail: str
    remedy: str


def finding_lines(findings: Sequence[Finding], *, name: str = "", limit: int = 12) -> Iterator[str]:
    """A line for each: what is wrong, and what to do. `name` is that of the file; after `limit` lines, a count."""
    subject = f"✗ {printable(name)}: " if name else "✗ "
    for finding in findings[:limit]:
        yield f"{subject}{printable(finding.detail)} → {printable(finding.remedy)}"
    if len(findings) > limit:
        yield f"{subject}and {len(findings) - limit} more: `soma-eval check --json` lists them all."


class Diagnosis:
    """Explains why one file was refused. `rules` is the architecture's module of header rules, `refusals` what it
    raises, `known_models` other shapes by name, `chosen_by` the flag that has chosen the shape, if one has."""

    def __init__(
        self,
        expected: Expected,
        rules: ModuleType,
        refusals: tuple[type[Exception], ...],
        config: object,
        known_models: Mapping[str, object],
        *,
        chosen_by: str,
        is_upload: bool,
    ) -> None:
        self._expected = expected
        self._rules = rules
        self._refusals = refusals
        self._config = config
        self._known_models = known_models
        self._chosen_by = chosen_by
        self._is_upload = is_upload
        self._findings: list[Finding] = []

    def explain(self, published: bytes, clear: bytes, file_size: int) -> list[Finding]:
        """Every reason that is found; none where it is only known that the rules refuse the file."""
        end = header_end(self._rules, clear)
        if end is None or clear[8:end].lstrip()[:1] != b"{":
            self._explain_no_header(published, file_size)
        elif end > file_size:
            self._add(
                "truncated",
                f"the file is cut off within its header: it has {file_size:,} bytes, the header alone {end:,}",
                self._remedy(*_AGAIN),
            )
        else:
            described = self._rules.declared_size(clear[8:end])
            self._explain_size(file_size, described)
            self._explain_tensors(clear[8:end], described or file_size)
        return self._findings

    def _remedy(self, of_an_upload: str, of_a_local_file: str) -> str:
        return of_an_upload if self._is_upload else of_a_local_file

    def _add(self, code: str, detail: str, remedy: str) -> None:
        self._findings.append(Finding(code, detail, remedy))

    def _explain_no_header(self, published: bytes, file_size: int) -> None:
        add, key, checksum = self._add, self._expected.key, self._expected.checksum
        start = published.lstrip(b"\xef\xbb\xbf \t\r\n").lower() if published[:1] != b"\0" else published
        disguise = next((row for row in _DISGUISES if start.startswith(row[0])), None)
        if file_size < 9:
            add("truncated", f"the file has {file_size} bytes: nothing is in it", self._remedy(*_AGAIN))
        elif disguise is not None:
            add("not-weights", f"this is {disguise[1]}, not a weights file", self._remedy(*disguise[2]))
        elif key is None:
            add(
                "no-header",
                "there is no unencrypted safetensors header: the file is encrypted, or not a weights file",
                "give its key with --key-file",
            )
        elif header_end(self._rules, published) is not None:
            add(
                "not-encrypted",
                "the file is not encrypted, and a key is given: decrypting it gives noise",
                self._remedy(
                    "upload the file that `soma-eval encrypt` wrote, or give no key",
                    "give the file that `soma-eval encrypt` wrote, or no key",
                ),
            )
        elif checksum is not None and self._fits(published, checksum):
            add(
                "swapped",
                "the checksum is the key, and the key the checksum",
                "swap the two",
            )
        else:
            add(
                "wrong-key",
                "the key does not fit: decrypting gives no safetensors header",
                "give the key that `soma-eval encrypt` printed for this very file",
            )

    def _fits(self, published: bytes, checksum: str) -> bool:
        try:
            return (
                header_end(self._rules, decrypt_start(published, parse_decryption_key(checksum))) is not None
            )
        except InvalidKey:
            return False

    def _explain_size(self, file_size: int, described: int | None) -> None:
        if described is None:
            return
        if file_size < described:
            self._add(
                "truncated",
                f"the file is cut off: it has {file_size:,} bytes of the {described:,} its header describes",
                self._remedy(*_AGAIN),
            )
        elif file_size > described:
            self._add(
                "trailing-bytes",
                f"{file_size - described:,} bytes follow the last tensor: the file has {file_size:,}, "
                f"its header describes {described:,}",
                self._remedy(
                    "save the weights again with Model.save, and upload that file whole",
                    "save the weights again with Model.save",
                ),
            )

    def _explain_tensors(self, text: bytes, described: int) -> None:
        try:
            header = self._rules.parse_header(text, described)
        except (self._rules.NoHeader, *self._refusals) as refusal:
            self._add("header-invalid", str(refusal), "save the weights again with Model.save")
            return
        found = list(self._tensor_findings(header))
        if found:
            fitting = (
                name for name, config in self._known_models.items() if self._fits_model(header, config)
            )
            if (other := next(fitting, None)) is not None:
                found = [self._other_model(other)]
        self._findings.extend(found)

    def _fits_model(self, header: Any, config: object) -> bool:
        return config != self._config and not self._rules.findings(header, config)

    def _other_model(self, name: str) -> Finding:
        if self._chosen_by:
            detail = f"these are weights of the {name} model, and {self._chosen_by} is set"
            instead = "--small-model" if name == "small" else "--full-model"
            return Finding(
                "other-model", detail, f"leave out {self._chosen_by}, or give {instead} in its place"
            )
        detail = "these are weights of the small model, which the network itself does not evaluate"
        return Finding("other-model", detail, "to try things with them, add --small-model; never commit them")

    def _tensor_findings(self, header: Any) -> Iterator[Finding]:
        needed = self._rules.expected_shapes(self._config)
        prefix = _common_prefix(header.tensors, needed)
        if prefix:
            yield Finding(
                "prefixed-names",
                f"every tensor's name begins with {self._rules.quoted(prefix)}",
                "save the bare model, without its wrapper",
            )
            return
        for name, shape in needed.items():
            tensor = header.tensors.get(name)
            if tensor is None:
                yield Finding("missing-tensor", f"{name} is missing", f"save it with shape {list(shape)}")
            elif tensor.shape != shape:
                yield _other_shape(name, tensor.shape, shape)
            elif tensor.dtype not in self._rules.CONVERTIBLE_DTYPES:
                yield Finding("wrong-dtype", f"{name} has dtype {tensor.dtype}", "save it as float32 (F32)")


def header_end(rules: Any, clear: bytes) -> int | None:
    """Where the header ends, if the bytes can be the start of a safetensors file at all."""
    length = int.from_bytes(clear[:8], "little")
    if len(clear) <= 8 or not 2 <= length <= rules.MAX_HEADER_BYTES:
        return None
    return 8 + length


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
