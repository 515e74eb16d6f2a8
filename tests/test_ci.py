"""`.ci/install-tools` installs what is missing where it can, and never stops the run."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "install-tools"
PROGRAMS = {"chromium": "chromium", "chromedriver": "chromium-driver", "promtool": "prometheus"}
"""Each with the package that has it."""

pytestmark = pytest.mark.skipif(
    not SCRIPT.exists() or shutil.which("bash") is None, reason="there is no .ci here, or no bash"
)


def install(
    folder: Path, *present: str, user: int = 0, apt_get: str | None = "exit 0"
) -> tuple[str, list[str]]:
    """What it prints, and the command lines of apt-get, on a machine that has only these programs."""
    path = folder / "bin"
    path.mkdir()
    for name in ("bash", "timeout"):
        (path / name).symlink_to(shutil.which(name) or "")
    calls = folder / "calls"
    scripts = {**dict.fromkeys(present, "exit 0"), "id": f"echo {user}"}
    if apt_get is not None:
        scripts["apt-get"] = f'echo "$@" >> "{calls}"; echo noise; echo noise >&2; {apt_get}'
    for name, text in scripts.items():
        (path / name).write_text(f"#!{path}/bash\n{text}\n")
        (path / name).chmod(0o755)
    ran = subprocess.run([path / "bash", SCRIPT], env={"PATH": str(path)}, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_where_all_is_there_nothing_is_done(tmp_path: Path) -> None:
    assert install(tmp_path, *PROGRAMS) == ("", [])


def test_what_is_missing_is_installed_quietly(tmp_path: Path) -> None:
    said, calls = install(tmp_path, "promtool")
    assert said == ""
    assert calls[0].endswith(" update")
    assert calls[1].endswith(" install --yes --no-install-recommends chromium chromium-driver")


@pytest.mark.parametrize(
    ("user", "apt_get"),
    [(1000, "exit 0"), (0, None), (0, "exit 100")],
    ids=["no root", "no apt", "no network"],
)
def test_where_it_cannot_it_says_so_and_goes_on(tmp_path: Path, user: int, apt_get: str | None) -> None:
    said, calls = install(tmp_path, "chromium", user=user, apt_get=apt_get)
    assert said == "not installed: chromium-driver prometheus; the tests that need them are skipped\n"
    assert bool(calls) is (user == 0 and apt_get is not None)
