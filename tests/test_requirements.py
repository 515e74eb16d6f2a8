"""requirements/ holds what pyproject.toml allows: its lowest versions, and exact versions within its bounds."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_TRIED_AT_THE_LOWEST = {"torch"}
"""Older builds bring gigabytes of libraries for CUDA."""


def requirements(*extras: str) -> Iterator[Requirement]:
    """The dependencies of the project and of these extras."""
    for text in [*PROJECT["dependencies"], *(text for extra in extras for text in extra_requirements(extra))]:
        requirement = Requirement(text)
        if requirement.name != PROJECT["name"]:
            yield requirement


def extra_requirements(extra: str) -> list[str]:
    texts: list[str] = PROJECT["optional-dependencies"][extra]
    return texts


def pinned(file: str) -> dict[str, str]:
    """Name -> version, for each line of a file in requirements/."""
    lines = (ROOT / "requirements" / file).read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}


def lower_bound(requirement: Requirement) -> str:
    (bound,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
    return bound


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    expected = {
        canonicalize_name(requirement.name): lower_bound(requirement)
        for requirement in requirements("otel", "publish", "test")
        if requirement.name not in NOT_TRIED_AT_THE_LOWEST
    }
    assert pinned("lowest.txt") == expected


def test_the_lock_has_a_version_of_each_dependency_within_its_bounds() -> None:
    lock = pinned("lock.txt")
    missing = [
        str(requirement)
        for requirement in requirements("otel", "publish", "cluster", "test", "dev")
        if not requirement.specifier.contains(lock.get(canonicalize_name(requirement.name), "0"))
    ]
    assert missing == [], "run `make lock`"
