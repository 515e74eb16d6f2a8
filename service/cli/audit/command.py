"""`soma-eval audit`: its flags."""

from typing import Annotated, Any

from typer import Argument, Option

from service.cli.setting_flags import setting_flags, settings_from
from service.cli.shared_flags import ApiKeyFlag, JsonFlag, UrlFlag, check_url_flag


@setting_flags(
    "device", "small_model", "architecture", "precision", "data_dir", "allow_http", "allow_private_addresses"
)
def audit(
    claim: Annotated[
        str,
        Argument(metavar="CLAIM.json", help="A claim, a list of them, or one a line; - for standard input."),
    ],
    sample: Annotated[
        int | None,
        Option(min=1, help="Of many claims, audit so many, drawn so that nobody can foresee which."),
    ] = None,
    json: JsonFlag = False,
    url: UrlFlag = None,
    api_key: ApiKeyFlag = None,
    *,
    flags: dict[str, Any],
) -> int:
    """A claim is a request of the network's scoring service with what somebody says is the answer:
    {"data_url", "data_checksum", "data_size", "model_manifests", "target_embedding", "seed",
    "claimed": {"winner", "loss_score", "distance", "embedding"}}; the embedding may be left out.
    Each number is compared as validators do: within 1 % or 0.01.
    Exit code: 0 every claim agrees, 1 one does not, 2 usage, 3 it could not be told.
    """
    check_url_flag(url, flags)
    settings = settings_from(flags)
    from service.cli.audit.run import run_audit

    return run_audit(claim, sample, json=json, url=url, api_key=api_key, settings=settings)
