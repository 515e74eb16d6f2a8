"""The arrows of the architecture, proven by walking every import."""

import re
import sys
from graphlib import TopologicalSorter

import pytest

from tests.imports import ROOT, modules, within

ROOT_FILES = "service"
"""The files beside the folders of `service` that every folder may use: errors, settings, log, checksums."""

ALLOWED_IN_SERVICE: dict[str, set[str]] = {
    ROOT_FILES: set(),
    "service.egress": {ROOT_FILES},
    "service.download": {ROOT_FILES, "service.egress"},
    "service.cache": {ROOT_FILES, "service.download"},
    "service.scoring": {ROOT_FILES, "service.cache", "service.download", "service.egress", "workers"},
    "service.jobs": {ROOT_FILES, "service.scoring", "workers"},
    "service.component_metrics": {ROOT_FILES, "service.jobs", "service.scoring", "service.cache", "workers"},
    "service.lifespan": {
        ROOT_FILES,
        "service.component_metrics",
        "service.jobs",
        "service.scoring",
        "service.cache",
        "service.download",
        "workers",
    },
    "service.http_api": {
        ROOT_FILES,
        "service.lifespan",
        "service.jobs",
        "service.scoring",
        "service.egress",
        "workers",
    },
    "service.grpc_api": {ROOT_FILES, "service.scoring", "workers"},
    "service.server": {
        ROOT_FILES,
        "service.lifespan",
        "service.http_api",
        "service.grpc_api",
        "service.scoring",
        "workers",
    },
    "service.cli": {
        ROOT_FILES,
        "service.server",
        "service.lifespan",
        "service.scoring",
        "service.cache",
        "service.download",
        "workers",
    },
}
"""Each folder (and the files that build, run and measure the service) with those it may import."""

ALLOWED_IN_WORKERS: dict[str, set[str]] = {
    "workers": {"workers.processes", "workers.cluster", "workers.v1"},
    "workers.processes": {"workers"},
    "workers.cluster": {"workers", "workers.processes"},
    "workers.worker": {"workers"},
    "workers.v1": set(),
}
"""`workers` stands for the files beside the folders. Only the pools' factory imports a pool: see the test."""

ONLY_IN = {
    "fastapi": {"service.http_api"},
    "fastapi_offline": {"service.http_api"},
    "starlette": {"service.http_api"},
    "uvicorn": {"service.server", "service.http_api.protocol"},
    "grpc": {"service.grpc_api"},
    "ray": {"workers.cluster"},
    "sqlalchemy": {"service.jobs"},
    "httpx": {"service.egress", "service.download", "service.cli"},
    "httpcore": {"service.egress", "service.download"},
    "jinja2": {"service.http_api.status_page"},
    "markupsafe": {"service.http_api.status_page"},
    "pydantic": {
        "service.http_api",
        "service.config",
        "service.cli.setting_flags",
        "service.cli.service_client",
    },
    "pydantic_settings": {"service.config"},
    "typer": {"service.cli"},
    "boto3": {"service.cli.publish.s3_store"},
    "botocore": {"service.cli.publish.s3_store"},
    "opentelemetry": {"service.otel_tracer"},
}
"""A library that has one place: the folders and modules that may import it."""

V1_MAY_IMPORT = {"numpy", "torch", "safetensors", "cryptography", "arrgen", "workers.v1"}


def unit_of(module: str, units: dict[str, set[str]]) -> str:
    """The folder, or the file named among the units, that a module belongs to; else its package."""
    folder = ".".join(module.split(".")[:2])
    return folder if folder in units else module.split(".")[0]


def imported_units(package: str, units: dict[str, set[str]]) -> dict[str, set[str]]:
    """Unit -> the other units of both packages that it imports."""
    found: dict[str, set[str]] = {unit: set() for unit in units}
    for name, imported in modules(package).items():
        own = unit_of(name, units)
        for module in imported:
            if module.split(".")[0] in ("service", "workers"):
                other = unit_of(module, units) if within(module, {package}) else module.split(".")[0]
                found[own] |= {other} - {own}
    return found


