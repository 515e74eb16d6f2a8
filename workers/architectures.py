"""From the network's architecture version to the package that evaluates it, imported when it is asked for."""

import importlib
from types import ModuleType

_PACKAGES = {"1": "workers.v1"}

CURRENT_VERSION = "1"
"""The network's `model_architecture_version` today."""

ARCHITECTURE_VERSIONS: tuple[str, ...] = tuple(_PACKAGES)
"""The versions there are packages for."""


class UnknownArchitecture(KeyError):
    """There is no package for this architecture version."""

    def __init__(self, version: str) -> None:
        super().__init__(version)
        self.version = version

    def __str__(self) -> str:
        known = ", ".join(ARCHITECTURE_VERSIONS)
        return f"architecture version {self.version!r:.40} is unknown; known: {known}"


def load_architecture(version: str) -> ModuleType:
    """The package of an architecture version. Importing it takes no torch. Raises UnknownArchitecture."""
    if version not in _PACKAGES:
        raise UnknownArchitecture(version)
    return importlib.import_module(_PACKAGES[version])
