"""The network's own client, unchanged, against the running service; and both APIs at once."""

import asyncio
import random
from typing import Any

import base58
import httpx
import numpy as np
import pytest
from soma_sdk import SomaClient

from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION as GOLDEN
from tests.golden_requests import absent, competition, manifest, weights_that_give_nan
from tests.live_service import LiveService
from tests.network_client import connect, score
from tests.recipe import golden_competitions, small_weights_bytes

LARGEST_SEED = 2**64 - 1


async def test_health(service: LiveService) -> None:
    assert await (await connect(service)).scoring_health() is True


@pytest.mark.parametrize("name", sorted(golden_competitions()))
async def test_the_real_client_gets_the_golden_numbers(
    name: str, service: LiveService, files: FileServer
) -> None:
    golden = golden_competitions()[name]
    result = await score(await connect(service), competition(files, golden))
    assert result.winner == golden.winner
    assert result.loss_score == [pytest.approx(golden.losses[golden.winner], rel=1e-5)]
    assert result.distance == [pytest.approx(golden.distance, rel=1e-5)]
    assert np.abs(np.array(result.embedding) - golden.embedding).max() <= 2e-5


@pytest.mark.parametrize("seed", [0, LARGEST_SEED])
@pytest.mark.parametrize("encrypted", [True, False], ids=["encrypted", "plain"])
async def test_both_apis_give_the_same(
    seed: int, encrypted: bool, service: LiveService, client: httpx.Client, files: FileServer
) -> None:
    body = {**competition(files, GOLDEN), "seed": seed}
    if not encrypted:
        body["model_manifests"] = [
            manifest(files, f"plain-{i}.safetensors", small_weights_bytes(recipe))
            for i, recipe in enumerate(GOLDEN.models)
        ]
    by_grpc = await score(await connect(service), body)
    by_http = (await asyncio.to_thread(client.post, "/score", json=body)).json()
    assert by_grpc.winner == by_http["winner"]
    for name in ("loss_score", "embedding", "distance"):
        assert getattr(by_grpc, name) == pytest.approx(by_http[name], rel=1e-7)


FRAUD_WORDS = ("not available", "unavailable", "hash mismatch", "Checksum")


async def message_of(client: SomaClient, body: dict[str, Any]) -> str:
    with pytest.raises(RuntimeError) as failure:
        await score(client, body)
    return str(failure.value).partition("message: ")[2]


async def test_only_errors_of_the_data_have_the_words_of_fraud(
    service: LiveService, files: FileServer
) -> None:
    client, body = await connect(service), competition(files, GOLDEN)
    unknown_data = {**body, "data_url": f"{files.base_url}/absent", "data_checksum": "1" * 32}
    assert "data not available" in await message_of(client, unknown_data)
    assert "data hash mismatch" in await message_of(client, {**body, "data_checksum": "1" * 32})
    longer = {**body, "data_url": files.publish("longer.bin", bytes(body["data_size"] + 1))}
    assert "data hash mismatch" in await message_of(client, longer)
    first, *_ = body["model_manifests"]
    promised_wrongly = await message_of(client, {**body, "data_size": body["data_size"] + 1})
    assert "the data does not have the promised size" in promised_wrongly
    for broken in (
        absent(files),
        weights_that_give_nan(files),
        {**first, "checksum": "1" * 32},
        {**first, "size": first["size"] - 1},
        {**first, "decryption_key": None},
        {**first, "decryption_key": base58.b58encode(bytes(32)).decode()},
        {**first, "decryption_key": "no key"},
        {**first, "url": "http://[bad"},
        {**first, "url": "ftp://127.0.0.1/weights"},
    ):
        message = await message_of(client, {**body, "model_manifests": [broken]})
        assert not [word for word in FRAUD_WORDS if word.lower() in message.lower()], message
        assert "http" not in message
        assert files.base_url not in message
    assert (await score(client, body)).winner == GOLDEN.winner


async def test_fifty_competitions_at_once_over_both_apis(service: LiveService, files: FileServer) -> None:
    generator = random.Random(5)
    base = competition(files, GOLDEN)
    clients = [await connect(service) for _ in range(3)]
    expected = {
        model["checksum"]: loss for model, loss in zip(base["model_manifests"], GOLDEN.losses, strict=True)
    }
    async with httpx.AsyncClient(base_url=service.http_url, trust_env=False, timeout=120.0) as http:

        async def compete(number: int) -> None:
            models = generator.sample(base["model_manifests"], generator.randint(1, 3))
            losses = [expected[model["checksum"]] for model in models]
            body = {**base, "model_manifests": models}
            if number % 2:
                result: Any = await score(clients[number % 3], body)
                winner, loss = result.winner, result.loss_score[0]
            else:
                answer = (await http.post("/score", json=body)).json()
                winner, loss = answer["winner"], answer["loss_score"][0]
                assert [model["loss"] for model in answer["models"]] == pytest.approx(losses, rel=1e-5)
            assert (winner, loss) == (losses.index(min(losses)), pytest.approx(min(losses), rel=1e-5))

        await asyncio.gather(*(compete(number) for number in range(50)))
