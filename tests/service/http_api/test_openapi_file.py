"""The OpenAPI document in the repository is the one that a service without API keys serves for full V1.

After a change of the API: make openapi
"""

import asyncio
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx

from service.config import ExplicitSettings
from service.http_api.app import create_app
from service.lifespan import Components
from service.log import configure_log
from service.metrics import Metrics
from workers.v1.config import ModelConfig

LONG_EXAMPLE = re.compile(r"\[(?:\s+0\.5,?)+\s+\]")
"""A target has thousands of numbers: they go on one line."""
FILE = Path(__file__).parents[3] / "openapi.json"


async def served_document() -> str:
    components = SimpleNamespace(
        settings=ExplicitSettings(),
        architecture=asdict(ModelConfig()),
        metrics=Metrics(),
        closing=asyncio.Event(),
        scheduler=SimpleNamespace(check_room=lambda: None),
    )
    transport = httpx.ASGITransport(create_app(cast(Components, components)))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        document = (await client.get("/openapi.json")).json()
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return LONG_EXAMPLE.sub(lambda numbers: "[" + " ".join(numbers[0].strip("[]").split()) + "]", text)


async def test_the_file_is_what_is_served() -> None:
    assert FILE.read_text() == await served_document(), "the API differs: make openapi"


if __name__ == "__main__":
    configure_log("console", "warning")  # the document alone goes to stdout
    sys.stdout.write(asyncio.run(served_document()))