def test_every_folder_is_in_the_picture() -> None:
    for package, units in (("service", ALLOWED_IN_SERVICE), ("workers", ALLOWED_IN_WORKERS)):
        folders = {f"{package}.{path.parent.name}" for path in (ROOT / package).glob("*/__init__.py")}
        assert folders <= set(units)


@pytest.mark.parametrize("unit", ALLOWED_IN_SERVICE)
def test_a_folder_of_the_service_imports_only_what_lies_below_it(unit: str) -> None:
    assert imported_units("service", ALLOWED_IN_SERVICE)[unit] <= ALLOWED_IN_SERVICE[unit]


@pytest.mark.parametrize("unit", ALLOWED_IN_WORKERS)
def test_a_folder_of_the_workers_imports_only_what_it_may(unit: str) -> None:
    assert imported_units("workers", ALLOWED_IN_WORKERS)[unit] <= ALLOWED_IN_WORKERS[unit]


def test_there_is_no_circle_between_folders_of_the_service() -> None:
    TopologicalSorter(imported_units("service", ALLOWED_IN_SERVICE)).prepare()


@pytest.mark.parametrize("package", ["service", "workers", "soma_eval", "benchmarks"])
def test_there_is_no_circle_between_files(package: str) -> None:
    files = modules(package)
    TopologicalSorter({name: imported & set(files) - {name} for name, imported in files.items()}).prepare()


def test_only_the_factory_imports_the_pools() -> None:
    for name, imported in modules("workers").items():
        if name.count(".") == 1 and name != "workers.pool":
            pools = {"workers.processes", "workers.cluster"}
            assert not [module for module in imported if within(module, pools)], name


def test_commands_share_only_what_lies_beside_their_folders() -> None:
    names = [
        "score",
        "watch",
        "screen",
        "encrypt",
        "publish",
        "check",
        "audit",
        "status",
        "cache",
        "demo",
        "serve",
    ]
    commands = {f"service.cli.{name}" for name in names}
    may_import = {
        "service.cli.watch": {"service.cli.score"},  # it evaluates and compares as this does
        "service.cli.encrypt": {"service.cli.check"},  # it refuses what `check` would
        "service.cli.publish": {"service.cli.check", "service.cli.encrypt"},  # and so does this
    }
    for name, imported in modules("service").items():
        own = next((command for command in commands if within(name, {command})), None)
        others = commands - {own} - may_import.get(own or "", set())
        if own or within(name, {"service.cli"}):
            assert not [module for module in imported if within(module, others)], name


def test_service_never_imports_torch() -> None:
    for name, imported in modules("service").items():
        forbidden = {"torch", "safetensors", "arrgen", "ray"}
        assert not [module for module in imported if within(module, forbidden)], name


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
        if not within(name, ONLY_IN[library]):
            assert not [module for module in imported if within(module, {library})], name


@pytest.mark.parametrize("package", ["service", "workers", "soma_eval"])
def test_nothing_that_is_installed_imports_what_stands_above_it(package: str) -> None:
    """But for the commands: they are clients of a service like any other, and read its answers as users do."""
    above = {"tests", "benchmarks", "soma_eval"} - {package}
    for name, imported in modules(package).items():
        allowed = {"soma_eval.responses"} if within(name, {"service.cli"}) else set()
        found = {module for module in imported if within(module, above) and not within(module, allowed)}
        assert not found, name


def test_the_package_for_users_needs_only_v1_of_all_others() -> None:
    for name, imported in modules("soma_eval").items():
        of_ours = {module for module in imported if within(module, {"service", "workers"})}
        assert not [module for module in of_ours if not within(module, {"workers.v1"})], name


def test_no_test_module_is_imported() -> None:
    for name, imported in {**modules("tests"), **modules("benchmarks"), **modules("docker")}.items():
        assert not [module for module in imported if re.search(r"\.test_|conftest", module)], name


def test_no_module_is_named_for_nothing() -> None:
    vague = {"utils", "helpers", "common", "misc", "manager", "base", "handler"}
    for package in ("service", "workers", "tests", "benchmarks"):
        assert not [path for path in (ROOT / package).rglob("*.py") if path.stem in vague]
