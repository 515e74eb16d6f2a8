"""With --debug an error is told by its place and its type, and by nothing that was held there."""

import sys
from typing import NoReturn

import pytest

from service.cli import main as cli
from service.cli.tracebacks import tell_traceback

SECRET = "-".join(["secret", "canary"])  # its source line is not what is looked for


def fail(key: str) -> NoReturn:
    try:
        raise KeyError(key)
    except KeyError as error:
        raise ExceptionGroup(key, [ValueError(key)]) from error


def test_places_and_types_of_all_that_led_to_an_error() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        fail(SECRET)
    told = tell_traceback(caught.value)
    for name in ("KeyError", "ValueError", "ExceptionGroup", __file__):
        assert name in told
    assert SECRET not in told


@pytest.mark.parametrize("flags", [[], ["--debug"]], ids=["without", "with"])
def test_a_bug_shows_its_place_where_that_is_asked_for(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "settings_from", lambda _: fail(SECRET))
    monkeypatch.setattr(sys, "argv", ["soma-eval", *flags, "check", "nowhere"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capfd.readouterr().err
    assert ended.value.code == 3
    assert "a bug of soma-eval: ExceptionGroup" in said
    assert (__file__ in said) is bool(flags)
    assert SECRET not in said


def test_a_foreseen_error_shows_its_place_too(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["soma-eval", "--debug", "check", "nowhere"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capfd.readouterr().err
    assert said.startswith("soma-eval: nowhere: there is no such file")
    assert "check_command.py" in said
