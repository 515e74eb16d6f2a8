"""Print the size and shape of the code: files, lines, the longest class and function, imports between folders.

    python -m benchmarks.structure [ROOT]

ROOT is another checkout to measure, for a comparison of two versions.
"""

import argparse
import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("service", "workers", "soma_eval")
FOLDERS_OF_WORKERS = 2
"""Depth at which a module's folder is named: `service.cache`, `workers.v1`."""


@dataclass(frozen=True, slots=True)
class Module:
    """One source file."""

    name: str
    """Dotted."""
    tree: ast.Module
    num_lines: int
    num_code_lines: int
    """Lines that hold more than a comment, a docstring or nothing."""

    @property
    def folder(self) -> str:
        """The package's folder, `service` or `service.cache`; a module beside the folders stands in the package."""
        return ".".join(self.name.split(".")[:-1][:FOLDERS_OF_WORKERS])


def read_modules(root: Path) -> list[Module]:
    """Every module of the packages below `root`."""
    modules = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            source = path.read_text()
            tree = ast.parse(source)
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            name = name.removesuffix(".__init__") + (".__init__" if name.endswith(".__init__") else "")
            modules.append(Module(name, tree, source.count("\n"), len(_code_lines(source, tree))))
    return modules


def imports_between_folders(modules: list[Module]) -> set[tuple[str, str]]:
    """Pairs (importing folder, imported folder), without a folder's own modules."""
    folders = {module.folder for module in modules}
    pairs = set()
    for module in modules:
        for imported in _imported_names(module):
            parts = imported.split(".")
            if parts[0] not in PACKAGES:
                continue
            candidate = ".".join(parts[:FOLDERS_OF_WORKERS])
            target = candidate if candidate in folders else parts[0]
            if target != module.folder:
                pairs.add((module.folder, target))
    return pairs


def print_structure(root: Path) -> None:
    """Print the table for one checkout."""
    modules = read_modules(root)
    for package in PACKAGES:
        own = [module for module in modules if module.name.split(".")[0] == package]
        top = [
            module for module in own if module.name.count(".") == 1 and not module.name.endswith("__init__")
        ]
        print(
            f"{package + '/':10}{len(own):5} files {sum(m.num_lines for m in own):7,} lines "
            f"{sum(m.num_code_lines for m in own):7,} without comments {len(top):4} modules at the top"
        )
    for kind, label in ((ast.ClassDef, "class"), (ast.FunctionDef | ast.AsyncFunctionDef, "function")):
        length, name = max(
            (node.end_lineno - node.lineno + 1, f"{module.name}:{node.name}")
            for module in modules
            for node in ast.walk(module.tree)
            if isinstance(node, kind) and node.end_lineno is not None
        )
        print(f"longest {label:9}{length:4} lines  {name}")
    longest = max(modules, key=lambda module: module.num_lines)
    print(f"longest file     {longest.num_lines:4} lines  {longest.name}")
    pairs = imports_between_folders(modules)
    print(f"imports between folders: {len(pairs)}")
    for folder in sorted({first for first, _ in pairs}):
        print(f"  {folder:18} -> {', '.join(sorted(second for first, second in pairs if first == folder))}")


def _imported_names(module: Module) -> Iterator[str]:
    package = module.name.split(".")[:-1]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*origin, alias.name]) for alias in node.names)


def _code_lines(source: str, tree: ast.Module) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        ):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):  # a text that stands alone is a docstring, of a name above it too
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def main() -> None:
    """Measure this checkout, or another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    print_structure(parser.parse_args().root)


if __name__ == "__main__":
    main()
