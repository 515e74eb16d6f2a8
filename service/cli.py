"""The command line: serve, demo. Exit codes: 0 good, 1 weights or data at fault, 2 usage, 3 machine or network."""

import asyncio
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import SecretStr, ValidationError

from service.config import Settings

EXIT_AT_FAULT = 1
EXIT_USAGE = 2
EXIT_MACHINE = 3

app = typer.Typer(
    name="soma-eval",
    help="What a model's weights are worth on the SOMA network: loss and embedding, as its Rust runner computes them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

DeviceFlag = Annotated[
    str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:N, or a comma list: one worker each.")
]
SmallModelFlag = Annotated[
    bool | None, typer.Option("--small-model/--full-model", help="The network's own small architecture.")
]
PrecisionFlag = Annotated[
    str | None, typer.Option("--precision", help="float32, or on a GPU the faster tf32, bf16.")
]
DataDirFlag = Annotated[Path | None, typer.Option("--data-dir", help="Where blobs are kept, as published.")]


def main() -> None:
    """The console command."""
    app()


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong in one line on stderr, and end."""
    typer.echo(f"soma-eval: {message}", err=True)
    raise typer.Exit(code)


def settings_from(flags: dict[str, Any]) -> Settings:
    """The settings: flags that were given, over the environment, over `.env`. Ends with a clear line if they clash."""
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"][:1])
        reason = first["msg"].removeprefix("Value error, ")
        fail(f"{name.replace('_', '-')}: {reason}" if name else reason, EXIT_USAGE)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"soma-eval {version('soma-eval')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="The address to listen on. Default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP; 0 picks a free one. Default 8000.")] = None,
    grpc_port: Annotated[
        str | None, typer.Option(help="The network's scoring.Scoring; off for none. Default 9124.")
    ] = None,
    device: DeviceFlag = None,
    small_model: SmallModelFlag = None,
    precision: PrecisionFlag = None,
    device_memory_bytes: Annotated[int | None, typer.Option(help="For resident weights, per device.")] = None,
    data_dir: DataDirFlag = None,
    cache_max_bytes: Annotated[int | None, typer.Option(help="Of blobs kept; the oldest use goes.")] = None,
    queue_size: Annotated[int | None, typer.Option(help="Requests that may run or wait. Default 64.")] = None,
    request_timeout_seconds: Annotated[float | None, typer.Option(help="Of one request.")] = None,
    drain_timeout_seconds: Annotated[float | None, typer.Option(help="For running work at SIGTERM.")] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Ask for one of these keys (repeatable). Safer: SOMA_EVAL_API_KEYS."),
    ] = None,
    max_data_bytes: Annotated[int | None, typer.Option(help="Of one request. Default 1 MiB.")] = None,
    max_model_bytes: Annotated[int | None, typer.Option(help="Of one weights file. Default 16 GiB.")] = None,
    max_models: Annotated[int | None, typer.Option(help="Of one competition. Default 64.")] = None,
    allow_http: Annotated[
        bool | None, typer.Option("--allow-http/--https-only", help="Fetch http URLs as well.")
    ] = None,
    allow_private_addresses: Annotated[
        bool | None,
        typer.Option("--allow-private-addresses/--public-addresses-only", help="Fetch from any address."),
    ] = None,
    download_floor_seconds: Annotated[
        float | None, typer.Option(help="A download may take this at least.")
    ] = None,
    min_download_rate: Annotated[
        float | None, typer.Option(help="Bytes per second; slower is given up.")
    ] = None,
    max_download_attempts: Annotated[int | None, typer.Option(help="Tries per file. Default 5.")] = None,
    log_format: Annotated[str | None, typer.Option(help="console or json.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve HTTP and gRPC, with one worker process per device.

    `soma-eval serve --small-model --port 0 --grpc-port off`
    """
    flags = dict(locals())
    keys = flags.pop("api_key")
    flags["api_keys"] = tuple(SecretStr(key) for key in keys) if keys else None
    _serve(settings_from(flags))


def _serve(settings: Settings) -> None:
    from service.errors import ScoringError
    from service.log import configure_log
    from service.server import Addresses, serve
    from workers.errors import WorkerError

    def print_addresses(addresses: Addresses) -> None:
        typer.echo(f"HTTP  {addresses.http}  (docs: {addresses.http}/docs)")
        if addresses.grpc is not None:
            typer.echo(f"gRPC  {addresses.grpc}")
        sys.stdout.flush()

    configure_log(settings.log_format, settings.log_level)
    try:
        asyncio.run(serve(settings, print_addresses))
    except OSError as error:
        fail(f"cannot serve: {error.strerror or error}", EXIT_MACHINE)
    except (ScoringError, WorkerError) as error:
        fail(f"cannot serve: {error.detail}", EXIT_MACHINE)


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=0.5, help="How long one candidate is trained.")] = 6.0,
) -> None:
    """See the main job end to end on this machine, with nothing prepared and no network."""
    from service.demo import DemoFailed, run_demo
    from service.log import configure_log

    configure_log("console", "warning")
    try:
        asyncio.run(run_demo(seconds))
    except DemoFailed as error:
        fail(str(error), EXIT_MACHINE)


if __name__ == "__main__":
    main()
