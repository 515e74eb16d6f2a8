"""Both clients against a real service."""

import asyncio
import contextlib
import inspect
import traceback
from typing import Any

import httpx
import pytest

from service.checksum import checksum_of
from soma_eval import AsyncClient, Client, ModelManifest, RetryPolicy, calls
from soma_eval.errors import (
    ApiError,
    DecryptionFailed,
    InvalidKey,
    InvalidRequest,
    JobCancelled,
    JobNotFound,
    ModelUnavailable,
    NotFound,
    QueueFull,
    Unauthorized,
    WeightsInvalid,
)
from soma_eval.responses import ScoreResponse
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_EVALUATION as GOLDEN
from tests.live_service import LiveService, live_service
from tests.misbehaving_server import MisbehavingServer, slow_body
from tests.recipe import TEST_KEY, encrypt, make_data, small_weights_bytes
from tests.soma_eval.clients import MakeClient

TARGET = [1.0 if i % 2 else -1.0 for i in range(16)]
API_KEY = "canary-api-key"


@pytest.fixture(scope="session")
def competition(files: FileServer) -> dict[str, Any]:
    """Arguments of `score`: good weights, and weights that are none."""
    data, good = make_data(GOLDEN.data), encrypt(small_weights_bytes())
    bad = b"no weights at all" * 10
    return {
        "data_url": files.publish("client-data.bin", data),
        "data_checksum": checksum_of(data),
        "data_size": len(data),
        "model_manifests": [
            ModelManifest(files.publish("client-bad.bin", bad), checksum_of(bad), len(bad)),
            ModelManifest(files.publish("client-good.enc", good), checksum_of(good), len(good), TEST_KEY),
        ],
        "target_embedding": TARGET,
        "seed": GOLDEN.seed,
    }


def test_eval(remote: Client, evaluation: dict[str, Any]) -> None:
    response = remote.eval(**evaluation, target_embedding=TARGET)
    assert response.loss == pytest.approx(GOLDEN.loss, rel=1e-5)
    assert response.embedding == pytest.approx(GOLDEN.embedding.tolist(), abs=1e-5)
    assert response.distance is not None
    assert response.provenance.data_checksum == checksum_of(evaluation["data"])


def test_what_is_kept_is_told_and_can_be_computed_anew(remote: Client, evaluation: dict[str, Any]) -> None:
    first, again = remote.eval(**evaluation), remote.eval(**evaluation)
    assert again.timings.result_cached
    assert (again.loss, again.provenance) == (first.loss, first.provenance)
    job = remote.submit_eval(**evaluation, compute_anew=True)
    anew = remote.result(job)
    assert not anew.timings.result_cached
    assert anew.loss == first.loss
    assert anew.provenance.computed_at > first.provenance.computed_at
    assert anew.provenance.numerics_version == first.provenance.numerics_version


def test_data_by_url(remote: Client, evaluation: dict[str, Any], competition: dict[str, Any]) -> None:
    data = {name: competition[name] for name in ("data_url", "data_checksum", "data_size")}
    response = remote.eval(**{**evaluation, "data": None}, **data)
    assert response.loss == pytest.approx(GOLDEN.loss, rel=1e-5)


def test_score(remote: Client, competition: dict[str, Any]) -> None:
    response = remote.score(**competition)
    assert (response.winner, response.margin) == (1, None)
    assert response.loss_score == [pytest.approx(GOLDEN.loss, rel=1e-5)]
    error = response.models[0].error
    assert error is not None
    assert isinstance(error.to_exception(), WeightsInvalid)
    assert response.models[1].error is None


def test_a_job_is_followed_to_its_result(remote: Client, competition: dict[str, Any]) -> None:
    submitted = remote.submit_score(**competition)
    *_, last = remote.follow(submitted)
    assert (last.id, last.state, last.kind) == (submitted.id, "succeeded", "score")
    assert [model.phase for model in last.progress.models] == ["failed", "done"]
    found = remote.job(submitted.id)
    assert submitted.id in [job.id for job in remote.jobs(state="succeeded", limit=100).jobs]
    result = last.require_result()
    assert isinstance(result, ScoreResponse)
    assert result == found.result == remote.result(submitted)


def test_a_job_s_error_is_that_of_the_call(remote: Client, evaluation: dict[str, Any]) -> None:
    job = remote.submit_eval(**{**evaluation, "decryption_key": bytes(32)})
    with pytest.raises(DecryptionFailed) as raised:
        remote.result(job)
    assert raised.value.fault == "model_owner"


async def test_a_job_is_cancelled(
    make_client: MakeClient, service: LiveService, evaluation: dict[str, Any]
) -> None:
    slow = slow_body(small_weights_bytes(), bytes_per_second=1000)
    async with MisbehavingServer(slow, tls=False) as publisher:

        def submit_and_cancel() -> None:
            remote = make_client(service.http_url)
            job = remote.submit_eval(**{**evaluation, "weights_url": publisher.url()})
            with contextlib.closing(remote.follow(job)) as updates:
                assert any(update.progress.models[0].phase == "downloading" for update in updates)
            assert remote.cancel(job).state == "cancelled"
            with pytest.raises(JobCancelled):
                remote.result(job)

        await asyncio.to_thread(submit_and_cancel)


