"""An S3 server on loopback (moto's), with a bucket, that can be told to misbehave."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

import boto3
import httpx
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "weights"
SECRET = "the-secret-access-key"
Respond = Callable[..., Any]


class S3Server:
    """Keeps the number of each part that was stored, in order."""

    def __init__(self) -> None:
        self.parts: list[int] = []
        self.parts_allowed: int | None = None
        """How many parts are stored; the requests for others wait, or are refused."""
        self.refuses = False
        """Whether a part too many is refused, rather than left waiting."""
        self.corrupts = False
        """Whether what is read is not what was written."""
        self._change = threading.Condition()
        self._generation = 0
        self._backend = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._respond, threaded=True, request_handler=_Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.variables = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "an-access-key",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        """What makes boto3 talk to this server."""

    @contextmanager
    def running(self) -> Iterator["S3Server"]:
        """Serve for the length of the block."""
        thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )
        thread.start()
        try:
            httpx.post(f"{self.endpoint}/moto-api/reset")  # its objects are the process's, not the server's
            self.client.create_bucket(Bucket=BUCKET)
            yield self
        finally:
            self.allow_parts(None)
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    @property
    def client(self) -> Any:
        """A client of it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id="another",
            aws_secret_access_key="other",
            region_name="us-east-1",
        )

    def content(self, key: str) -> bytes:
        """An object of the bucket."""
        content: bytes = self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return content

    def keys(self) -> list[str]:
        """Of every object in the bucket."""
        return [item["Key"] for item in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def allow_parts(self, count: int | None) -> None:
        """Let so many parts through, the ones stored included; None lets all through. Those that wait are refused."""
        with self._change:
            self._generation += 1
            self.parts_allowed = count
            self._change.notify_all()

    def wait_for_parts(self, count: int) -> None:
        """Until so many parts are stored."""
        with self._change:
            assert self._change.wait_for(lambda: len(self.parts) >= count, timeout=60)

    def _respond(self, environ: dict[str, Any], start_response: Respond) -> Iterable[bytes]:
        number = parse_qs(environ["QUERY_STRING"]).get("partNumber")
        if environ["REQUEST_METHOD"] == "PUT" and number and not self._may_store(int(number[0])):
            start_response("403 Forbidden", [("Content-Type", "application/xml"), ("Connection", "close")])
            return [b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"]
        response: Iterable[bytes] = self._backend(environ, start_response)
        if self.corrupts and environ["REQUEST_METHOD"] == "GET" and not environ["QUERY_STRING"]:
            return [bytes(len(chunk)) for chunk in response]
        return response

    def _may_store(self, number: int) -> bool:
        def allowed() -> bool:
            return self.parts_allowed is None or len(self.parts) < self.parts_allowed

        with self._change:
            generation = self._generation
            if not self.refuses:
                self._change.wait_for(lambda: allowed() or self._generation > generation)
            if not allowed() or self._generation > generation:
                return False
            self.parts.append(number)
            self._change.notify_all()
            return True


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        """Log nothing."""
