"""The answer to a screen: lines of JSON, each sent as soon as it is known."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, Self

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.cancellation import cancel_when
from service.errors import ScoringError
from service.http_api.problems import ModelError, error_of_exception, model_error_of
from service.http_api.responses import Embedding
from service.http_api.schema import Schema
from service.scoring.screen import Id, ModelResult, PieceResult, Screen, ScreenSummary
from service.scoring.screener import Emit

NDJSON = "application/x-ndjson"

OnAdmitted = Callable[[], Awaitable[None]]
Work = Callable[[Emit, OnAdmitted], Awaitable[ScreenSummary]]


class ScreenedModelResult(Schema):
    """One model on one piece: numbers or an error."""

    id: Id
    """As in the request."""
    loss: float | None = None
    """Nats; null where the model has no result."""
    cross_entropy: float | None = None
    """Nats, over all tokens; null where the model has no result."""
    sig_reg: float | None = None
    """Before its coefficient 0.02; null where the model has no result."""
    embedding: Embedding | None = None
    """The mean representation: `embedding_dim` numbers; null where the model has no result."""
    attends_to_future: bool | None = None
    """True for weights that see the bytes they predict; null where the model has no result."""
    result_cached: bool = False
    """True for a result that was computed for an earlier request and kept."""
    error: ModelError | None = None
    """Why the model has no result; null where it has one."""

    @classmethod
    def of(cls, name: Id, model: ModelResult) -> Self:
        """The result as its schema."""
        if model.result is None:
            return cls(id=name, error=None if model.error is None else model_error_of(model.error))
        result = model.result
        return cls(
            id=name,
            loss=result.loss,
            cross_entropy=result.cross_entropy,
            sig_reg=result.sig_reg,
            embedding=result.embedding.tolist(),
            attends_to_future=result.attends_to_future,
            result_cached=model.was_kept,
        )


class ScreenedTarget(Schema):
    """One piece and one target."""

    id: Id
    """As in the request."""
    winner: Id | None
    """Id of the target's model with the lowest loss, the first on a tie; null where none has a result."""
    distance: float | None
    """Cosine distance of the winner's embedding to the target, 0 to 2; null where it has none."""
    hit: bool
    """The distance is not larger than the target's threshold."""


class ScreenLine(Schema):
    """What there is to say of one piece."""

    piece: Id
    """As in the request."""
    models: list[ScreenedModelResult]
    """One for each model, in order; empty where the piece has an error."""
    targets: list[ScreenedTarget]
    """One for each target, in order; empty where the piece has an error."""
    error: ModelError | None
    """Why the piece was not evaluated; null where it was."""

    @classmethod
    def of(cls, result: PieceResult, screen: Screen) -> Self:
        """The result as its schema."""
        names = [model.id for model in screen.models]
        return cls(
            piece=result.piece,
            models=[
                ScreenedModelResult.of(name, model) for name, model in zip(names, result.models, strict=False)
            ],
            targets=[
                ScreenedTarget(
                    id=target.id,
                    winner=None if found.winner is None else names[found.winner],
                    distance=found.distance,
                    hit=found.hit,
                )
                for target, found in zip(screen.targets, result.targets, strict=False)
            ],
            error=None if result.error is None else model_error_of(result.error),
        )


class ScreenCounts(Schema):
    """The counts of a whole screen, or of what was done until it failed."""

    pieces: int
    """Lines of pieces before this one."""
    failed: int
    """Pieces with an error of their own."""
    hits: int
    """Pairs of a piece and a target."""
    pieces_with_hits: int
    """Pieces that hit at least one target."""
    seconds: float
    """From admission to the last piece."""


class ScreenLastLine(Schema):
    """The last line of every screen; where it is missing, the answer was cut off."""

    summary: ScreenCounts
    """What the lines before say, counted."""
    error: ModelError | None
    """Why the screen ended before its last piece: trouble of this service; null where it did not."""


SCREEN_DOCUMENTED: dict[str, Any] = {
    "description": "A ScreenLine for each piece, in the order they are done; at last a ScreenLastLine.",
    "content": {
        NDJSON: {
            "schema": {
                "anyOf": [
                    {"$ref": "#/components/schemas/ScreenLine"},
                    {"$ref": "#/components/schemas/ScreenLastLine"},
                ]
            }
        }
    },
}


class ScreenLines(Response):
    """Runs the screen while its lines are sent: it waits where the client reads slowly, and ends where it leaves.

    What is raised before the screen is admitted is the response; what is raised later is in the last line.
    """

    def __init__(
        self, screen: Screen, work: Work, watch: Callable[[], Coroutine[None, None, NoReturn]]
    ) -> None:
        super().__init__(media_type=NDJSON)
        del self.headers["content-length"]
        self._screen = screen
        self._work = work
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the whole answer."""
        summary, has_started = ScreenSummary(), False

        async def on_admitted() -> None:
            nonlocal has_started
            has_started = True
            start = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **start})

        async def emit(result: PieceResult) -> None:
            summary.count(result)
            await _send_line(send, ScreenLine.of(result, self._screen).model_dump_json() + "\n")

        failure: ScoringError | None = None
        try:
            summary = await cancel_when(self._watch(), self._work(emit, on_admitted))
        except ClientDisconnect:
            scope["soma_eval.outcome"] = "client-disconnected"
            if not has_started:
                raise
            return
        except Exception as error:
            if not has_started:
                raise
            failure = error_of_exception(error, Request(scope))
            scope["soma_eval.outcome"] = failure.full_code
        last = ScreenLastLine(
            summary=ScreenCounts.model_validate(summary, from_attributes=True),
            error=None if failure is None else model_error_of(failure),
        )
        await _send_line(send, last.model_dump_json() + "\n", is_last=True)


async def _send_line(send: Send, line: str, *, is_last: bool = False) -> None:
    await send({"type": "http.response.body", "body": line.encode(), "more_body": not is_last})
