"""The command line: typer's declarations and nothing else, so that a command imports only what it needs."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from service.cli.exit_codes import ExitCode
from service.cli.printable import printable
from service.cli.standard_streams import prepare_standard_streams
from service.cli.termination import sigterm_interrupts
from service.cli.tracebacks import tell_traceback
from workers.own_process import keep_memory_private

if TYPE_CHECKING:
    from service.config import Settings

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


class _Flags:
    """What is asked for before the command's name."""

    debug = False


_flags = _Flags()

DeviceFlag = Annotated[
    str | None,
    typer.Option(
        "--device", help="auto, cpu, cuda, cuda:N, or a comma list of them: one worker process each."
    ),
]
SmallModelFlag = Annotated[
    bool | None, typer.Option("--small-model/--full-model", help="Use the network's small architecture.")
]
PrecisionFlag = Annotated[
    str | None,
    typer.Option("--precision", help="float32; on a GPU also tf32, bf16 or float32-split."),
]
DataDirFlag = Annotated[Path | None, typer.Option("--data-dir", help="Folder of the download cache.")]
AllowHttpFlag = Annotated[
    bool | None, typer.Option("--allow-http/--https-only", help="Fetch plain http URLs too.")
]
AllowPrivateFlag = Annotated[
    bool | None,
    typer.Option(
        "--allow-private-addresses/--public-addresses-only", help="Fetch from private addresses too."
    ),
]
KeyFileFlag = Annotated[
    Path | None, typer.Option("--key-file", help="The key in a file: keeps it out of the shell's history.")
]
UnusedDeviceFlag = Annotated[str | None, typer.Option("--device", hidden=True)]
UnusedPrecisionFlag = Annotated[str | None, typer.Option("--precision", hidden=True)]
UnusedDataDirFlag = Annotated[Path | None, typer.Option("--data-dir", hidden=True)]
"""Flags that all commands share, where they change nothing."""
NonFiniteFlag = Annotated[
    bool,
    typer.Option(
        "--allow-non-finite",
        help="Accept weights that hold NaN or infinity: their loss is hardly ever finite.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def main() -> None:
    """The console command: whatever goes wrong is said in one line on stderr."""
    prepare_standard_streams()
    keep_memory_private()
    prepare_standard_streams()
    with sigterm_interrupts() as was_terminated:
        code = _run()
    if code == ExitCode.INTERRUPTED and was_terminated():
        code = ExitCode.TERMINATED
    if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
        _complain(f"{ExitCode(code).name.lower()}; nothing is left running.")
    sys.exit(code)


def _run() -> int:
    try:
        code: int = app(prog_name="soma-eval", standalone_mode=False)
    except _UsageError as error:
        if len(sys.argv) > 1:
            _complain(f"{_message(error)} See `{_help_command(error)}`.")
        else:
            typer.echo(_message(error))
        code = ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        code = ExitCode.MACHINE
    except Exception as error:
        # Not what it says: that may quote a key or a URL.
        _complain(
            f"a bug of soma-eval: {type(error).__name__}. Please report what `soma-eval --debug` prints."
        )
        _debug(error)
        code = ExitCode.MACHINE
    return code


def fail(message: str, code: ExitCode) -> NoReturn:
    """Say what is wrong in one line on stderr, and end."""
    _complain(message)
    _debug(sys.exc_info()[1])
    raise typer.Exit(code)


def _debug(error: BaseException | None) -> None:
    """With --debug, where the error arose."""
    if error is not None and _flags.debug:
        typer.echo(tell_traceback(error), err=True)


def _complain(message: str) -> None:
    typer.echo(f"soma-eval: {printable(' '.join(message.split()))}", err=True)


def _message(error: BaseException) -> str:
    text: str = getattr(error, "format_message", lambda: str(error))()
    return text if text.endswith((".", "?", ")")) else f"{text}."


def _help_command(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'soma-eval'} --help"


@contextmanager
def _said_in_one_line(beginning: str = "") -> Iterator[None]:
    """Ends the command with the right code and one line for every error that was foreseen."""
    from service.cache.folder import ForeignFolder
    from service.cli.question import BadUsage
    from service.cli.remedies import remedy
    from service.errors import InvalidRequest, InvalidUrl, ScoringError, ServiceTrouble
    from workers.errors import PrecisionNeedsGpu, WorkerError

    try:
        yield
    except (BadUsage, ForeignFolder) as error:
        fail(str(error), ExitCode.USAGE)
    except ScoringError as error:
        usage = isinstance(error, InvalidUrl | InvalidRequest)
        trouble = error.retryable or isinstance(error, ServiceTrouble)
        code = ExitCode.USAGE if usage else ExitCode.MACHINE if trouble else ExitCode.AT_FAULT
        fail(f"{beginning}{error.detail}. {remedy(error)}", code)
    except PrecisionNeedsGpu as error:
        fail(f"{beginning}{error.detail}.", ExitCode.MACHINE)
    except WorkerError as error:
        fail(f"{beginning}{error.detail}. --device cpu works everywhere.", ExitCode.MACHINE)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        fail(f"{beginning}{name}{error.strerror or error}.", ExitCode.MACHINE)


def settings_from(flags: dict[str, Any]) -> "Settings":
    """The settings: flags that were given, over the environment, over `.env`. Ends with a clear line if they clash."""
    from service.config import Settings
    from service.environment import BadEnvironment, check_environment

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        warnings = check_environment(Settings.model_fields)
    except BadEnvironment as error:
        fail(str(error), ExitCode.USAGE)
    for warning in warnings:
        _complain(f"{warning}.")
    with _clash_is_usage():
        return Settings(**given)


@contextmanager
def _clash_is_usage(*, has_variables: bool = True) -> Iterator[None]:
    """Ends with a clear line where settings make no sense; it names the variable too, if they have any."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            fail(reason, ExitCode.USAGE)
        name = str(first["loc"][0])
        if not name.isupper():  # it is the setting's own, not that of its variable
            flag = "--api-key" if name == "api_keys" else f"--{name.replace('_', '-')}"
            name = f"{flag} (SOMA_EVAL_{name.upper()})" if has_variables else flag
        fail(f"{name}: {reason}", ExitCode.USAGE)


def _print_version(wanted: bool) -> None:
    if wanted:
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
    _flags.debug = debug


@app.command()
def score(
    data: Annotated[
        str, typer.Option(help="A held-out file, a folder of them, a FIFO, or - for standard input.")
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="WEIGHTS...", help="Candidates: files or URLs.", show_default=False),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            help="The same as an option, repeatable; also a glob in quotes. They come after WEIGHTS."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the SIGReg noise, 0 to 2^64 - 1.")] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=1 << 16,
            help="Repeat with this many seeds, counting from --seed: does the ranking hold?",
        ),
    ] = 1,
    target: Annotated[
        Path | None, typer.Option(help="A target embedding: a JSON list of numbers, or .npy.")
    ] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="SOMA_EVAL_KEY",
            help="In Base58: one for all weights, or one for each in order, none for those in the clear. "
            "It lands in the shell's history: prefer --key-file.",
        ),
    ] = None,
    key_file: Annotated[
        list[Path] | None, typer.Option(help="The same, from files, as `encrypt` writes them.")
    ] = None,
    json: JsonFlag = False,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML page that shows where the candidates differ.")
    ] = None,
    embedding_out: Annotated[
        Path | None,
        typer.Option(
            help="Write the embedding, with the checksum of its weights: for one file, one seed. `encrypt` takes it."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="URL of a running service that does the work; local files are served to it from here."
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="SOMA_EVAL_API_KEY", help="API key of that service, if it asks for one."),
    ] = None,
    device: DeviceFlag = None,
    small_model: SmallModelFlag = None,
    precision: PrecisionFlag = None,
    data_dir: DataDirFlag = None,
    allow_http: AllowHttpFlag = None,
    allow_private_addresses: AllowPrivateFlag = None,
) -> None:
    """Compare candidate weights on held-out data, as the network would.

    One candidate that fails costs the others nothing. Several files or seeds: every number is the mean over them.
    Exit code: 0 good, 1 no weights have a loss, 2 usage, 3 a candidate could not be evaluated (machine or network).

    \b
    Two checkpoints on one file:
      soma-eval score a.safetensors b.safetensors --data held-out.txt
    All checkpoints, every file of a folder, five seeds, and a page to look at:
      soma-eval score checkpoints/*.safetensors --data held-out/ \\
        --seeds 5 --report score.html
    The embedding to commit with exactly this file:
      soma-eval score best.safetensors --data held-out.txt \\
        --embedding-out best.embedding.json
    The encrypted file, as it will be published, for a script:
      soma-eval score best.enc --key-file best.key --data held-out.txt --json
    """
    flags = dict(locals())
    flags["weights"] = [*(flags.pop("files") or []), *(weights or [])]
    if not flags["weights"]:
        fail("no weights are given: name them, as in `soma-eval score FILE --data FILE`.", ExitCode.USAGE)
    ours = ("device", "small_model", "precision", "data_dir", "allow_http", "allow_private_addresses")
    given = {name: flags.pop(name) for name in ours}
    if url is not None and any(value is not None for value in given.values()):
        fail(
            "--url leaves device, model and data folder to the service: leave out their flags", ExitCode.USAGE
        )
    settings = settings_from(given)
    with _said_in_one_line():
        from service.cli.score.command import run_score

        code = run_score(settings=settings, **flags)
    raise typer.Exit(code)


@app.command()
def encrypt(
    weights: Annotated[Path, typer.Argument(help="A safetensors file.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write; an existing one is never overwritten.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            help="Use this key, Base58, in place of a new one. It lands in the shell's history, "
            "and a key is for one file only."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="Write the new key here, for you alone to read, and do not print it."),
    ] = None,
    embedding: Annotated[
        Path | None,
        typer.Option(
            help="The file of `score --embedding-out` for these very weights: checked, and put into the commit."
        ),
    ] = None,
    allow_non_finite: NonFiniteFlag = False,
    json: JsonFlag = False,
    small_model: SmallModelFlag = None,
    device: UnusedDeviceFlag = None,
    precision: UnusedPrecisionFlag = None,
    data_dir: UnusedDataDirFlag = None,
) -> None:
    """Encrypt weights; print what a commit needs.

    That is the key, the checksum and the size, and the next steps with soma-sdk.
    Weights that the network would refuse are refused here, before anything is written.

    \b
    First the embedding of exactly this file, then the file; the key is for you alone, and is not printed:
      soma-eval score best.safetensors --data held-out.txt \\
        --embedding-out best.embedding.json
      soma-eval encrypt best.safetensors -o best.enc --key-file best.key \\
        --embedding best.embedding.json
    """
    settings = settings_from(
        {"small_model": small_model, "device": device, "precision": precision, "data_dir": data_dir}
    )
    with _said_in_one_line():
        from service.cli.encrypt import run_encrypt

        code = run_encrypt(
            weights,
            output,
            key,
            key_file,
            embedding,
            allow_non_finite=allow_non_finite,
            json=json,
            settings=settings,
        )
    raise typer.Exit(code)


@app.command()
def check(
    place: Annotated[str, typer.Argument(metavar="URL|FILE", help="What was uploaded, or will be.")],
    key: Annotated[
        str | None,
        typer.Option(
            envvar="SOMA_EVAL_KEY", help="In Base58. It lands in the shell's history: prefer --key-file."
        ),
    ] = None,
    key_file: KeyFileFlag = None,
    checksum: Annotated[str | None, typer.Option(help="Checksum to expect, as `encrypt` printed it.")] = None,
    size: Annotated[
        int | None, typer.Option(min=0, help="Size to expect in bytes, as `encrypt` printed it.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read every byte: verify the checksum and find NaN and infinity.")
    ] = False,
    allow_non_finite: NonFiniteFlag = False,
    json: JsonFlag = False,
    small_model: SmallModelFlag = None,
    data_dir: DataDirFlag = None,
    allow_http: AllowHttpFlag = None,
    allow_private_addresses: AllowPrivateFlag = None,
    device: UnusedDeviceFlag = None,
    precision: UnusedPrecisionFlag = None,
) -> None:
    """See whether the network will accept an upload.

    Its header alone is downloaded, which shows whether the upload is whole and has the right tensors and key.
    Before you commit, add --full: only that verifies the checksum and looks at the values.

    \b
      soma-eval check https://host/best.enc --key-file best.key \\
        --checksum 9VzTjpe... --size 4838783240
    """
    settings = settings_from(
        {
            "small_model": small_model,
            "data_dir": data_dir,
            "allow_http": allow_http,
            "allow_private_addresses": allow_private_addresses,
            "device": device,
            "precision": precision,
        }
    )
    with _said_in_one_line():
        from service.cli.check.command import run_check

        code = run_check(
            place,
            key,
            key_file,
            checksum,
            size,
            full=full,
            allow_non_finite=allow_non_finite,
            json=json,
            settings=settings,
        )
    raise typer.Exit(code)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one (default 8000).")] = None,
    grpc_port: Annotated[
        str | None,
        typer.Option(
            help="Port of the network's scoring.Scoring; off for none, 0 for a free one (default 9124)."
        ),
    ] = None,
    grpc_host: Annotated[
        str | None,
        typer.Option(
            help="Address that gRPC listens on, which asks for no API key "
            "(default 127.0.0.1 when API keys are set, else that of --host)."
        ),
    ] = None,
    device: DeviceFlag = None,
    small_model: SmallModelFlag = None,
    precision: PrecisionFlag = None,
    device_memory_bytes: Annotated[
        int | None,
        typer.Option(
            help="Bytes for resident weights on each device (default: all but what an evaluation needs)."
        ),
    ] = None,
    data_dir: DataDirFlag = None,
    cache_max_bytes: Annotated[
        int | None,
        typer.Option(
            help="Size limit of the download cache; least recently used files go first (default 100 GiB)."
        ),
    ] = None,
    queue_size: Annotated[
        int | None,
        typer.Option(help="Requests that may run or wait at once; one more gets 429 (default 64)."),
    ] = None,
    max_weights_at_once: Annotated[
        int | None, typer.Option(help="Weights files that are downloaded at once (default 16).")
    ] = None,
    request_timeout_seconds: Annotated[
        float | None, typer.Option(help="Time limit of one request in seconds (default 3600).")
    ] = None,
    drain_timeout_seconds: Annotated[
        float | None, typer.Option(help="Seconds that running work may go on after SIGTERM (default 60).")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="API key that HTTP clients must send (repeatable). SOMA_EVAL_API_KEYS is safer."),
    ] = None,
    max_data_bytes: Annotated[
        int | None, typer.Option(help="Largest data of a request in bytes (default 1 MiB).")
    ] = None,
    max_model_bytes: Annotated[
        int | None, typer.Option(help="Largest weights file in bytes (default 16 GiB).")
    ] = None,
    max_models: Annotated[
        int | None, typer.Option(help="Most models of one competition (default 64).")
    ] = None,
    allow_http: AllowHttpFlag = None,
    allow_private_addresses: AllowPrivateFlag = None,
    download_base_timeout_seconds: Annotated[
        float | None,
        typer.Option(
            help="Seconds every download may take, on top of size / --min-download-rate (default 30)."
        ),
    ] = None,
    min_download_rate: Annotated[
        float | None,
        typer.Option(help="Bytes per second below which a download is given up (default 1 MiB/s)."),
    ] = None,
    max_download_attempts: Annotated[int | None, typer.Option(help="Tries per file (default 5).")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve HTTP and gRPC, with one worker process per device.

    \b
    On this machine, with URLs of a closed network:
      soma-eval serve --allow-http --allow-private-addresses
    """
    flags = dict(locals())
    from pydantic import SecretStr

    keys = flags.pop("api_key")
    flags["api_keys"] = tuple(SecretStr(key) for key in keys) if keys else None
    _serve(settings_from(flags))


def _serve(settings: "Settings") -> None:
    import asyncio

    from service.log import configure_log
    from service.server import Addresses, serve

    def print_addresses(addresses: Addresses) -> None:
        typer.echo(f"HTTP  {addresses.http}  (docs: {addresses.http}/docs)")
        if addresses.grpc is not None:
            typer.echo(f"gRPC  {addresses.grpc}")
        sys.stdout.flush()

    configure_log(settings.log_format, settings.log_level)
    with _said_in_one_line("cannot serve: "):
        raise typer.Exit(asyncio.run(serve(settings, print_addresses)))


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=0.5, help="Seconds to train one candidate for.")] = 6.0,
    device: DeviceFlag = "cpu",
    precision: PrecisionFlag = "float32",
    data_dir: DataDirFlag = None,
    small_model: Annotated[bool | None, typer.Option("--small-model", hidden=True)] = None,
) -> None:
    """See the main job end to end, with nothing prepared. It uses the small model."""
    import asyncio

    from service.cli.demo import DemoFailed, run_demo
    from service.log import configure_log

    configure_log("console", "warning")
    with _clash_is_usage(has_variables=False), _said_in_one_line("the demo failed: "):
        try:
            asyncio.run(run_demo(seconds, device or "cpu", precision or "float32", data_dir))
        except DemoFailed as error:
            fail(str(error), ExitCode.MACHINE)


if __name__ == "__main__":
    main()
