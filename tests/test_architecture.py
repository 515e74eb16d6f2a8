"""The arrows of the architecture, proven by walking every import."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

DOWNLOAD = {
    *("service.download.downloader", "service.download.ranged_download", "service.download.responses"),
    *("service.egress.address_guard", "service.egress.body_stream", "service.egress.asyncio_network"),
    "service.download.connection_failure",
}
"""The downloader and what it dials and reads with."""

ONLY_IN = {
    "fastapi": {"service.http_api.app"},
    "fastapi_offline": {"service.http_api.app"},
    "starlette": {"service.http_api.app", "service.http_api.middleware"},
    "uvicorn": {"service.server", "service.http_api.protocol"},
    "grpc": {"service.grpc_api.servicer"},
    "ray": {"workers.ray_pool"},
    "httpx": {*DOWNLOAD, "service.cli.demo", "service.cli.score.remote"},
    "httpcore": DOWNLOAD,
    "pydantic": {"service.http_api.schemas", "service.config", "service.cli.main"},
    "typer": {"service.cli.main"},
}
"""A library that has one place: the modules that may import it."""

V1_MAY_IMPORT = {"numpy", "torch", "safetensors", "cryptography", "arrgen", "workers.v1"}


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


def modules(package: str) -> dict[str, set[str]]:
    """Dotted name -> imported modules, for every file of a package."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): set(imports_of(path))
        for path in (ROOT / package).rglob("*.py")
    }


def within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_workers_never_import_service() -> None:
    for name, imported in modules("workers").items():
        assert not [module for module in imported if within(module, {"service"})], name


def test_service_never_imports_torch() -> None:
    for name, imported in modules("service").items():
        assert not [module for module in imported if within(module, {"torch", "safetensors", "arrgen"})], name


def test_v1_imports_only_itself_and_its_few_libraries() -> None:
    for name, imported in modules("workers/v1").items():
        foreign = [
            module
            for module in imported
            if not within(module, V1_MAY_IMPORT) and module.partition(".")[0] not in sys.stdlib_module_names
        ]
        assert not foreign, name


def test_only_architectures_knows_a_version_by_name() -> None:
    for package in ("service", "workers"):
        for name, imported in modules(package).items():
            if not within(name, {"workers.v1", "workers.architectures", "workers.demo_candidates"}):
                assert not [module for module in imported if within(module, {"workers.v1"})], name


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_has_its_place(library: str) -> None:
    for name, imported in {**modules("service"), **modules("workers")}.items():
        if name not in ONLY_IN[library]:
            assert not [module for module in imported if within(module, {library})], name


def test_the_core_does_not_know_its_doors() -> None:
    doors = {
        "service.http_api.app",
        "service.http_api.middleware",
        "service.grpc_api.servicer",
        "service.cli.main",
        "service.server",
    }
    core = modules("service")
    for name in ("scorer", "cache", "download", "url_policy", "scheduler", "competition", "errors", "config"):
        assert not [module for module in core[f"service.{name}"] if within(module, doors)], name


def test_no_module_is_named_for_nothing() -> None:
    vague = {"utils", "helpers", "common", "misc", "manager", "base", "handler"}
    for package in ("service", "workers", "tests", "benchmarks"):
        assert not [path for path in (ROOT / package).rglob("*.py") if path.stem in vague]
