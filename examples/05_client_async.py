"""Evaluate weights with several seeds at once with AsyncClient: python examples/05_client_async.py [URL]

Needs 03 and `soma-eval serve --small-model --allow-http --allow-private-addresses`.
"""

import asyncio
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from soma_eval import AsyncClient

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
folder = Path("example-files")
manifest = json.loads((folder / "competition.json").read_text())["model_manifests"][-1]
data = (folder / "held-out.txt").read_bytes()


async def main() -> None:
    async with AsyncClient(url) as client, asyncio.TaskGroup() as group:
        evaluations = [
            group.create_task(
                client.eval(
                    data=data,
                    weights_url=manifest["url"],
                    decryption_key=manifest["decryption_key"],
                    seed=seed,
                )
            )
            for seed in range(5)
        ]
    losses = [evaluation.result().loss for evaluation in evaluations]
    print(f"loss {mean(losses):.6f} +- {stdev(losses):.6f} over {len(losses)} seeds")


asyncio.run(main())
