"""From training to a commit, as a trainer does it: the same loss at every step, and the network's client agrees."""

import base64
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from soma_models.v1 import torch as published
from soma_models.v1.tokenizer import tokenize
from soma_sdk import SomaClient

from tests.file_server import FileServer
from tests.live_service import LiveService
from tests.recipe import SMALL_CONFIG
from tests.service.cli.command import run_command
from workers.v1 import ModelConfig, ModelRunner

SEED = 42
NUM_STEPS = 12


def train(path: Path, text: bytes) -> None:
    """The published quickstart, in small."""
    torch.manual_seed(0)
    model = published.Model(published.ModelConfig(dropout_rate=0.0, **SMALL_CONFIG))
    model.train()
    sig_reg = published.SIGReg(published.SIGRegConfig())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    sequences = tokenize(text, max_seq_len=64)
    for step in range(NUM_STEPS):
        if step == NUM_STEPS // 2:
            model.save(path.with_name("halfway.safetensors"))
        batch = sequences[8 * step : 8 * (step + 1)]
        token_ids = torch.tensor([sequence.token_ids for sequence in batch])
        targets = torch.tensor([sequence.targets for sequence in batch])
        optimizer.zero_grad()
        loss, _ = published.compute_loss(model, sig_reg, token_ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.save(path)


def soma_eval(folder: Path, *arguments: str) -> Any:
    ran = run_command(folder, *arguments, "--small-model", "--json")
    assert ran.code == 0, ran.err
    return ran.json


@pytest.mark.slow
def test_the_same_loss_from_training_to_commit(
    tmp_path: Path, client: httpx.Client, service: LiveService, files: FileServer
) -> None:
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    held_out = text[-3000:]
    (tmp_path / "held-out.txt").write_bytes(held_out)
    train(tmp_path / "final.safetensors", text)

    score = ("score", "--data", "held-out.txt", "--seed", str(SEED), "--device", "cpu")
    sheet = soma_eval(tmp_path, *score, "--weights", "*.safetensors")
    final, halfway = sheet["models"]
    assert (final["weights"], sheet["winner"]) == ("final.safetensors", 0)
    assert final["loss"] < halfway["loss"]

    soma_eval(tmp_path, *score, "final.safetensors", "--embedding-out", "embedding.json")
    to_commit = json.loads((tmp_path / "embedding.json").read_text())["embedding"]
    assert np.array_equal(np.float32(to_commit), np.float32(final["embedding"]))
    encrypt = ("encrypt", "final.safetensors", "-o", "final.enc", "--key-file", "final.key")
    sealed = soma_eval(tmp_path, *encrypt, "--embedding", "embedding.json")
    again = soma_eval(tmp_path, *score, "--weights", "final.enc", "--key-file", "final.key")
    assert again["models"][0]["loss"] == final["loss"]

    key, content = (tmp_path / "final.key").read_text().strip(), (tmp_path / "final.enc").read_bytes()
    assert SomaClient.commitment(content) == sealed["checksum"]
    assert SomaClient.decrypt_weights(content, key) == (tmp_path / "final.safetensors").read_bytes()
    url = files.publish("final.enc", content)
    promise = ("--key-file", "final.key", "--checksum", sealed["checksum"], "--size", str(sealed["size"]))
    closed = ("--allow-http", "--allow-private-addresses", "--data-dir", "blobs")
    assert soma_eval(tmp_path, "check", url, *promise, *closed, "--full")["accepted"]

    answer = client.post(
        "/eval",
        json={
            "data": base64.b64encode(held_out).decode(),
            "weights_url": url,
            "weights_checksum": sealed["checksum"],
            "weights_size": sealed["size"],
            "decryption_key": key,
            "seed": SEED,
        },
    ).json()
    direct = ModelRunner(ModelConfig.small()).eval(held_out, tmp_path / "final.safetensors", SEED)
    assert answer["loss"] == final["loss"] == pytest.approx(direct.loss, rel=1e-6)
    assert np.allclose(answer["embedding"], final["embedding"], atol=1e-6)
