"""The judge of every precision: one batch in float64 on the device, written once more from the network's formulas.

B batch, T tokens, D embedding, H heads, K head width, V vocabulary. Of the project's evaluation it takes the
tokens, the rotary angles (float32 by definition), the noise and the parameters, and no operation of the forward pass.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from workers.v1 import Model, tokenizer
from workers.v1.model import Layer, LayerNorm, Linear, rotary_angles
from workers.v1.noise import batch_noise

PAD, EPS, MASKED_SCORE, NUM_POINTS, STEP = 256, 1e-5, -1e4, 17, 3 / 16


@dataclass(frozen=True)
class Exact:
    """The batch's numbers, in float64."""

    cross_entropy: float
    sig_reg: float
    token_cross_entropy: NDArray[np.float64]
    """[B, T]"""
    embedding: NDArray[np.float64]
    """[D]"""

    @property
    def loss(self) -> float:
        return self.cross_entropy + 0.02 * self.sig_reg


@torch.inference_mode()
def evaluate(model: Model, data: bytes, seed: int, max_seq_len: int) -> Exact:
    """The first batch, which is all of the data; the model's float32 parameters are widened one by one."""
    device = model.embedding.weight.device
    num_sequences = tokenizer.num_sequences(len(data), max_seq_len)
    batch = tokenizer.tokenize_range(data, range(num_sequences), max_seq_len)
    ids, targets, positions = (
        torch.from_numpy(part).to(device) for part in (batch.token_ids, batch.targets, batch.pos_ids)
    )
    cos, sin = (
        part.double().unsqueeze(1) for part in rotary_angles(positions, model.config)
    )  # (B, 1, T, K/2)
    x = model.embedding.weight.double()[ids]  # (B, T, D)
    for layer in model.encoder.layers:
        assert isinstance(layer, Layer)
        _add_attention(x, layer, cos, sin)
        normed = _norm(x, layer.norm_2)
        for row in range(len(x)):  # one sequence at a time: the hidden rows are four times as wide
            x[row] += _linear(F.gelu(_linear(normed[row], layer.pwff.linear_inner)), layer.pwff.linear_outer)
    r = _norm(x, model.final_norm)
    nats = _cross_entropy(_linear(r, model.predictor), targets)  # (B, T)
    noise = torch.from_numpy(batch_noise(seed, 0, model.config.embedding_dim)).to(device).double()
    sig_reg = _sig_reg(r.flatten(0, 1), noise)
    embedding = r.mean(1).mean(0)
    return Exact(float(nats.mean()), sig_reg, nats.cpu().numpy(), embedding.cpu().numpy())


def _add_attention(x: Tensor, layer: Layer, cos: Tensor, sin: Tensor) -> None:
    """x += attention(norm(x)), a sequence at a time, the future filled with -1e4 as the network does."""
    B, T, D = x.shape
    attention = layer.attention
    K = attention.head_dim
    future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
    normed = _norm(x, layer.norm_1)
    for row in range(B):
        q, k, v = (
            _linear(normed[row], part).view(T, -1, K).transpose(0, 1)  # (H, T, K)
            for part in (attention.query, attention.key, attention.value)
        )
        scores = _rotated(q, cos[row], sin[row]) @ _rotated(k, cos[row], sin[row]).mT / K**0.5  # (H, T, T)
        weights = torch.softmax(scores.masked_fill_(future, MASKED_SCORE), -1)
        x[row] += _linear((weights @ v).transpose(0, 1).reshape(T, D), attention.output)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def _norm(x: Tensor, norm: LayerNorm) -> Tensor:
    d = x - x.mean(-1, keepdim=True)
    return d / (d.square().mean(-1, keepdim=True) + EPS).sqrt() * norm.gamma.double() + norm.beta.double()


def _linear(x: Tensor, layer: Linear) -> Tensor:
    return x @ layer.weight.double() + layer.bias.double()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """[B, T, V], [B, T] -> [B, T]; 0 where the target is padding."""
    nats = -torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return nats.masked_fill(targets == PAD, 0.0)


def _sig_reg(r: Tensor, noise: Tensor) -> float:
    """[N, D], [D, S] -> the mean over all tokens, without the coefficient."""
    z = r @ (noise / noise.norm(dim=0))  # (N, S)
    total = torch.zeros(len(r), dtype=torch.float64, device=r.device)
    for i in range(NUM_POINTS):
        t = i * STEP
        phi = float(np.exp(-(t**2) / 2))
        err = ((z * t).cos().mean(1) - phi).square() + (z * t).sin().mean(1).square()
        total += err * phi * (STEP if i in (0, NUM_POINTS - 1) else 2 * STEP)
    return float(total.mean()) * noise.shape[1]
