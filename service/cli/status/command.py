"""`soma-eval status`: its flags."""

from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import JsonFlag


@setting_flags(ignored=("device", "small_model", "architecture", "precision", "data_dir"))
def status(
    url: Annotated[
        str | None, Argument(help="A running service; by default that of this machine.", show_default=False)
    ] = None,
    watch: Annotated[bool, Option("--watch", help="Look every two seconds, until Ctrl-C.")] = False,
    json: JsonFlag = False,
    api_key: Annotated[
        str | None, Option(envvar="SOMA_EVAL_API_KEY", help="API key of that service, if it asks for one.")
    ] = None,
    *,
    flags: dict[str, Any],
) -> int:
    """Ready or why not, devices, queue, cache and versions. Exit code: 0 ready, 3 not, or nothing answers."""
    settings = settings_from(flags)
    from service.cli.status.run import default_url, run_status

    return run_status(url or default_url(settings), api_key, watch=watch, json=json)
