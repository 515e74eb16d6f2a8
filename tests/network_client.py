"""The network's own client, `soma-sdk`, connected to a service under test."""

from types import SimpleNamespace
from typing import Any

from soma_sdk import SomaClient

from tests.in_process_service import InProcessService
from tests.live_service import LiveService


async def connect(service: LiveService | InProcessService) -> SomaClient:
    """Connect as a validator does, without the chain that it would also speak to."""
    return await SomaClient("http://127.0.0.1:9000", scoring_url=service.grpc_url)


async def score(client: SomaClient, body: dict[str, Any]) -> Any:
    """Send a /score request through the network's client."""
    models: list[Any] = [SimpleNamespace(**model) for model in body["model_manifests"]]
    return await client.score(
        data_url=body["data_url"],
        models=models,
        target_embedding=body["target_embedding"],
        data_checksum=body["data_checksum"],
        data_size=body["data_size"],
        seed=body["seed"],
    )
