"""Answers a question with a service that runs elsewhere: one POST /eval for each candidate, file and seed.

Weights on this machine are served to it from a loopback port, under names nobody can guess, while it works;
so it must run on this machine too, with --allow-http and --allow-private-addresses. URLs go to it as they are.
"""

import asyncio
import base64
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import base58
import httpx

from service.cli.score.held_out import HeldOut
from service.cli.score.local import score_all
from service.cli.score.question import Question
from service.cli.score.remote_answer import NotOurs, parse_json_object, parse_run
from service.cli.score.remote_error import RemoteError, RemoteTrouble, remedy_for
from service.cli.score.score_sheet import CandidateProgress, OnProgress, Outcome, Run, ScoreSheet
from service.cli.urls import is_url
from service.cli.usage import BadUsage
from workers.architectures import CURRENT_VERSION, load_architecture

_AT_ONCE = 4
_CONNECT_SECONDS = 10.0
_MAX_ANSWER_BYTES = 64 << 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


async def score_remotely(
    question: Question, url: str, api_key: str | None, on_progress: OnProgress
) -> ScoreSheet:
    """Let the service at `url` evaluate every candidate. Cancelling closes the connections, which stops its work.

    Raises BadUsage where the service refuses what was asked, RemoteError where there is no service to answer.
    """
    _check_reach(question, url)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    if question.compute_anew:
        headers["Cache-Control"] = "no-cache"
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    with _files_served([c.weights for c in question.candidates if not c.is_url]) as urls:
        async with httpx.AsyncClient(
            base_url=url, headers=headers, timeout=timeout, trust_env=False
        ) as client:
            scoring = _Scoring(question, client, urls, on_progress)
            return await score_all(question, scoring.score)


class _Scoring:
    """The scoring of one question by one service."""

    def __init__(
        self, question: Question, client: httpx.AsyncClient, urls: Mapping[str, str], on_progress: OnProgress
    ) -> None:
        self._question = question
        self._client = client
        self._urls = urls
        self._on_progress = on_progress
        self._architecture = load_architecture(CURRENT_VERSION)
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def score(self, index: int) -> Outcome:
        """All runs of one candidate, or why there is none."""
        candidate = self._question.candidates[index]
        body: dict[str, Any] = {
            "weights_url": self._urls.get(candidate.weights, candidate.weights),
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
                answer = await self._post({**body, "data": encoded, "seed": seed})
                yield self._run(data, seed, answer)
                done += 1

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            async with self._client.stream("POST", "/eval", json=body) as response:
                answer = parse_json_object(await _read_all(response))
        except httpx.InvalidURL as error:
            raise BadUsage(f"--url is no URL: {error}") from None
        except httpx.HTTPError as error:
            raise _no_service(_why_no_answer(error)) from None
        except NotOurs as error:
            raise _no_service(f"what answers there is not soma-eval: {error}") from None
        if response.status_code == httpx.codes.OK:
            return answer
        raise RemoteTrouble(answer) if answer.get("retryable") is True else RemoteError(answer)

    def _run(self, data: HeldOut, seed: int, answer: dict[str, Any]) -> Run:
        num_tokens, num_predicted = self._architecture.count_targets(data.size)
        try:
            return parse_run(answer, data.name, seed, num_tokens, num_predicted)
        except NotOurs as error:
            raise _no_service(f"what answers there is not soma-eval: {error}") from None


async def _read_all(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise NotOurs(f"its answer is longer than {_MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(content)


def _no_service(detail: str) -> RemoteTrouble:
    return RemoteTrouble({"code": "no-service", "detail": detail})


def _why_no_answer(error: httpx.HTTPError) -> str:
    match error:
        case httpx.ConnectTimeout():
            return f"nothing answered within {_CONNECT_SECONDS:g} s"
        case httpx.ConnectError():
            words = str(error).lower()
            tls = "ssl" in words or "tls" in words or "certificate" in words
            return "it speaks no https, or its certificate is not valid" if tls else "nothing listens there"
        case httpx.RemoteProtocolError():
            return "it closed the connection without an answer, or does not speak HTTP"
        case httpx.NetworkError():
            return "it closed the connection"
    return f"no answer ({type(error).__name__})"


def _check_reach(question: Question, url: str) -> None:
    host = _host_of(url)
    if host is None:
        raise BadUsage("--url is not an http(s) URL: give the address that `soma-eval serve` printed")
    if host not in _LOOPBACK and not all(c.is_url for c in question.candidates):
        raise BadUsage("a service on another machine cannot read files of this one: give URLs as --weights")


def _host_of(url: str) -> str | None:
    """None where it is no URL of an HTTP service."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number, or too large
    except ValueError:
        return None
    return parts.hostname if is_url(url) else None


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
