"""Results by content: what names one, what is kept of it, and what a store of them must offer.

An evaluation is a pure function of the values in its key, so a result that is kept under the key is the one that would
be computed. Nothing in a key says where the bytes came from: whoever asks must first have shown that.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Protocol

from workers.architectures import load_architecture
from workers.errors import DecryptionFailed, NonFiniteResult, WeightsInvalid
from workers.types import DeviceKind, EvalJob, EvalResult, Precision

Refusal = DecryptionFailed | WeightsInvalid | NonFiniteResult
"""What weights can be found to be worth, other than a number. An evaluation that crashes workers is not among them:
that says something of this machine too, and is believed for some minutes only."""
REFUSALS = (DecryptionFailed, WeightsInvalid, NonFiniteResult)

_KEY_DIGEST_PERSON = b"soma-eval result"
"""Keeps the digest of a decryption key from being that of the same bytes anywhere else. 16 bytes at most."""


@dataclass(frozen=True, slots=True)
class ResultKey:
    """Everything that the bits of a result depend on."""

    architecture_version: str
    model_config: str
    """The shape of the model, as JSON."""
    numerics_version: str
    weights_checksum: str
    """Blake2b-256 of the file as published, Base58."""
    key_digest: str
    """Of the decryption key, which cannot be found from it; empty for weights that are not encrypted."""
    data_checksum: str
    seed: int
    precision: Precision
    device: str
    """The kind of device, as its worker reports it."""
    versions: str
    """Of the packages that make the numbers, as their worker reports them."""

    def digest(self) -> str:
        """One name for all of it, in hex."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


@dataclass(frozen=True, slots=True)
class SharedPassKey(ResultKey):
    """The same of a piece that was computed beside others: its last digits depend on them, so it is another result."""

    computed: str = "in a shared pass"

    @classmethod
    def of(cls, alone: ResultKey) -> "SharedPassKey":
        """That of the same evaluation, computed beside others."""
        return cls(**{field.name: getattr(alone, field.name) for field in fields(ResultKey)})


@dataclass(frozen=True, slots=True)
class KeptResult:
    """What an evaluation has come to, and when."""

    outcome: EvalResult | Refusal
    computed_at: datetime
    """UTC."""


class KeptResults(Protocol):
    """A store of results. None of its methods raises: a store that does not work keeps and finds nothing."""

    async def find(self, keys: Sequence[ResultKey]) -> dict[ResultKey, KeptResult]:
        """Those of the results that are kept and can be read."""

    async def keep(self, found: Mapping[ResultKey, KeptResult]) -> None:
        """Keep results, each in place of any other under its key."""

    async def forget(self, key: ResultKey) -> None:
        """Keep nothing under the key."""


class NoKeptResults:
    """Keeps nothing: every evaluation is computed."""

    async def find(self, keys: Sequence[ResultKey]) -> dict[ResultKey, KeptResult]:
        """None of them."""
        return {}

    async def keep(self, found: Mapping[ResultKey, KeptResult]) -> None:
        """Nothing is kept."""

    async def forget(self, key: ResultKey) -> None:
        """There is nothing."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What all evaluations of one service have in common."""

    architecture_version: str
    config: Mapping[str, Any]
    """The shape of the model, by name."""
    precision: Precision

    @property
    def numerics_version(self) -> str:
        """Of the architecture's package."""
        return load_architecture(self.architecture_version).NUMERICS_VERSION

    def key(self, job: EvalJob, kind: DeviceKind, versions: Mapping[str, str]) -> ResultKey:
        """What names the job's result on devices of that kind."""
        return ResultKey(
            architecture_version=job.architecture_version,
            model_config=json.dumps(self.config, sort_keys=True),
            numerics_version=self.numerics_version,
            weights_checksum=job.weights_checksum,
            key_digest=_key_digest(job.decryption_key),
            data_checksum=job.data_checksum,
            seed=job.seed,
            precision=self.precision,
            device=" ".join(kind),
            versions=json.dumps(versions, sort_keys=True),
        )


def _key_digest(decryption_key: bytes | None) -> str:
    if decryption_key is None:
        return ""
    return hashlib.blake2b(decryption_key, digest_size=32, person=_KEY_DIGEST_PERSON).hexdigest()


def same_bits(one: EvalResult | Refusal, other: EvalResult | Refusal) -> bool:
    """Whether two outcomes are the same to the last bit; of refusals, the same kind."""
    if isinstance(one, EvalResult) and isinstance(other, EvalResult):
        return _bits(one) == _bits(other)
    return type(one) is type(other)


def _bits(result: EvalResult) -> tuple[object, ...]:
    numbers = (
        result.loss.hex(),
        result.cross_entropy.hex(),
        result.sig_reg.hex(),
        result.embedding.tobytes(),
    )
    return (*numbers, result.attends_to_future, result.num_sequences, result.num_batches)
