"""One fresh process of `benchmarks.speed`: loads weights, evaluates data, says what happened as JSON lines.

    python -m benchmarks.speed_peer '{"peer": "soma-eval", ...}'

Nothing is imported here before the peer's own package is, so that the time of its imports is its own.
The peers are soma-eval, this package, and soma-models, the published one, used the way it is published;
`reading` does nothing but bring the file's bytes into memory of its own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.types import Precision

SEED = 1
WARM_SECONDS = 2.0
RATE_SECONDS = 2.0


def main() -> None:
    task: dict[str, Any] = json.loads(sys.argv[1])
    data, key = Path(task["data"]).read_bytes(), bytes.fromhex(task["key"]) if task["key"] else None
    start = time.perf_counter()
    device: str = task["device"]
    load = PEERS[task["peer"]](task["config"], device, task["precision"])
    imported = time.perf_counter()
    evaluate = load(task["weights"], key)
    ready = time.perf_counter()
    loss = evaluate(data)
    say(
        event="loss",
        loss=loss,
        import_seconds=imported - start,
        ready_seconds=ready - imported,
        first_seconds=time.perf_counter() - ready,
    )
    warm: list[float] = []
    while task["warm"] and sum(warm) < WARM_SECONDS:
        start = time.perf_counter()
        evaluate(data)
        warm.append(time.perf_counter() - start)
    peak = peak_bytes(device)
    num_rows = min(len(data), 1024 if device == "cpu" else 16_384)
    rate = matrix_rate(task["config"], num_rows, device) if task["warm"] else None
    say(
        event="done",
        warm_seconds=sorted(warm)[len(warm) // 2] if warm else None,
        peak_bytes=peak,
        rate=rate,
    )


def say(**event: object) -> None:
    print(json.dumps(event), flush=True)


def peak_bytes(device: str) -> int:
    """Of the process; on a GPU what torch held there."""
    if device == "cpu" or "torch" not in sys.modules:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    return int(torch.cuda.max_memory_allocated(device))


Evaluate = Callable[[bytes], float]
Load = Callable[[str, bytes | None], Evaluate]


def soma_eval(config: dict[str, int], device: str, precision: "Precision") -> Load:
    from workers.v1 import ModelConfig, ModelRunner, running_mean

    runner = ModelRunner(ModelConfig(**config), device, precision)

    def load(path: str, key: bytes | None) -> Evaluate:
        model = runner.load(path, key)

        def evaluate(data: bytes) -> float:
            return running_mean(
                runner.eval_batches(model, data, SEED, range(runner.num_batches(len(data))))
            ).loss

        return evaluate

    return load


def soma_models(config: dict[str, int], device: str, precision: "Precision") -> Load:
    """Model.load, eval mode, and compute_loss on batches of 16 without gradients; decrypted by soma-sdk.

    In float32, as it is published, or in TF32.
    """
    import torch
    from soma_models.v1 import tokenizer
    from soma_models.v1 import torch as published

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")

    def load(path: str, key: bytes | None) -> Evaluate:
        shape = published.ModelConfig(dropout_rate=0.0, **config)
        if key is None:
            model = published.Model.load(path, shape)
        else:
            from soma_sdk import SomaClient

            model = published.Model.load_bytes(
                SomaClient.decrypt_weights(Path(path).read_bytes(), key), shape
            )
        model.eval().to(device)
        sig_reg = published.SIGReg(published.SIGRegConfig()).to(device)

        @torch.no_grad()
        def evaluate(data: bytes) -> float:
            torch.manual_seed(SEED)
            sequences, losses = tokenizer.tokenize(data), []
            for first in range(0, len(sequences), 16):
                batch = sequences[first : first + 16]
                token_ids, targets = (
                    torch.tensor([getattr(sequence, field) for sequence in batch], device=device)
                    for field in ("token_ids", "targets")
                )
                losses.append(published.compute_loss(model, sig_reg, token_ids, targets)[0].item())
            return sum(losses) / len(losses)

        return evaluate

    return load


def reading(config: dict[str, int], device: str, precision: "Precision") -> Load:
    """The file's bytes, as they are, into one block of memory: two mebibytes at a time, a thread for each core."""
    import os
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    piece_bytes = 2 << 20

    def load(path: str, key: bytes | None) -> Evaluate:
        block = np.empty(os.path.getsize(path), dtype=np.uint8).data
        with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(os.cpu_count()) as threads:

            def read(start: int) -> None:
                end = min(start + piece_bytes, len(block))
                while start < end:
                    start += os.preadv(file.fileno(), [block[start:end]], start)

            list(threads.map(read, range(0, len(block), piece_bytes)))
        return lambda data: float(block[-1])

    return load


PEERS: dict[str, Callable[[dict[str, int], str, "Precision"], Load]] = {
    "soma-eval": soma_eval,
    "soma-models": soma_models,
    "reading": reading,
}


def matrix_rate(config: dict[str, int], num_rows: int, device: str) -> float:
    """Operations a second of torch's float32 product alone, in the shapes of a layer, on fresh matrices.

    On a GPU in TF32 where the peer has set it so.
    """
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    D, F = config["embedding_dim"], config["pwff_hidden_dim"]
    layer = [(D, D)] * 4 + [(D, F), (F, D)]
    with torch.device(device):
        products = [(torch.randn(num_rows, n), torch.randn(n, m), torch.empty(num_rows, m)) for n, m in layer]
    operations, seconds = 0.0, 0.0
    for x, weight, out in products:
        torch.mm(x, weight, out=out)
    wait()
    while seconds < RATE_SECONDS:
        start = time.perf_counter()
        for x, weight, out in products:
            torch.mm(x, weight, out=out)
        wait()
        seconds += time.perf_counter() - start
        operations += sum(2.0 * num_rows * n * m for n, m in layer)
    return operations / seconds


if __name__ == "__main__":
    main()
