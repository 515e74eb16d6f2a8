"""`soma-eval serve`: its flags, and running the service."""

import asyncio
from typing import Any

import typer

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.standard_streams import complain
from service.cli.starting import device_names
from service.config import Settings


@setting_flags(*Settings.model_fields)
def serve(flags: dict[str, Any]) -> int:
    """Each flag may also be a variable, in the environment or in a file .env: SOMA_EVAL_QUEUE_SIZE for --queue-size.

    \b
    On this machine, with URLs of a closed network:
      soma-eval serve --allow-http --allow-private-addresses
    """
    settings = settings_from(flags)
    complain(
        f"starting a worker for {device_names(settings.device)}; requests are taken when each has passed its self-test."
    )
    from service.log import configure_log
    from service.server import Addresses
    from service.server import serve as run_server

    def print_addresses(addresses: Addresses) -> None:
        typer.echo(f"HTTP  {addresses.http}  (docs: {addresses.http}/docs)")
        if addresses.grpc is not None:
            typer.echo(f"gRPC  {addresses.grpc}")

    configure_log(settings.log_format, settings.log_level)
    return asyncio.run(run_server(settings, print_addresses))
