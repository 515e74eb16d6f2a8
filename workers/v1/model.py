"""The V1 model, in reading order: a byte-level causal transformer with pre-norms and rotary positions.

B batch, T tokens, D embedding, H heads, K head width (D = H K), F hidden, V vocabulary, S slices.
Shapes stand as comments on the lines that make them.

This file is the differentiable model: what is trained, saved and loaded. Evaluation runs on the same
parameters by `forward.py`, which is leaner and follows the network's runner where the two differ.

Parameters carry the network's names and layouts, so a state dict is a weights file: norms have gamma and
beta, and linear weights lie as (in, out), so that `y = x @ W + b` (upstream: `models/src/v1/modules`).
"""

import math
import os
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import V1_LAYER_NORM_EPS, ModelConfig


class Linear(nn.Module):
    """y = x @ W + b, with W lying as (in, out)."""

    weight_scale = 1.0
    """What `weight` is to be multiplied by; other than 1 only where an evaluation holds it scaled, in parts."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.num_in = num_in
        bound = 1.0 / math.sqrt(num_in)  # torch's own initialisation of nn.Linear
        self.weight = nn.Parameter(torch.empty(num_in, num_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class LayerNorm(nn.Module):
    """d / sqrt(mean(d^2) + eps) * gamma + beta with d = x - mean(x): two passes, as upstream does it.

    torch's fused kernel sums squares instead: equal to rounding for ordinary x, NaN above about 1e19.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.beta = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / torch.sqrt(d.square().mean(-1, keepdim=True) + V1_LAYER_NORM_EPS) * self.gamma + self.beta


def rotary_angles(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles: positions [...] -> twice [..., K / 2], float32.

    `angle_i = float32(position) / timescale_i / scale_factor`, `timescale_i = max_wavelength^(2 i / K)`.
    Near position 10^6 one ulp of the timescale moves an angle by 0.06 rad, so it is made in float64 and
    rounded once, and the division is never turned into a product. The angle has upstream's bits; its
    cosine and sine are taken in float64, so that they are the same on every device.
    """
    K = config.head_dim
    exponents = 2.0 * torch.arange(K // 2, dtype=torch.float64) / K
    timescale = torch.pow(config.max_wavelength, exponents).float().to(positions.device)  # (K/2)
    angles = (positions.float().unsqueeze(-1) / timescale / config.scale_factor).double()  # (..., K/2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half-split: the halves a, b of a head become (a cos - b sin, b cos + a sin).

    x [B, T, H, K]; cos, sin [B, T, K / 2].
    """
    a, b = x.chunk(2, dim=-1)  # (B, T, H, K/2)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # (B, T, 1, K/2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions on query and key."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.embedding_dim
        self.num_heads, self.head_dim, self.dropout_rate = (
            config.num_heads,
            config.head_dim,
            config.dropout_rate,
        )
        self.query, self.key, self.value, self.output = (Linear(D, D) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = (self.num_heads, self.head_dim)
        q = rotate(self.query(x).unflatten(-1, heads), cos, sin).transpose(1, 2)  # (B, H, T, K)
        k = rotate(self.key(x).unflatten(-1, heads), cos, sin).transpose(1, 2)
        v = self.value(x).unflatten(-1, heads).transpose(1, 2)
        # Masks with minus infinity, as training does upstream's Python; `forward.py` keeps the runner's -1e4.
        dropout = self.dropout_rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)  # (B, H, T, K)
        y: Tensor = self.output(mixed.transpose(1, 2).flatten(-2))  # (B, T, D)
        return y


class FeedForward(nn.Module):
    """gelu(x Wi + bi) Wo + bo, with the exact GELU (erf)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.linear_inner = Linear(config.embedding_dim, config.pwff_hidden_dim)
        self.linear_outer = Linear(config.pwff_hidden_dim, config.embedding_dim)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.linear_inner(x)))  # (B, T, F)
        y: Tensor = self.linear_outer(hidden)  # (B, T, D)
        return y


class Layer(nn.Module):
    """x += attention(LN(x)); x += pwff(LN(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(config.embedding_dim)
        self.attention = Attention(config)
        self.norm_2 = LayerNorm(config.embedding_dim)
        self.pwff = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), cos, sin))
        y: Tensor = x + self.dropout(self.pwff(self.norm_2(x)))
        return y


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, cos, sin)
        return x


class Model(nn.Module):
    """The V1 model, to be trained, saved and loaded.

    Names and meaning are those of the published reference, `soma_models.v1.torch.Model`; files go both ways.
    """

    def __init__(self, config: ModelConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ModelConfig()
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.encoder = Encoder(config)
        self.final_norm = LayerNorm(config.embedding_dim)
        self.predictor = Linear(config.embedding_dim, config.vocab_size)

    def encode(self, input: Tensor, positions: Tensor) -> Tensor:
        """Representations of tokens: token ids and positions, both int [B, T] -> [B, T, D]."""
        cos, sin = rotary_angles(positions, self.config)  # (B, T, K/2)
        x: Tensor = self.final_norm(self.encoder(self.embedding(input), cos, sin))
        return x

    def predict(self, embeddings: Tensor) -> Tensor:
        """Logits of the next token: [B, T, D] -> [B, T, V]."""
        logits: Tensor = self.predictor(embeddings)
        return logits

    def forward(self, input: Tensor, positions: Tensor) -> Tensor:
        """Logits of the next token: token ids and positions, both int [B, T] -> [B, T, V]."""
        return self.predict(self.encode(input, positions))

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Write the weights as a safetensors file the network accepts."""
        Path(filename).write_bytes(self.save_bytes())

    def save_bytes(self) -> bytes:
        """The weights as a safetensors file the network accepts."""
        from safetensors.torch import save

        return save({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()})

    @classmethod
    def load(cls, filename: str | os.PathLike[str], config: ModelConfig | None = None) -> Self:
        """A model of this shape (the network's by default) with the weights of a file, ready to be trained.

        Raises `WeightsInvalid` for a file the network does not accept.
        """
        from .weights import load_tensors

        return cls._of_tensors(load_tensors(filename, config or ModelConfig()), config)

    @classmethod
    def load_bytes(cls, data: bytes, config: ModelConfig | None = None) -> Self:
        """As `load`, from the bytes of a file."""
        from .weights import load_tensors

        return cls._of_tensors(load_tensors(data, config or ModelConfig()), config)

    @classmethod
    def _of_tensors(cls, tensors: dict[str, Tensor], config: ModelConfig | None) -> Self:
        model = cls(config)
        model.load_state_dict(tensors)  # a copy: training must not write into a mapped file
        return model
