"""The log: structured lines on stderr, as text or JSON. No secret is ever passed to it."""

import asyncio
import errno
import logging
import sys
import time
import traceback
from typing import Any, Literal

import structlog

_OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TRACEBACKS_AS_DATA = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)  # keys are among them
)


def configure_log(log_format: Literal["console", "json"], log_level: str) -> None:
    """Send this project's lines, and those of the libraries, to stderr in one form."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.types.Processor] = (
        [_TRACEBACKS_AS_DATA, structlog.processors.JSONRenderer()]
        if log_format == "json"
        else [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(log_level.upper())
    for noisy in ("httpx", "httpcore", "asyncio", "uvicorn.access"):  # some write whole URLs
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of every request that is no HTTP


def log_bug(error: Exception, **context: str) -> None:
    """Log where an unexpected error was raised, and not its message, which may quote a URL or a key."""
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
    structlog.get_logger(__name__).error(
        "unexpected error", exception=type(error).__name__, where=where, **context
    )


class RateLimit:
    """Permits one line of log in so many seconds, of an event that clients can cause without limit."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._next_at = 0.0

    def permits(self) -> bool:
        """Whether the line may be written now."""
        now = time.monotonic()
        if now < self._next_at:
            return False
        self._next_at = now + self._seconds
        return True


_accept_errors = RateLimit()


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle errors as the event loop does, but rate-limit those of accept(), which come in thousands."""
    error = context.get("exception")
    if not isinstance(error, OSError) or error.errno not in _OUT_OF_RESOURCES:
        loop.default_exception_handler(context)
    elif _accept_errors.permits():
        structlog.get_logger(__name__).error("connections cannot be accepted", reason=error.strerror)
