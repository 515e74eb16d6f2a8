"""The guard must never be bypassed because a library has changed: it works in httpx's place for the pool."""

import ssl
from typing import Any

import httpx
import pytest

from service.egress.address_guard import GuardedTransport
from service.egress.url_policy import ForbiddenTarget, UrlPolicy


async def _resolve(host: str, port: int) -> list[str]:
    return [host]


def _transport() -> GuardedTransport:
    return GuardedTransport(UrlPolicy(allow_http=True), _resolve, ssl.create_default_context())


async def test_a_request_goes_through_the_guard() -> None:
    async with _transport() as transport:
        with pytest.raises(ForbiddenTarget):
            await transport.handle_async_request(httpx.Request("GET", "http://127.0.0.1:9/"))


async def test_a_version_of_httpx_with_its_pool_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(transport: httpx.AsyncHTTPTransport, **options: Any) -> None:
        transport.__dict__["_connection_pool"] = None

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "__init__", init)
    with pytest.raises(RuntimeError, match="this version of httpx"):
        _transport()
