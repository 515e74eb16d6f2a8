"""A real PostgreSQL for tests: databases with random names, and a proxy before it that can be closed and opened."""

import contextlib
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

HOST = os.environ.get("PGHOST", "127.0.0.1")
PORT = int(os.environ.get("PGPORT", "5432"))
USER = os.environ.get("PGUSER", "postgres")
MUST_ANSWER = "NEED_POSTGRES"
"""Where this variable is set, as in CI, a server that does not answer is a failure."""


@contextmanager
def postgres_database() -> Iterator[str]:
    """The name of a new database, dropped after the block. Skips the test where no server answers and none need to."""
    psycopg = pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    try:
        admin = psycopg.connect(
            host=HOST, port=PORT, user=USER, dbname="postgres", connect_timeout=3, autocommit=True
        )
    except psycopg.OperationalError:
        if MUST_ANSWER in os.environ:
            raise
        pytest.skip(f"no PostgreSQL answers at {HOST}:{PORT}")
    name = f"soma_eval_{secrets.token_hex(8)}"
    with admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def url_of(name: str, port: int = PORT) -> str:
    """The database as a `--state-url`."""
    return f"postgresql+psycopg://{USER}@{HOST}:{port}/{name}"


class Proxy:
    """A TCP proxy in front of a server: closed, it breaks every connection and takes no new one."""

    def __init__(self, server: tuple[str, int] = (HOST, PORT)) -> None:
        self._server = server
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        """Listen, on the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept, self._listener)

    def close(self) -> None:
        """Stop listening, and break all connections."""
        with self._lock:
            for one in (self._listener, *self._sockets):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _start(self, function: Callable[..., None], *arguments: socket.socket) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener, contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._start(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            both = {client, server}
            with self._lock:
                self._sockets |= both
            answers = threading.Thread(target=_copy, args=(server, client), daemon=True)
            answers.start()
            _copy(client, server)
            answers.join()
            with self._lock:
                self._sockets -= both


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
