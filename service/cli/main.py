"""`soma-eval`: the list of commands, and what every command does when something goes wrong.

A command's module is imported when the command is run, so that `--help` and completion stay quick.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from service.cli.exit_codes import ExitCode
from service.cli.standard_streams import complain, prepare_standard_streams
from service.cli.termination import sigterm_interrupts
from service.cli.tracebacks import traceback_of
from workers.own_process import keep_memory_private


@dataclass(frozen=True, slots=True)
class _Command:
    """The function of this name in `module` is the command; its docstring continues the summary."""

    name: str
    module: str
    summary: str
    failure: str = ""
    """What the message of an error begins with."""


COMMANDS = (
    _Command(
        "score",
        "service.cli.score.command",
        "Compare candidate weights on held-out data as the network does.",
    ),
    _Command(
        "watch", "service.cli.watch.command", "Score every checkpoint of a folder as training writes it."
    ),
    _Command(
        "screen",
        "service.cli.screen.command",
        "Find, among many pieces of data, those that hit a target.",
    ),
    _Command("encrypt", "service.cli.encrypt.command", "Encrypt weights; print what a commit needs."),
    _Command(
        "publish",
        "service.cli.publish.command",
        "Encrypt weights while uploading; print what a commit needs.",
    ),
    _Command("check", "service.cli.check.command", "See whether the network will accept an upload."),
    _Command("audit", "service.cli.audit.command", "Check what somebody claims a competition's answer is."),
    _Command(
        "serve",
        "service.cli.serve",
        "Serve HTTP and gRPC, with one worker process per device.",
        failure="cannot serve: ",
    ),
    _Command("status", "service.cli.status.command", "See how a running service is."),
    _Command("cache", "service.cli.cache.command", "See and remove downloaded files."),
    _Command("checksum", "service.cli.checksum", "Print the network's checksum and size of a file."),
    _Command(
        "demo",
        "service.cli.demo.command",
        "See the main job end to end, with nothing prepared.",
        failure="the demo failed: ",
    ),
)

app = typer.Typer(
    name="soma-eval",
    help="What a model's weights are worth on the SOMA network: loss and embedding, as its Rust runner computes them."
    "\n\nA trainer's way: `score` the candidates, `encrypt` the best, upload it, `check` the upload, commit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""click's UsageError, of the click that typer was built on: it may have one of its own, which nothing exports."""


class _Invocation:
    """What main() has to know of the command line when an error arrives."""

    debug = False
    failure = ""


_invocation = _Invocation()


class _LazyCommand(TyperCommand):
    """Stands for a command in the list of commands; the command itself is loaded when it is invoked."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        (command,) = (command for command in COMMANDS if command.name == self.name)
        _invocation.failure = command.failure
        return _load(command).make_context(info_name, args, parent, **extra)


def _load(command: _Command) -> Any:
    function = getattr(import_module(command.module), command.name)
    details = inspect.getdoc(function) or ""
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command(command.name, help=f"{command.summary}\n\n{details}")(function)
    return typer.main.get_command(single)


def _add_commands() -> None:
    for command in COMMANDS:
        app.command(command.name, cls=_LazyCommand, help=command.summary)(lambda: None)


_add_commands()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"soma-eval {version('soma-eval')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="SOMA_EVAL_DEBUG", help="After an error, print where it arose."),
    ] = False,
) -> None:
    _invocation.debug = debug


def main() -> None:
    """The console command. Ends the process with an exit code; every error is one line on stderr."""
    prepare_standard_streams()
    keep_memory_private()
    with sigterm_interrupts() as was_terminated:
        code = run(sys.argv[1:])
    if code == ExitCode.INTERRUPTED and was_terminated():
        code = ExitCode.TERMINATED
    if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        complain(f"{ExitCode(code).name.lower()}; nothing is left running.")
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code; every error is one line on stderr."""
    _invocation.debug, _invocation.failure = False, ""
    try:
        code = app(list(arguments), prog_name="soma-eval", standalone_mode=False)
    except _UsageError as error:
        if arguments:
            complain(f"{_click_message(error)} See `{_help_command(error)}`.")
        else:
            typer.echo(_click_message(error))  # the help
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except SystemExit as exit_:  # what click makes of a broken pipe
        return _report(exit_.__context__ or exit_)
    except Exception as error:
        return _report(error)
    return int(code or ExitCode.GOOD)


def _report(error: BaseException) -> ExitCode:
    message, code = _explain(error)
    complain(message)
    if _invocation.debug:
        sys.stderr.write(f"{traceback_of(error)}\n")
    return code


def _explain(error: BaseException) -> tuple[str, ExitCode]:
    """What is wrong and what to do, in one line, and the exit code."""
    from service.cache.folder import ForeignFolder
    from service.cli.remedies import remedy
    from service.cli.usage import BadUsage, CommandFailed
    from service.environment import BadEnvironment
    from service.errors import InvalidRequest, InvalidUrl, ScoringError, ServiceTrouble
    from workers.errors import PrecisionNeedsGpu, WorkerError

    beginning = _invocation.failure
    match error:
        case BadUsage() | BadEnvironment() | ForeignFolder():
            return str(error), ExitCode.USAGE
        case CommandFailed():
            return f"{beginning}{error}.", ExitCode.MACHINE
        case ScoringError():
            usage = isinstance(error, InvalidUrl | InvalidRequest)
            trouble = error.retryable or isinstance(error, ServiceTrouble)
            code = ExitCode.USAGE if usage else ExitCode.MACHINE if trouble else ExitCode.AT_FAULT
            return f"{beginning}{error.detail}. {remedy(error)}", code
        case PrecisionNeedsGpu():
            return f"{beginning}{error.detail}.", ExitCode.MACHINE
        case WorkerError():
            return f"{beginning}{error.detail}. --device cpu works everywhere.", ExitCode.MACHINE
        case OSError():
            name = f"{error.filename}: " if error.filename else ""
            return f"{beginning}{name}{error.strerror or error}.", ExitCode.MACHINE
    # Not what it says: that may quote a key or a URL.
    name = type(error).__name__
    return f"a bug of soma-eval: {name}. Please report what `soma-eval --debug` prints.", ExitCode.MACHINE


def _click_message(error: BaseException) -> str:
    text: str = getattr(error, "format_message", lambda: str(error))()
    return text if text.endswith((".", "?", ")")) else f"{text}."


def _help_command(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'soma-eval'} --help"


if __name__ == "__main__":
    main()
