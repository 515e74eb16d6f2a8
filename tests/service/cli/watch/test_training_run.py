"""A training run of the published package beside a watch that is a process of its own."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from soma_models.v1 import torch as published
from soma_models.v1.tokenizer import tokenize

from tests.recipe import SMALL_CONFIG
from tests.service.cli.command import SECONDS, SMALL, run_command, start_command

NUM_CHECKPOINTS = 4
STEPS_BETWEEN = 8


def train(folder: Path, text: bytes) -> Iterator[Path]:
    """Saves a checkpoint now and then, as its own `save` does, and gives its path."""
    torch.manual_seed(0)
    model = published.Model(published.ModelConfig(dropout_rate=0.0, **SMALL_CONFIG))
    model.train()
    sig_reg = published.SIGReg(published.SIGRegConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    sequences = tokenize(text, max_seq_len=64)
    for step in range(1, NUM_CHECKPOINTS * STEPS_BETWEEN + 1):
        batch = sequences[8 * step : 8 * (step + 1)]
        token_ids = torch.tensor([sequence.token_ids for sequence in batch])
        targets = torch.tensor([sequence.targets for sequence in batch])
        optimizer.zero_grad()
        loss, _ = published.compute_loss(model, sig_reg, token_ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % STEPS_BETWEEN == 0:
            path = folder / "checkpoints" / f"step-{step}.safetensors"
            model.save(path)
            yield path


@pytest.mark.slow
def test_every_checkpoint_of_a_training_run_is_scored_as_it_is_saved(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    (folder / "held-out.txt").write_bytes(text[-3000:])
    asked = ("checkpoints", "--data", "held-out.txt", "--seeds", "2", *SMALL, "--json")
    watch = start_command(
        folder, "watch", *asked, "--report", "report.html", "--on-best", "cat >> best.jsonl"
    )
    rows = []
    try:
        assert watch.stdout is not None
        for path in train(folder, text):
            row = json.loads(watch.stdout.readline())
            assert (row["weights"], row["error"]) == (f"checkpoints/{path.name}", None)
            assert not row["result_cached"]
            rows.append(row)
        watch.send_signal(signal.SIGTERM)
        watch.communicate(timeout=SECONDS)
    finally:
        watch.kill()
    assert watch.returncode == 128 + signal.SIGTERM
    losses = [row["loss"] for row in rows]
    assert losses[-1] < losses[0]
    assert "Along training" in (folder / "report.html").read_text()
    announced = [json.loads(line)["weights"] for line in (folder / "best.jsonl").read_text().splitlines()]
    assert announced
    assert announced[0] != rows[0]["weights"]

    again = run_command(folder, "watch", *asked, "--once")
    kept = [json.loads(line) for line in again.out.splitlines()]
    assert again.code == 0
    assert all(row["result_cached"] for row in kept)
    assert [row["loss"] for row in kept] == sorted(losses)
