"""What a release consists of: `python -m build`, and one place that says its version."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_BUILT = shutil.ignore_patterns(
    ".git", ".venv*", "*_cache", "__pycache__", ".hypothesis", "dist", "golden", "shared"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str], Path]:
    """Names in the sdist and in the wheel that is made from it, and the wheel."""
    pytest.importorskip("build", reason="build is not installed")
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_BUILT, symlinks=True)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    return sources, set(zipfile.ZipFile(wheel).namelist()), wheel


def tracked_files(*folders: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_three_packages_and_nothing_else(built: tuple[set[str], set[str], Path]) -> None:
    _, wheel, _ = built
    information = {name for name in wheel if name.split("/")[0].endswith(".dist-info")}
    assert wheel - information == tracked_files("service", "workers", "soma_eval")
    assert any(name.endswith("licenses/LICENSE") for name in information)


def test_the_sdist_holds_what_the_tests_and_the_images_need(built: tuple[set[str], set[str], Path]) -> None:
    sources, _, _ = built
    assert tracked_files("docker", "docs", "examples", "requirements") <= sources
    assert {"Makefile", "README.md", "CHANGELOG.md", "LICENSE", "openapi.json", "PKG-INFO"} <= sources
    assert {".dockerignore", ".github/CONTRIBUTING.md", ".ci/run", ".pre-commit-config.yaml"} <= sources
    assert not [name for name in sources if "venv" in name or name.startswith(".git/")]


def test_the_wheel_has_the_version_of_pyproject_and_its_extras(
    built: tuple[set[str], set[str], Path],
) -> None:
    _, names, wheel = built
    (path,) = (name for name in names if name.endswith("METADATA"))
    metadata = Parser().parsestr(zipfile.ZipFile(wheel).read(path).decode())
    assert metadata["Version"] == PROJECT["version"]
    assert metadata.get_all("Provides-Extra") == sorted(PROJECT["optional-dependencies"])


def test_the_sbom_is_of_every_extra_that_users_install() -> None:
    text = (ROOT / "Makefile").read_text()
    (extras,) = re.findall(r"^RELEASE_EXTRAS := (\S+)$", text, re.MULTILINE)
    assert set(extras.split(",")) == PROJECT["optional-dependencies"].keys() - {"test", "dev"}
    assert "'.[$(RELEASE_EXTRAS)]'" in text


def test_the_version_stands_in_one_place() -> None:
    text = f'"{PROJECT["version"]}"'
    found = [
        path.relative_to(ROOT)
        for folder in ("service", "workers", "soma_eval", "docker")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".service", "") and text in path.read_text()
    ]
    assert found == []
