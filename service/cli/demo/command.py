"""`soma-eval demo`: its flags."""

from typing import Annotated, Any

from typer import Option

from service.cli.setting_flags import setting_flags

_DEVICE = {"device": "cpu"}


@setting_flags(
    *("device", "precision", "data_dir"),
    ignored=("small_model", "architecture"),
    defaults=_DEVICE | {"data_dir": "a temporary folder"},
)
def demo(
    seconds: Annotated[float, Option(min=0.5, help="Seconds to train one candidate for.")] = 6.0,
    *,
    flags: dict[str, Any],
) -> int:
    """Trains, encrypts, serves and scores two candidates of the small model on this machine."""
    from service.cli.demo.run import run_demo

    return run_demo(seconds, _DEVICE | flags | {"small_model": True, "architecture": None})
