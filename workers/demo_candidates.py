"""Makes the demo's two candidates: the small model as initialised, and the same after some seconds of training.

Run as a process of its own, `python -m workers.demo_candidates FOLDER SECONDS < text`, since the
service itself never loads torch. Writes `random.safetensors` and `trained.safetensors`.
"""

import sys
import time
from pathlib import Path

import torch

from workers.v1 import Model, ModelConfig, SIGReg, SIGRegConfig, compute_loss, tokenize

_SEQUENCE_LENGTH = 128
_BATCH_SIZE = 16
_LEARNING_RATE = 1e-2
_MIN_STEPS = 40
"""However slow the machine is."""


def make_candidates(folder: Path, seconds: float, text: bytes) -> int:
    """Write both candidates; returns how many steps of training the second has had."""
    # Enough for so small a model; threads that wait for each other crawl on a busy machine.
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model(ModelConfig.small())
    model.save(folder / "random.safetensors")
    num_steps = _train(model, text, seconds)
    model.save(folder / "trained.safetensors")
    return num_steps


def _train(model: Model, text: bytes, seconds: float) -> int:
    sequences = tokenize(text, max_seq_len=_SEQUENCE_LENGTH)
    token_ids = torch.tensor([sequence.token_ids for sequence in sequences])
    targets = torch.tensor([sequence.targets for sequence in sequences])
    sig_reg = SIGReg(SIGRegConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    model.train()
    num_steps, end = 0, time.monotonic() + seconds
    while num_steps < _MIN_STEPS or time.monotonic() < end:
        rows = torch.randint(len(sequences), (_BATCH_SIZE,))
        loss, _embedding = compute_loss(model, sig_reg, token_ids[rows], targets[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        num_steps += 1
    return num_steps


if __name__ == "__main__":
    steps = make_candidates(Path(sys.argv[1]), float(sys.argv[2]), sys.stdin.buffer.read())
    sys.stdout.write(f"{steps}\n")
