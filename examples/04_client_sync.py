"""Evaluate weights and run a competition with Client: python examples/04_client_sync.py [URL]

Needs 03 and `soma-eval serve --small-model --allow-http --allow-private-addresses`.
"""

import json
import os
import sys
from pathlib import Path

from soma_eval import Client, ModelManifest
from soma_eval.errors import DecryptionFailed, SubmissionError, TemporaryError

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
folder = Path("example-files")
request = json.loads((folder / "competition.json").read_text())
manifests = [ModelManifest(**manifest) for manifest in request.pop("model_manifests")]

with Client(url, api_key=os.environ.get("SOMA_EVAL_API_KEY")) as client:
    print(f"precision {client.info().precision}, device {client.ready().devices[0].device_name}")

    best = manifests[-1]
    data = (folder / "held-out.txt").read_bytes()
    response = client.eval(data=data, weights_url=best.url, decryption_key=best.decryption_key, seed=42)
    print(f"loss {response.loss:.6f}, {len(response.embedding)} numbers in the embedding")

    competition = client.score(model_manifests=manifests, **request)
    for index, model in enumerate(competition.models):
        print(f"model {index}: loss {model.loss}, error {model.error and model.error.code}")
    print(f"winner {competition.winner}, distance {competition.distance[0]:.6f}")

    # Each error code has its exception class; those of a kind have a common base.
    try:
        client.eval(data=data, weights_url=best.url, decryption_key=bytes(32), seed=42)
    except DecryptionFailed as error:
        print(f"expected: {error}; at fault: {error.fault}")
    except SubmissionError as error:
        print(f"the data or the weights are at fault: {error}")
    except TemporaryError as error:
        print(f"some tries have failed, a later one may succeed: {error}")
