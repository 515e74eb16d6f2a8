"""The messages of the network's scoring service, in BCS: any bytes give a value or one BcsError.

BCS (Binary Canonical Serialization) writes a struct as its fields in order; a string or a vector as its
length in ULEB128, then its content; u64 and usize as 8 bytes, little-endian; an option as 0, or 1 and the
value; a bool as 0 or 1. It has no floats: upstream writes an f32 as the u32 of its bits. Each value has
exactly one encoding and `decode` takes no other, so what it accepts encodes to the same bytes again (but for
the payload of a signalling NaN, which a Python float does not keep).

Nothing is allocated for a length that the remaining bytes cannot fill: a value takes at most some tens of times
its encoding, and no more models are read than any competition has. No message of a BcsError quotes the input.
"""

import struct
from dataclasses import dataclass, field
from typing import Self

from service.scoring.competition import MAX_MANIFESTS

_MAX_LENGTH = (1 << 31) - 1
_MAX_U32 = (1 << 32) - 1
_MIN_MANIFEST_BYTES = 1 + 1 + 8 + 1


class BcsError(ValueError):
    """The bytes are not a valid message, or the value has no encoding."""


@dataclass(frozen=True, slots=True)
class ManifestInput:
    """One model of a competition, with the network's names."""

    url: str = field(repr=False)
    checksum: str
    size: int
    decryption_key: str | None = field(default=None, repr=False)
    """Base58, not validated here."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """The request of `scoring.Scoring/Score`."""

    data_url: str = field(repr=False)
    data_checksum: str
    data_size: int
    model_manifests: tuple[ManifestInput, ...]
    target_embedding: tuple[float, ...] = field(repr=False)
    seed: int

    def encode(self) -> bytes:
        """The one encoding. Raises BcsError for a value that has none."""
        writer = _Writer()
        writer.string(self.data_url)
        writer.string(self.data_checksum)
        writer.u64(self.data_size)
        writer.length(len(self.model_manifests))
        for manifest in self.model_manifests:
            writer.string(manifest.url)
            writer.string(manifest.checksum)
            writer.u64(manifest.size)
            writer.optional_string(manifest.decryption_key)
        writer.floats(self.target_embedding)
        writer.u64(self.seed)
        return writer.finish()

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Raises BcsError for any other bytes."""
        reader = _Reader(encoded)
        request = cls(
            data_url=reader.string(),
            data_checksum=reader.string(),
            data_size=reader.u64(),
            model_manifests=tuple(
                ManifestInput(reader.string(), reader.string(), reader.u64(), reader.optional_string())
                for _ in range(reader.length(_MIN_MANIFEST_BYTES, most=MAX_MANIFESTS))
            ),
            target_embedding=reader.floats(),
            seed=reader.u64(),
        )
        reader.finish()
        return request


@dataclass(frozen=True, slots=True)
class ScoreResponse:
    """The response of `scoring.Scoring/Score`: the winner's index and numbers."""

    winner: int
    loss_score: tuple[float, ...]
    embedding: tuple[float, ...] = field(repr=False)
    distance: tuple[float, ...]

    def encode(self) -> bytes:
        """The one encoding. Raises BcsError for a value that has none."""
        writer = _Writer()
        writer.u64(self.winner)
        writer.floats(self.loss_score)
        writer.floats(self.embedding)
        writer.floats(self.distance)
        return writer.finish()

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Raises BcsError for any other bytes."""
        reader = _Reader(encoded)
        response = cls(reader.u64(), reader.floats(), reader.floats(), reader.floats())
        reader.finish()
        return response


@dataclass(frozen=True, slots=True)
class HealthRequest:
    """The request of `scoring.Scoring/Health`: no bytes at all."""

    def encode(self) -> bytes:
        """The one encoding."""
        return b""

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Raises BcsError for any other bytes."""
        _Reader(encoded).finish()
        return cls()


@dataclass(frozen=True, slots=True)
class HealthResponse:
    """The response of `scoring.Scoring/Health`."""

    ok: bool

    def encode(self) -> bytes:
        """The one encoding."""
        return b"\x01" if self.ok else b"\x00"

    @classmethod
    def decode(cls, encoded: bytes) -> Self:
        """Raises BcsError for any other bytes."""
        reader = _Reader(encoded)
        response = cls(reader.flag())
        reader.finish()
        return response


class _Reader:
    """A position in the bytes. Every method reads one value, or raises BcsError."""

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def finish(self) -> None:
        if self._position != len(self._data):
            raise BcsError("bytes follow the end of the message")

    def flag(self) -> bool:
        """A bool, and the tag of an option."""
        byte = self._byte()
        if byte > 1:
            raise BcsError(f"a byte that must be 0 or 1 is neither, at byte {self._position - 1}")
        return byte == 1

    def u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def string(self) -> str:
        encoded = self._take(self.length(1))
        try:
            return encoded.decode("utf-8")
        except UnicodeDecodeError:
            raise BcsError(f"a string is not UTF-8, before byte {self._position}") from None

    def optional_string(self) -> str | None:
        return self.string() if self.flag() else None

    def floats(self) -> tuple[float, ...]:
        count = self.length(4)
        return struct.unpack(f"<{count}f", self._take(4 * count))

    def length(self, min_bytes_each: int, most: int = _MAX_LENGTH) -> int:
        """How many elements follow. Raises BcsError when the remaining bytes cannot hold so many."""
        length = self._uleb128()
        if most < length <= _MAX_LENGTH:
            raise BcsError(f"a vector has more than {most} elements, before byte {self._position}")
        if length > _MAX_LENGTH or length * min_bytes_each > len(self._data) - self._position:
            raise BcsError(f"a length promises more than the message holds, before byte {self._position}")
        return length

    def _uleb128(self) -> int:
        """A u32, seven bits a byte, the lowest first, in as few bytes as it needs."""
        value = 0
        for shift in (0, 7, 14, 21, 28):
            byte = self._byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift > 0:
                    raise BcsError(f"a length is longer than it need be, before byte {self._position}")
                if value > _MAX_U32:
                    break
                return value
        raise BcsError(f"a length is more than 32 bits, before byte {self._position}")

    def _byte(self) -> int:
        if self._position >= len(self._data):
            raise BcsError("the message ends too early")
        self._position += 1
        return self._data[self._position - 1]

    def _take(self, count: int) -> bytes:
        end = self._position + count
        if end > len(self._data):
            raise BcsError("the message ends too early")
        taken = self._data[self._position : end]
        self._position = end
        return taken


class _Writer:
    """The bytes so far."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def finish(self) -> bytes:
        return bytes(self._data)

    def u64(self, value: int) -> None:
        try:
            self._data += value.to_bytes(8, "little")
        except OverflowError:
            raise BcsError("a number is not a u64") from None

    def string(self, value: str) -> None:
        try:
            encoded = value.encode("utf-8")
        except UnicodeEncodeError:
            raise BcsError("a string has no UTF-8 encoding") from None
        self.length(len(encoded))
        self._data += encoded

    def optional_string(self, value: str | None) -> None:
        self._data.append(value is not None)
        if value is not None:
            self.string(value)

    def floats(self, values: tuple[float, ...]) -> None:
        self.length(len(values))
        try:
            self._data += struct.pack(f"<{len(values)}f", *values)
        except OverflowError:
            raise BcsError("a number is too large for an f32") from None

    def length(self, value: int) -> None:
        if value > _MAX_LENGTH:
            raise BcsError("a string or vector is longer than BCS allows")
        while value >= 0x80:
            self._data.append(value & 0x7F | 0x80)
            value >>= 7
        self._data.append(value)
