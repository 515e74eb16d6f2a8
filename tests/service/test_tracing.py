"""Traces as a collector receives them, from requests to a running service; and that they cost nothing when off."""

import os
import secrets
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from service import tracing
from service.grpc_api.bcs import ManifestInput, ScoreRequest
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION, KEY, absent, competition
from tests.live_service import LiveService, live_service
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

CANARY = "canary-of-a-query"
SERVER = 2
"""SPAN_KIND_SERVER."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver().running() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, receiver: OtlpReceiver) -> Iterator[LiveService]:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "SOMA_EVAL_TRACES": "1",
    }
    with live_service(tmp_path_factory.mktemp("traced"), environment=environment) as running:
        yield running


class Client:
    """A caller with a span of its own."""

    def __init__(self) -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.headers = {"traceparent": f"00-{self.trace_id}-{self.span_id}-01"}


def with_queries(body: dict[str, Any]) -> dict[str, Any]:
    """The same request, its URLs signed."""
    models = [{**model, "url": f"{model['url']}?{CANARY}"} for model in body["model_manifests"]]
    return {**body, "data_url": f"{body['data_url']}?{CANARY}", "model_manifests": models}


def named(spans: list[ReceivedSpan], name: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.name == name]


def one(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    (span,) = named(spans, name)
    return span


def assert_whole(spans: list[ReceivedSpan], root: ReceivedSpan, num_models: int) -> None:
    """Every part of a competition is there, below the root, and within its time."""
    counts = {name: len(named(spans, name)) for name in {span.name for span in spans} - {root.name}}
    assert counts == {
        "admission": 1,
        "data": 1,
        "weights": num_models,
        "wait for weights slot": num_models,
        "kept result": num_models,
        "wait for worker": num_models,
        "evaluation": num_models,
        "load": num_models,
        "batches": num_models,
    }
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if span is not root:
            assert by_id[span.parent_id].start - 1_000_000 <= span.start <= span.end <= root.end
    parents = {span.name: by_id[span.parent_id].name for span in spans if span is not root}
    assert parents["load"] == parents["batches"] == "evaluation"
    assert parents["wait for weights slot"] == "weights"
    assert parents["admission"] == parents["data"] == parents["weights"] == root.name
    assert {span.service for span in spans} == {"soma-eval"}


def test_a_competition_over_http_is_one_trace_below_its_clients_span(
    traced: LiveService, receiver: OtlpReceiver, files: FileServer
) -> None:
    client = Client()
    body = with_queries(competition(files, GOLDEN_COMPETITION))
    num_models = len(body["model_manifests"])
    with traced.client() as http:
        answer = http.post("/score", json=body, headers=client.headers)
    assert answer.status_code == 200
    spans = receiver.trace(client.trace_id, "POST /score")
    root = one(spans, "POST /score")
    assert (root.kind, root.parent_id, root.is_error) == (SERVER, client.span_id, False)
    assert root.attributes == {
        "http.request.method": "POST",
        "http.route": "/score",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "soma_eval.request_id": answer.headers["x-request-id"],
        "soma_eval.outcome": "ok",
    }
    # Weights that are here before the data are let go and taken again: that is another span.
    first = {span.attributes["soma_eval.model.index"]: span for span in reversed(named(spans, "weights"))}
    kept = [span for span in spans if span.name not in ("weights", "wait for weights slot")]
    slots = [span for span in spans if span.parent_id in {each.span_id for each in first.values()}]
    assert_whole([*kept, *first.values(), *slots], root, num_models)
    weights = first[0]
    assert weights.attributes["server.address"] == "127.0.0.1"
    assert weights.attributes["soma_eval.weights.checksum"] == body["model_manifests"][0]["checksum"]
    assert weights.attributes["soma_eval.weights.bytes"] == body["model_manifests"][0]["size"]
    evaluation = named(spans, "evaluation")[0]
    assert evaluation.attributes["soma_eval.device"] == "cpu"
    assert evaluation.attributes["soma_eval.encrypted"] is True
    batches = named(spans, "batches")[0].attributes
    assert (batches["soma_eval.batches.start"], batches["soma_eval.device"]) == (0, "cpu")
    assert batches["soma_eval.batches.stop"] == evaluation.attributes["soma_eval.batches"]


def test_a_competition_over_grpc_is_one_trace_below_its_clients_span(
    traced: LiveService, receiver: OtlpReceiver, files: FileServer
) -> None:
    client = Client()
    body = with_queries(competition(files, GOLDEN_COMPETITION))
    request = ScoreRequest(
        body["data_url"],
        body["data_checksum"],
        body["data_size"],
        tuple(ManifestInput(**model) for model in body["model_manifests"]),
        tuple(body["target_embedding"]),
        seed=6,
    )
    with grpc.insecure_channel(traced.grpc_url.removeprefix("http://")) as channel:
        call = channel.unary_unary("/scoring.Scoring/Score")
        call(request.encode(), metadata=tuple(client.headers.items()), timeout=120)
    spans = receiver.trace(client.trace_id, "scoring.Scoring/Score")
    root = one(spans, "scoring.Scoring/Score")
    assert (root.kind, root.parent_id, root.is_error) == (SERVER, client.span_id, False)
    assert root.attributes["rpc.system.name"] == "grpc"
    assert root.attributes["rpc.method"] == "scoring.Scoring/Score"
    assert root.attributes["rpc.response.status_code"] == "OK"
    assert len(named(spans, "evaluation")) == len(body["model_manifests"])


def test_a_result_that_is_kept_is_seen_as_such(
    traced: LiveService, receiver: OtlpReceiver, files: FileServer
) -> None:
    body = {**with_queries(competition(files, GOLDEN_COMPETITION)), "seed": 7}
    first, again = Client(), Client()
    with traced.client() as http:
        for client in (first, again):
            assert http.post("/score", json=body, headers=client.headers).status_code == 200
    spans = receiver.trace(again.trace_id, "POST /score")
    assert not named(spans, "evaluation")
    assert all(span.attributes["soma_eval.result.found"] for span in named(spans, "kept result"))


def test_an_error_is_named_by_its_code_where_it_arose(
    traced: LiveService, receiver: OtlpReceiver, files: FileServer
) -> None:
    client = Client()
    body = {"data": "AA==", "weights_url": f"{absent(files)['url']}?{CANARY}"}
    with traced.client() as http:
        assert http.post("/eval", json=body, headers=client.headers).status_code == 502
    spans = receiver.trace(client.trace_id, "POST /eval")
    root, weights = one(spans, "POST /eval"), one(spans, "weights")
    for span in (root, weights):
        assert span.is_error
        assert span.attributes["error.type"] == "model-unavailable"


def test_what_the_client_did_wrong_is_no_error_of_the_server(
    traced: LiveService, receiver: OtlpReceiver
) -> None:
    client = Client()
    with traced.client() as http:
        assert http.post("/eval", json={}, headers=client.headers).status_code == 422
    (root,) = receiver.trace(client.trace_id, "POST /eval")
    assert not root.is_error
    assert root.attributes["soma_eval.outcome"] == "invalid-request"


def test_a_job_goes_on_in_the_trace_of_its_request(
    traced: LiveService, receiver: OtlpReceiver, files: FileServer
) -> None:
    client = Client()
    body = {**with_queries(competition(files, GOLDEN_COMPETITION)), "seed": 5}
    with traced.client() as http:
        job = http.post("/score", json=body, headers={**client.headers, "Prefer": "respond-async"})
        assert job.status_code == 202
    spans = receiver.trace(client.trace_id, "job")
    whole = one(spans, "job")
    receiver.wait_for(lambda spans: any(span.span_id == whole.parent_id for span in spans))
    assert one(spans, "data").parent_id == whole.span_id
    assert len(named(spans, "evaluation")) == len(body["model_manifests"])


def test_a_malformed_traceparent_begins_a_new_trace(traced: LiveService, receiver: OtlpReceiver) -> None:
    with traced.client() as http:
        for value in ("00-canary", "\xff", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 5000):
            answer = http.get("/info", headers={b"traceparent": value.encode("latin-1")})
            assert answer.status_code == 200
    spans = receiver.wait_for(lambda spans: len(named(spans, "GET /info")) >= 4)
    assert {span.parent_id for span in named(spans, "GET /info")} == {""}


def test_probes_have_no_span(traced: LiveService, receiver: OtlpReceiver) -> None:
    with traced.client() as http:
        for path in ("/health", "/ready", "/metrics", "/info"):
            http.get(path)
    spans = receiver.wait_for(lambda spans: bool(named(spans, "GET /info")))
    assert not [span.name for span in spans if span.name in ("GET /health", "GET /ready", "GET /metrics")]


def test_no_key_and_no_query_is_sent(traced: LiveService, receiver: OtlpReceiver, files: FileServer) -> None:
    with traced.client() as http:
        http.post("/score", json=with_queries(competition(files, GOLDEN_COMPETITION)))
    receiver.wait_for(lambda spans: bool(named(spans, "POST /score")))
    for body in receiver.bodies:
        assert CANARY.encode() not in body
        assert KEY.encode() not in body
        assert b"-0.enc" not in body  # nor a path


@pytest.mark.slow
def test_a_collector_that_is_away_holds_up_neither_requests_nor_the_end(
    tmp_path: Path, files: FileServer
) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "SOMA_EVAL_TRACES": "1"}
    with live_service(tmp_path, environment=environment) as service:
        with service.client() as http:
            body = competition(files, GOLDEN_COMPETITION)
            assert http.post("/score", json=body).status_code == 200
        assert service.stop() == 0


UNTRACED = """
    import asyncio, pathlib, sys
    import fastapi, httpx  # FastAPI brings the API of OpenTelemetry along, whether it is used or not
    before = set(sys.modules)
    import service.cli.main, service.cli.serve
    from service.config import ExplicitSettings
    from service.server import run_service
    from tests.in_process_pool import InProcessPool

    async def main():
        settings = ExplicitSettings(port=0, grpc_port=0, data_dir=pathlib.Path(sys.argv[1]), small_model=True)
        async with run_service(settings, pool=InProcessPool()) as (_, addresses):
            async with httpx.AsyncClient(base_url=addresses.http, trust_env=False) as client:
                headers = {"traceparent": "00-" + "1" * 32 + "-" + "1" * 16 + "-01"}
                assert (await client.post("/eval", json={}, headers=headers)).status_code == 422

    asyncio.run(main())
    print(sorted(name for name in set(sys.modules) - before if "otel" in name or "opentelemetry" in name))
"""


@pytest.mark.slow
def test_nothing_of_opentelemetry_is_imported_without_the_setting(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(UNTRACED), str(tmp_path / "data")],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "FASTAPI_OTEL_AUTO_CONFIGURE": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr


def test_without_a_tracer_a_span_is_one_object_that_does_nothing() -> None:
    with tracing.span("a") as span, tracing.server_span("b", {}) as other:
        assert span is other is tracing.NO_SPAN
        span.set({"x": 1})
        span.fail("x")


@pytest.mark.parametrize(
    ("url", "host"),
    [
        (
            f"https://user:{CANARY}@weights.example:8443/{CANARY}?{CANARY}",
            {"server.address": "weights.example"},
        ),
        ("https://[::1", {}),
        ("", {}),
    ],
)
def test_of_a_url_only_the_host_is_told(url: str, host: dict[str, str]) -> None:
    assert tracing.host_of(url) == host
