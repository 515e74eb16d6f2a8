"""Our losses beside those of the Rust runner and of the published Python package, soma-models.

    python -m benchmarks.agreement

One row per data size. The Rust runner's numbers are the golden ones (tests/golden/cases.json), each case
with its own weights and seed. soma-models is asked the way it is published: its tokenizer, its model and
its compute_loss, which draws its own noise, counts positions from 0 in every sequence, and divides the
cross-entropy by the targets that are not PAD.
"""

import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import torch
from rich.console import Console
from rich.table import Table
from soma_models.v1 import tokenizer as published_tokenizer
from soma_models.v1 import torch as published

from tests.recipe import GoldenCase, golden_cases, make_data, make_weights, safetensors_bytes
from workers.v1 import ModelConfig, ModelRunner

CASES = ["small-1-byte", "small-short", "small-1024", "small-zeros", "medium-3000", "small-one-batch"]
"""1, 100, 1024 and 3000 bytes, on the network's small model but for medium-3000; and one full batch."""


def main() -> None:
    table = Table(title="loss of one evaluation")
    for heading in ("case", "bytes", "soma-eval", "Rust", "rel. diff", "soma-models", "our ms", "their ms"):
        table.add_column(heading, justify="left" if heading == "case" else "right", no_wrap=True)
    for name in CASES:
        table.add_row(*row(golden_cases()[name]))
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    console.print("rel. diff: between soma-eval and the Rust runner; ms: one evaluation, the weights loaded.")


def row(case: GoldenCase) -> list[str]:
    """The case's line of the table."""
    weights, data = safetensors_bytes(make_weights(case.config, case.weights)), make_data(case.data)
    runner = ModelRunner(ModelConfig(**case.config), max_seq_len=case.max_seq_len, batch_size=case.batch_size)
    ours, our_seconds = timed(lambda: runner.eval(data, weights, case.seed).loss)
    theirs, their_seconds = timed(published_loss(case, weights, data))
    return [
        case.name,
        str(len(data)),
        f"{ours:.6f}",
        f"{case.loss:.6f}",
        f"{abs(ours - case.loss) / case.loss:.0e}",
        f"{theirs:.6f}",
        f"{our_seconds * 1e3:.0f}",
        f"{their_seconds * 1e3:.0f}",
    ]


def published_loss(case: GoldenCase, weights: bytes, data: bytes) -> Callable[[], float]:
    """soma-models on the same weights and data: the mean of its losses of the batches, loading not counted."""
    config = published.ModelConfig(dropout_rate=0.0, **case.config)
    model = published.Model.load_bytes(weights, config).eval()
    sig_reg = published.SIGReg(published.SIGRegConfig())
    sequences = published_tokenizer.tokenize(data, case.max_seq_len)

    def loss() -> float:
        torch.manual_seed(case.seed)
        losses = []
        for start in range(0, len(sequences), case.batch_size):
            batch = sequences[start : start + case.batch_size]
            token_ids, targets = (
                torch.tensor([getattr(sequence, field) for sequence in batch])
                for field in ("token_ids", "targets")
            )
            with torch.inference_mode():
                losses.append(published.compute_loss(model, sig_reg, token_ids, targets)[0].item())
        return sum(losses) / len(losses)

    return loss


def timed(evaluate: Callable[[], float]) -> tuple[float, float]:
    """The result, and the seconds of the fastest of three runs after a first one."""
    loss = evaluate()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        loss = evaluate()
        seconds.append(time.perf_counter() - start)
    return loss, min(seconds)


if __name__ == "__main__":
    main()
