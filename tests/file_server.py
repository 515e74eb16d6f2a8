"""A plain, honest file server on loopback: a publisher with nothing wrong."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class FileServer:
    """Serves a folder; keeps the path of each request."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def publish(self, name: str, content: bytes) -> str:
        """Write a file into the folder; returns its URL."""
        (self.folder / name).write_bytes(content)
        return f"{self.base_url}/{name}"

    @contextmanager
    def running(self) -> Iterator["FileServer"]:
        """Serve for the length of the block."""
        with self._server:
            thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            try:
                yield self
            finally:
                self._server.shutdown()
                thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, owner: FileServer, *args: object) -> None:
        self._owner = owner
        super().__init__(*args, directory=str(owner.folder))  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._owner.requests.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""
