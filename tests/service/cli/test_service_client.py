"""A command waits for a service as long as that works, and no longer than it is there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from service.cli.remote_error import RemoteTrouble
from service.cli.service_client import ServiceClient
from soma_eval.responses import Health

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n{"status":"ok"}'


class SlowService:
    """Answers /health at once and a POST when `done` is set; refuses all that is new once it is `gone`."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.gone = False
        self.num_health = 0

    async def respond(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        if b"/health" in line:
            self.num_health += 1
            if self.num_health == 5:
                self.done.set()
        elif line.startswith(b"POST"):
            await self.done.wait()
        if not self.gone:
            writer.write(OK)
        writer.close()


@asynccontextmanager
async def client_of(service: SlowService) -> AsyncIterator[ServiceClient]:
    server = await asyncio.start_server(service.respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            yield ServiceClient(client, health_every_seconds=0.02)
    finally:
        service.done.set()
        server.close()


async def test_a_long_evaluation_is_waited_for_while_the_service_is_there() -> None:
    service = SlowService()
    async with client_of(service) as client:
        assert (await client.post("/eval", {}, Health)).status == "ok"
    assert service.num_health >= 5


async def test_a_service_that_is_gone_is_not_waited_for() -> None:
    service = SlowService()
    service.gone = True
    service.num_health = 100  # so that the work is never done
    async with client_of(service) as client:
        with pytest.raises(RemoteTrouble, match="it no longer answers"):
            await client.post("/eval", {}, Health)
