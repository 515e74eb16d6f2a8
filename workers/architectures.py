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


class ArchitectureConfig(Protocol):
    """The shape of a model, and how data is cut and scored: what a pool evaluates with."""

    @property
    def model(self) -> Any:
        """The ModelConfig."""

    @property
    def name(self) -> str:
        """network, small, or another for each other one."""

    @property
    def is_small(self) -> bool:
        """Whether no product of an evaluation is large."""

    @property
    def batch_bytes(self) -> int:
        """Bytes of data that one batch has at most."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by its name in a file."""

    def to_json(self) -> str:
        """As it travels to the workers."""

    def num_sequences(self, data_size: int) -> int:
        """Sequences that so many bytes make."""

    def num_batches(self, data_size: int) -> int:
        """Batches that so many bytes make: the units in which an evaluation is handed out."""

    def count_targets(self, data_size: int) -> tuple[int, int]:
        """Targets that so many bytes make, and how many of them are not padding."""

    def runner(self, device: str, precision: Any, micro_batch_size: int | None = None, /) -> Any:
        """What loads weights and scores batches on one device. Imports torch."""


class Architecture(Protocol):
    """What the package of every version offers, and all that is used of one outside it."""

    NUMERICS_VERSION: str
    """Changes whenever any bit of a result, or what is refused, does."""

    ModelConfig: Any
    """The shape of a model: `ModelConfig()` is the network's, `ModelConfig.small()` the one for tests."""
    ArchitectureConfig: Any
    """() is the network's, `small()` the one for tests, `read(text)` that of a file: see the protocol."""
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


def config_of(architecture: Architecture, text: str = "", *, small_model: bool = False) -> ArchitectureConfig:
    """That of a file's text; without one, the network's own or the small one. Raises ValueError for a text."""
    kind = architecture.ArchitectureConfig
    config: ArchitectureConfig = kind.read(text) if text else kind.small() if small_model else kind()
    return config


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
    _keeps_the_other: ArchitectureConfig = workers.v1.ArchitectureConfig()
