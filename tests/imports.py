"""What each file of the project imports."""

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parents[1]


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@cache
def modules(package: str) -> Mapping[str, frozenset[str]]:
    """Dotted name -> imported modules, for every file of a package. A file is read once, for all who ask."""
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): frozenset(imports_of(path))
        for path in (ROOT / package).rglob("*.py")
    }
    assert found, f"{package} has no files"
    return MappingProxyType(found)


def within(module: str, packages: set[str]) -> bool:
    """Whether it is one of the packages, or a module inside one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)
