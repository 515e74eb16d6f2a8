"""What README and docs/ say is what the code does."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from service.cli.main import app
from service.config import Settings
from service.environment import API_KEY_NAMES, OTHER_NAMES
from service.errors import all_codes
from service.http_api.problems import STATUS_OF

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / ".github/CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]
)
ERROR = re.compile(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| ([0-9]{3}) \| [^|]+ \| (yes|no) \|$", re.MULTILINE)
SETTING = re.compile(r"^\| `--([a-z-]+)` \| ([^|]+) \|", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
VARIABLE = re.compile(r"SOMA_EVAL_[A-Z_]+")
NOT_SETTINGS = {"SOMA_EVAL_QUEU_SIZE", "SOMA_EVAL_DOWNLOAD_FLOOR_SECONDS"}
"""A misspelled name that is shown on purpose, and a setting's old name."""

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def test_the_table_of_errors_is_that_of_the_api() -> None:
    documented = {
        code: (int(status), retry == "yes")
        for codes, status, retry in ERROR.findall(page("errors.md"))
        for code in re.findall("`([a-z-]+)`", codes)
    }
    expected = {
        kind.code.format(blob=blob): (int(status), kind.retryable)
        for kind, status in STATUS_OF.items()
        for blob in ("data", "model")
    }
    assert documented == expected
    assert set(documented) == set(all_codes())


def test_the_table_of_settings_is_complete_and_has_their_defaults() -> None:
    documented = {
        name.replace("-", "_").replace("api_key", "api_keys"): default.strip()
        for name, default in SETTING.findall(page("settings.md"))
    }
    assert set(documented) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            number, _, unit = documented[name].partition(" ")
            assert float(number) * {"": 1, "MiB": 1 << 20, "GiB": 1 << 30}[unit] == field.default, name
        elif isinstance(field.default, str | Path):
            assert documented[name] == str(field.default)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in {_anchor(heading) for heading in HEADING.findall(target.read_text())}, link


@every_page
def test_commands_and_variables_exist(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, arguments in _commands(page.read_text()):
        assert name in commands, name
        known = _options_of(name)
        assert set(re.findall(r"(?<!\S)--[a-z-]+", arguments)) <= known | {"--help"}, arguments
    known_variables = {f"SOMA_EVAL_{name.upper()}" for name in Settings.model_fields}
    known_variables |= {*API_KEY_NAMES, *OTHER_NAMES, *NOT_SETTINGS}
    assert set(VARIABLE.findall(page.read_text())) - {"SOMA_EVAL_"} <= known_variables


def test_the_first_page_needs_nothing_of_the_tests() -> None:
    assert not re.search(r"\btests[./]|import tests", (ROOT / "README.md").read_text())


@cache
def _options_of(name: str) -> set[str]:
    """Every option that the command's own help names."""
    ran = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"})
    assert ran.exit_code == 0
    return set(re.findall(r"--[a-z][a-z-]+", ran.stdout))


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Each `soma-eval COMMAND ...` of the blocks of code, continued lines joined."""
    for block in re.findall(r"^ *```\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL):
        for name, arguments in re.findall(r"soma-eval ([a-z]+)([^\n'&]*)", block.replace("\\\n", " ")):
            if arguments.startswith(" ") or not arguments:
                yield name, arguments


def _anchor(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
