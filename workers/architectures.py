"""From the network's architecture version to the package that evaluates it, imported when it is asked for."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast

from workers import errors

_PACKAGES = {"1": "workers.v1"}

CURRENT_VERSION = "1"
"""The network's `model_architecture_version` today."""

ARCHITECTURE_VERSIONS: tuple[str, ...] = tuple(_PACKAGES)
"""The versions there are packages for."""


class Architecture(Protocol):
    """What the package of every version offers, and all that is used of one outside it."""

    NUMERICS_VERSION: str
    """Changes whenever any bit of a result, or what is refused, does."""

    ModelConfig: Any
    """The shape of a model: `ModelConfig()` is the network's, `ModelConfig.small()` the one for tests."""
    ModelRunner: Any
    """(config, device, precision, micro_batch_size=) -> loads weights and scores batches on one device; its
    `resident_bytes` are what any weights take there."""
    SelfTest: Any
    """(device, precision, small_model=) -> whose `run(with_large=)` says what a device computes wrongly, or None."""

    EvaluationRefused: Any
    """Base of the four errors below; each has a `detail`."""
    DecryptionFailed: Any
    WeightsInvalid: Any
    EmptyData: Any
    NonFiniteResult: Any

    def changes_numbers(self, variable: str) -> bool:
        """Whether a library would compute otherwise with this variable in the environment: no worker is given it."""

    weights_header: ModuleType
    """Validates weights by their header; needs no torch."""

    find_non_finite: Any
    """(path, decryption_key, on_progress, config) -> the tensors that hold NaN or infinity; needs no torch."""

    def num_sequences(self, data_size: int) -> int:
        """Sequences that so many bytes make."""

    BATCH_BYTES: int
    """Bytes of data that one batch has at most."""

    def num_batches(self, data_size: int) -> int:
        """Batches that so many bytes make: the units in which an evaluation is handed out."""

    def count_targets(self, data_size: int) -> tuple[int, int]:
        """Targets that so many bytes make, and how many of them are not padding."""

    def running_mean(self, scores: Sequence[Any]) -> Any:
        """The result of an evaluation from its batches in order. Raises NonFiniteResult."""


class UnknownArchitecture(KeyError):
    """There is no package for this architecture version."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version

    def __str__(self) -> str:
        known = ", ".join(ARCHITECTURE_VERSIONS)
        return f"architecture version {self.version!r:.40} is unknown; known: {known}"


def load_architecture(version: str) -> Architecture:
    """The package of an architecture version. Importing it takes no torch. Raises UnknownArchitecture."""
    if version not in _PACKAGES:
        raise UnknownArchitecture(version)
    return cast(Architecture, importlib.import_module(_PACKAGES[version]))


@contextmanager
def refusals_translated(architecture: Architecture) -> Iterator[None]:
    """Within the block, what the architecture refuses is raised as an error of `workers.errors`."""
    table: dict[type[Exception], type[errors.EvaluationRefused]] = {
        architecture.DecryptionFailed: errors.DecryptionFailed,
        architecture.WeightsInvalid: errors.WeightsInvalid,
        architecture.EmptyData: errors.EmptyData,
        architecture.NonFiniteResult: errors.NonFiniteResult,
    }
    try:
        yield
    except architecture.EvaluationRefused as error:
        raise table[type(error)](error.detail) from None


if TYPE_CHECKING:
    import workers.v1

    _keeps_the_contract: Architecture = workers.v1
