"""Open files: how many this process may have, and how many of them may be connections of clients.

An idle connection must never take the file descriptor that an admitted request needs for its download, so each API
has a limit of connections, and the other descriptors are reserved for requests.
"""

import contextlib
import errno
import resource
from dataclasses import dataclass

import structlog

from service.config import Settings

_MOST_OPEN_FILES = (65536, 10240, 4096)
"""Soft limits to try, in this order: some systems refuse values below the hard limit that they report."""
_MAX_HTTP_CONNECTIONS = 8192
_MAX_GRPC_CONNECTIONS = 1024
_MIN_CONNECTIONS = 16
"""Of each API."""

_FILES_OF_THE_PROCESS = 128
"""Logs, pipes of workers, event loops, and connections that are accepted and closed at once."""
_FILES_PER_WEIGHTS = 8
"""Four connections, the partial file and its note, a host name being resolved, one spare."""
_FILES_PER_REQUEST = 4
"""The same for the data, which is downloaded over one connection."""
_MIN_FILES_FOR_WORK = _FILES_OF_THE_PROCESS + _FILES_PER_WEIGHTS + _FILES_PER_REQUEST

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The most connections of each API."""

    http: int
    grpc: int


def raise_open_file_limit() -> int:
    """Raise this process's soft limit of open files towards the hard limit; returns the new one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in _MOST_OPEN_FILES:
        wanted = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN_FILES[0] if soft == resource.RLIM_INFINITY else soft


def connection_limits(settings: Settings, max_open_files: int) -> ConnectionLimits:
    """Divide the open files between requests and the connections of both APIs.

    When there are fewer than all requests at once may need, connections get their minimum.
    Raises OSError when there are too few for a single request.
    """
    for_work = (
        _FILES_OF_THE_PROCESS
        + _FILES_PER_WEIGHTS * settings.max_weights_at_once
        + _FILES_PER_REQUEST * settings.queue_size
    )
    least = 2 * _MIN_CONNECTIONS
    if max_open_files < _MIN_FILES_FOR_WORK + least:
        raise OSError(
            errno.EMFILE,
            f"this process may open {max_open_files} files, and needs {_MIN_FILES_FOR_WORK + least} at least: "
            "raise the limit, with `ulimit -n 4096` for example",
        )
    if max_open_files < for_work + least:
        log.warning(
            "few files may be open: with many requests at once, some may fail as out-of-resources",
            limit=max_open_files,
            enough=for_work + least,
        )
    for_connections = max(least, max_open_files - for_work)
    for_grpc = 0 if settings.grpc_port == "off" else min(for_connections // 2, _MAX_GRPC_CONNECTIONS)
    return ConnectionLimits(http=min(for_connections - for_grpc, _MAX_HTTP_CONNECTIONS), grpc=for_grpc)
