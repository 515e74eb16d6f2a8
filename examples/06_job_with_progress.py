"""Run a competition as a job and follow its progress: python examples/06_job_with_progress.py [URL]

Needs 03 and `soma-eval serve --small-model --allow-http --allow-private-addresses`.
"""

import json
import sys
from pathlib import Path

from soma_eval import Client, ModelManifest

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
request = json.loads(Path("example-files/competition.json").read_text())
manifests = [ModelManifest(**manifest) for manifest in request.pop("model_manifests")]

with Client(url) as client:
    job = client.submit_score(model_manifests=manifests, **request)
    print(f"job {job.id}: client.job() finds it from elsewhere, client.cancel() stops it")

    # The connection may break on the way: the client connects again, and the job goes on.
    for update in client.follow(job):
        models = [
            f"{model.phase} {model.bytes_done or 0} bytes, {model.batches_done or 0} batches"
            for model in update.progress.models
        ]
        print(f"{update.state}: {'; '.join(models)}")

    result = client.result(job)  # at once, for the job has ended; raises its error where it has failed
    print(f"winner {result.winner}, loss {result.loss_score[0]:.6f}")
