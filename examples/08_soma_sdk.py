"""Run a competition with the network's own client, soma-sdk, over gRPC: python examples/08_soma_sdk.py [GRPC_URL]

Needs 03 and `soma-eval serve --small-model --allow-http --allow-private-addresses`.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from soma_sdk import SomaClient

scoring_url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:9124"
request = json.loads(Path("example-files/competition.json").read_text())
# On the network these are what `await client.get_model_manifests(target)` returns.
models: list[Any] = [SimpleNamespace(**manifest) for manifest in request.pop("model_manifests")]


async def main() -> None:
    # Scoring needs no chain: nothing is asked of the first address.
    client = await SomaClient("http://127.0.0.1:9000", scoring_url=scoring_url)
    print(f"healthy: {await client.scoring_health()}")
    result = await client.score(models=models, **request)
    print(f"winner {result.winner}, loss {result.loss_score[0]:.6f}, distance {result.distance[0]:.6f}")


asyncio.run(main())
sys.stdout.flush()
os._exit(0)  # at once: threads of soma-sdk may abort a Python that takes its time to end
