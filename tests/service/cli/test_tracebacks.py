"""With --debug an error is shown by its place and its type, and by nothing that was held there."""

from typing import NoReturn

import pytest

from service.cli.tracebacks import traceback_of
from tests.service.cli.command import InProcess

SECRET = "-".join(["secret", "canary"])  # its source line is not what is looked for


def fail(key: str) -> NoReturn:
    try:
        raise KeyError(key)
    except KeyError as error:
        raise ExceptionGroup(key, [ValueError(key)]) from error


def test_places_and_types_of_all_that_led_to_an_error() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        fail(SECRET)
    text = traceback_of(caught.value)
    for name in ("KeyError", "ValueError", "ExceptionGroup", __file__):
        assert name in text
    assert SECRET not in text


@pytest.mark.parametrize("flags", [[], ["--debug"]], ids=["without", "with"])
def test_a_bug_shows_where_it_arose_if_that_is_asked_for(
    flags: list[str], in_process: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.check.command.settings_from", lambda _: fail(SECRET))
    ran = in_process.run(*flags, "check", "nowhere")
    assert ran.code == 3
    assert "a bug of soma-eval: ExceptionGroup" in ran.err
    assert (__file__ in ran.err) is bool(flags)
    assert SECRET not in ran.err


def test_a_foreseen_error_shows_where_it_arose_too(in_process: InProcess) -> None:
    ran = in_process.run("--debug", "check", "nowhere")
    assert ran.err.startswith("soma-eval: nowhere: there is no such file")
    assert "check/run.py" in ran.err
