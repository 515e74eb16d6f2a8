"""Screens with a running service: some pieces per request, whose lines are passed on as they come."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

import httpx

from service.blob import BlobRef
from service.cli.screen.lines import OnLine, error_of
from service.cli.screen.question import Question
from service.cli.usage import CommandFailed
from service.errors import ScoringError
from service.scoring.piece_groups import in_groups
from service.scoring.screen import Id, Piece, ScreenSummary

_CONNECT_SECONDS = 10.0
_MAX_PIECES = 512
_MAX_BYTES = 4 << 20
"""Of the pieces of one request: few enough to be read at once, many enough to keep the devices busy."""
PAUSES_SECONDS = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Before each further try where a connection is lost, as long as none brings a line."""


async def screen_remotely(
    question: Question, pieces: AsyncIterable[Piece], url: str, api_key: str | None, on_line: OnLine
) -> ScreenSummary:
    """Cancelling closes the connection, which stops the service's work. Raises CommandFailed."""
    started = time.monotonic()
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    try:
        async with (
            httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, trust_env=False) as client,
            aclosing(in_groups(pieces, _share, lambda: _MAX_BYTES)) as groups,
        ):
            service = _Service(client, question, on_line)
            async for group in groups:
                for piece in group:
                    if isinstance(piece.data, ScoringError):
                        await on_line(_line_of_error(piece.id, piece.data))
                readable = [piece for piece in group if not isinstance(piece.data, ScoringError)]
                if readable:
                    await service.screen(readable)
    except httpx.HTTPError as error:
        raise CommandFailed(f"the service did not answer ({type(error).__name__})") from None
    return ScreenSummary(seconds=time.monotonic() - started)


def _share(piece: Piece) -> int:
    """What a piece takes of the bytes of one request."""
    size = len(piece.data) if isinstance(piece.data, bytes) else 0
    return max(size, _MAX_BYTES // _MAX_PIECES)


def _body(question: Question, pieces: list[Piece]) -> dict[str, Any]:
    return {
        "pieces": [{"id": piece.id, **_content(piece)} for piece in pieces],
        "models": [asdict(model) for model in question.models],
        "targets": [asdict(target) for target in question.targets],
        "seed": question.seed,
    }


def _content(piece: Piece) -> dict[str, Any]:
    if isinstance(piece.data, bytes):
        return {"data": base64.b64encode(piece.data).decode()}
    assert isinstance(piece.data, BlobRef)
    return {
        "data_url": piece.data.url,
        "data_checksum": piece.data.checksum,
        "data_size": piece.data.size,
    }


def _line_of_error(name: Id, error: ScoringError) -> dict[str, Any]:
    return {"piece": name, "models": [], "targets": [], "error": error_of(error)}


class _Service:
    """Answers one request after the other. Where a connection is lost, it is asked for the pieces that are left:
    what it has computed it keeps."""

    def __init__(self, client: httpx.AsyncClient, question: Question, on_line: OnLine) -> None:
        self._client = client
        self._question = question
        self._on_line = on_line
        self._has_answered = False
        """Whether it was ever there: else it is not waited for."""

    async def screen(self, pieces: list[Piece]) -> None:
        """A line for each. Raises CommandFailed, and a TransportError where the service stays away."""
        pauses = iter(PAUSES_SECONDS)
        while pieces:
            done: set[Id] = set()
            try:
                await self._post(pieces, done)
                return
            except httpx.TransportError:
                pauses = iter(PAUSES_SECONDS) if done else pauses
                pause = next(pauses, None)
                if pause is None or not self._has_answered:
                    raise
                await asyncio.sleep(pause)
            pieces = [piece for piece in pieces if piece.id not in done]

    async def _post(self, pieces: list[Piece], done: set[Id]) -> None:
        """One request; `done` gets the pieces whose line has come."""
        async with self._client.stream("POST", "/screen", json=_body(self._question, pieces)) as response:
            if response.status_code != httpx.codes.OK:
                raise CommandFailed(_refusal(await response.aread(), response.status_code))
            async for text in response.aiter_lines():
                line = json.loads(text)
                self._has_answered = True
                if "summary" in line:
                    if line["error"] is not None:
                        raise CommandFailed(f"the service had trouble: {line['error'].get('detail')}")
                    return
                await self._on_line(line)
                done.add(line["piece"])
        raise httpx.RemoteProtocolError("the answer was cut off")


def _refusal(content: bytes, status: int) -> str:
    try:
        return f"the service refused: {json.loads(content)['detail']}"
    except (ValueError, KeyError, TypeError):
        return f"the service answered with status {status}"