def test_how_the_service_is(remote: Client) -> None:
    assert remote.health().status == "ok"
    readiness = remote.ready()
    assert (readiness.status, readiness.devices[0].ready) == ("ready", True)
    assert remote.info().architecture["embedding_dim"] == 16


def test_each_error_is_its_own_exception(
    remote: Client, evaluation: dict[str, Any], files: FileServer
) -> None:
    with pytest.raises(InvalidKey):
        remote.eval(**{**evaluation, "decryption_key": "0OIl"})
    with pytest.raises(InvalidRequest, match="seed"):
        remote.eval(**{**evaluation, "seed": -1})
    with pytest.raises(JobNotFound):
        remote.job("unknown")
    with pytest.raises(NotFound):  # and not what is at /info
        remote.job("../info?x=1#")
    with pytest.raises(ModelUnavailable) as raised:
        remote.eval(**{**evaluation, "weights_url": f"{files.base_url}/absent"})
    assert (raised.value.status, raised.value.blob, raised.value.retryable) == (502, "model", True)
    assert raised.value.request_id


@pytest.mark.parametrize("change", [{"target_embedding": [float("nan")]}, {"unknown": 1}, {"data": "text"}])
def test_what_cannot_be_sent_is_not_sent(
    change: dict[str, Any], make_client: MakeClient, evaluation: dict[str, Any]
) -> None:
    client = make_client("http://127.0.0.1:1")
    with pytest.raises((ValueError, TypeError)):
        client.eval(**{**evaluation, **change})


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service with an API key and room for one request."""
    with live_service(
        tmp_path_factory.mktemp("guarded"),
        *("--queue-size", "1"),
        environment={"SOMA_EVAL_API_KEYS": API_KEY},
    ) as running:
        yield running


def test_the_api_key(guarded: LiveService, make_client: MakeClient, evaluation: dict[str, Any]) -> None:
    assert make_client(guarded.http_url, api_key=API_KEY).eval(**evaluation).loss
    for options in ({}, {"api_key": "another"}):
        client = make_client(guarded.http_url, **options)
        assert client.health().status == "ok"
        with pytest.raises(Unauthorized):
            client.info()


async def test_a_full_queue_is_refused_in_the_end(
    guarded: LiveService, make_client: MakeClient, evaluation: dict[str, Any]
) -> None:
    slow = slow_body(small_weights_bytes(), bytes_per_second=1000)
    async with MisbehavingServer(slow, tls=False) as publisher:

        def fill_and_ask() -> None:
            client = make_client(guarded.http_url, api_key=API_KEY, retry=RetryPolicy(max_seconds=0.5))
            job = client.submit_eval(**{**evaluation, "weights_url": publisher.url()})
            with pytest.raises(QueueFull) as raised:
                client.eval(**evaluation)
            assert (raised.value.status, raised.value.retryable) == (429, True)
            assert raised.value.retry_after_seconds
            client.cancel(job)

        await asyncio.to_thread(fill_and_ask)


@pytest.mark.slow
async def test_cancelling_a_call_ends_its_work(service: LiveService, evaluation: dict[str, Any]) -> None:
    slow = slow_body(small_weights_bytes(), bytes_per_second=1000)
    async with MisbehavingServer(slow, tls=False) as publisher, AsyncClient(service.http_url) as client:
        call = asyncio.create_task(client.eval(**{**evaluation, "weights_url": publisher.url()}))
        while not publisher.requests:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with httpx.AsyncClient(base_url=service.http_url) as plain_http:
            while "soma_eval_requests_admitted 0.0" not in (await plain_http.get("/metrics")).text:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_method_is_described_like_its_call(kind: type[Any]) -> None:
    assert list(inspect.signature(kind.eval).parameters)[:3] == ["self", "weights_url", "data"]
    assert "with a seed" in (kind.eval.__doc__ or "")


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://user:canary-password@host",
        "https://host/?token=canary-query",
        "http://canary:port",
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_address_that_is_none_is_refused(url: str, kind: type[Any]) -> None:
    with pytest.raises(ValueError) as raised:
        kind(url)
    assert "canary" not in str(raised.value)


@pytest.mark.parametrize("key", ["", "canary key", "canary\nkey", "canary\u00e9"])
def test_an_api_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(ValueError) as raised:
        Client("http://127.0.0.1:8000", api_key=key)
    assert "canary" not in str(raised.value)


@pytest.mark.slow
def test_no_secret_is_shown(
    guarded: LiveService,
    make_client: MakeClient,
    evaluation: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    client = make_client(guarded.http_url, api_key=API_KEY, retry=RetryPolicy(max_tries=1))
    query = "canary-query"
    manifest = ModelManifest(f"https://host/w?{query}", "checksum", 1, "canary-key")
    shown = [repr(client), repr(manifest)]
    for change in (
        {"decryption_key": "canary-key"},
        {"weights_url": f"http://127.0.0.1:1/w?{query}"},
        {"weights_url": f"http://{query}@127.0.0.1/w"},
    ):
        call = calls.eval(**{**evaluation, **change})
        shown.append(repr(call))
        with pytest.raises(ApiError) as raised:
            client.eval(**{**evaluation, **change})
        shown += traceback.format_exception(raised.value)
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if "canary" in text]
