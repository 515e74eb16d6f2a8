"""Answers a question with a service that runs elsewhere: one POST /eval for each candidate, file and seed.

Weights on this machine are served to it from a loopback port, under names nobody can guess, while it works;
so it must run on this machine too, with --allow-http and --allow-private-addresses. URLs go to it as they are.
"""

import asyncio
import base64
import json
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import base58
import numpy as np

from service.cli.remote_error import RemoteError, remedy_for, shortened
from service.cli.score.held_out import HeldOut
from service.cli.score.local import score_all
from service.cli.score.question import Question
from service.cli.score.score_sheet import CandidateProgress, OnProgress, Outcome, Run, ScoreSheet
from service.cli.service_client import ServiceClient, connect
from service.cli.usage import BadUsage
from soma_eval.responses import EvalResponse
from workers.architectures import CURRENT_VERSION, ArchitectureConfig, config_of, load_architecture

_AT_ONCE = 4


async def score_remotely(
    question: Question, url: str, api_key: str | None, on_progress: OnProgress
) -> ScoreSheet:
    """Let the service at `url` evaluate every candidate. Cancelling closes the connections, which stops its work.

    Raises BadUsage where the service refuses what was asked, RemoteError where there is no service to answer.
    """
    with _files_served([c.weights for c in question.candidates if not c.is_url]) as urls:
        async with connect(url, api_key, compute_anew=question.compute_anew) as service:
            scoring = _Scoring(question, service, urls, on_progress, await _architecture_of(service))
            return await score_all(question, scoring.score)


async def _architecture_of(service: ServiceClient) -> ArchitectureConfig:
    """As the service says; the network's own where it does not."""
    own = load_architecture(CURRENT_VERSION)
    try:
        _, info = await service.get("/info")
        return config_of(own, json.dumps(info.get("architecture", {})))
    except (RemoteError, ValueError):
        return config_of(own)


class _Scoring:
    """The scoring of one question by one service."""

    def __init__(
        self,
        question: Question,
        service: ServiceClient,
        urls: Mapping[str, str],
        on_progress: OnProgress,
        architecture: ArchitectureConfig,
    ) -> None:
        self._question = question
        self._service = service
        self._urls = urls
        self._on_progress = on_progress
        self._architecture = architecture
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def score(self, index: int) -> Outcome:
        """All runs of one candidate, or why there is none."""
        candidate = self._question.candidates[index]
        body: dict[str, Any] = {
            "weights_url": self._urls.get(candidate.weights, candidate.weights),
            "weights_checksum": candidate.checksum if candidate.is_url else None,
            "weights_size": candidate.size if candidate.is_url else None,
            "decryption_key": None if candidate.key is None else base58.b58encode(candidate.key).decode(),
            "target_embedding": None if self._question.target is None else list(self._question.target),
        }
        async with self._slots:
            started = time.monotonic()
            try:
                runs = tuple([run async for run in self._runs(index, body)])
            except RemoteError as error:
                if error.fault == "client":
                    reason = f"the service says: {error.detail} ({error.full_code})"
                    raise BadUsage(f"{reason}. {remedy_for(error)}") from None
                self._on_progress(CandidateProgress(index, "failed"))
                return Outcome(candidate, error=error)
        self._on_progress(CandidateProgress(index, "done"))
        return Outcome(candidate, runs, seconds=time.monotonic() - started)

    async def _runs(self, index: int, body: dict[str, Any]) -> AsyncIterator[Run]:
        done = 0
        for data in self._question.data:
            encoded = base64.b64encode(await asyncio.to_thread(data.read)).decode()
            for seed in self._question.seeds:
                self._on_progress(CandidateProgress(index, "evaluating", done, self._question.num_runs))
                answer = await self._service.post(
                    "/eval", {**body, "data": encoded, "seed": seed}, EvalResponse
                )
                yield self._run(data, seed, answer)
                done += 1

    def _run(self, data: HeldOut, seed: int, answer: EvalResponse) -> Run:
        num_tokens, num_predicted = self._architecture.count_targets(data.size)
        return Run(
            data=data.name,
            seed=seed,
            loss=answer.loss,
            cross_entropy=answer.cross_entropy,
            sig_reg=answer.sig_reg,
            embedding=np.array(answer.embedding, dtype=np.float32),
            distance=answer.distance,
            attends_to_future=answer.attends_to_future,
            num_tokens=num_tokens,
            num_predicted=num_predicted,
            load_seconds=answer.timings.load_seconds,
            eval_seconds=answer.timings.eval_seconds,
            precision=shortened(answer.provenance.precision),
            device=shortened(answer.provenance.device),
            numerics_version=shortened(answer.provenance.numerics_version),
            computed_at=answer.provenance.computed_at,
            result_cached=answer.timings.result_cached,
            versions=answer.provenance.versions,
        )


@contextmanager
def _files_served(paths: list[str]) -> Iterator[dict[str, str]]:
    """These files by http on a free loopback port, while inside: path -> URL."""
    files = {f"/{secrets.token_urlsafe(24)}": path for path in paths}

    class Handler(_FilesHandler):
        names = files

    with _QuietServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            base_url = f"http://127.0.0.1:{server.server_address[1]}"
            yield {path: f"{base_url}{name}" for name, path in files.items()}
        finally:
            server.shutdown()
            thread.join()


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing where the service disconnects: its own answer says why."""


class _FilesHandler(BaseHTTPRequestHandler):
    names: Mapping[str, str] = {}

    def do_GET(self) -> None:
        path = self.names.get(self.path)
        if path is None:
            self.send_error(404)
            return
        with Path(path).open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(Path(path).stat().st_size))
            self.end_headers()
            shutil.copyfileobj(file, self.wfile, 1 << 20)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: stderr is for people."""
