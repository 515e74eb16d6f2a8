"""An evaluation written once more, in numpy and float64, from the network's formulas: for shapes nobody has numbers of.

Nothing of `workers.v1` is used but the network's own generator of noise, which has a package of its own.
"""

from collections.abc import Mapping
from math import erf

import arrgen
import numpy as np
from numpy.typing import NDArray

PAD, EOS = 256, 257
Array = NDArray[np.float64]
_erf = np.vectorize(erf)


def evaluate(
    weights: Mapping[str, NDArray[np.float32]],
    data: bytes,
    seed: int,
    *,
    num_layers: int,
    num_heads: int,
    max_seq_len: int,
    batch_size: int,
    slices: int,
) -> tuple[float, Array]:
    """Loss and embedding [D]."""
    w = {name: tensor.astype(np.float64) for name, tensor in weights.items()}
    losses, embeddings = [], []
    chunks = [data[start : start + max_seq_len] for start in range(0, len(data), max_seq_len)]
    for batch, first in enumerate(range(0, len(chunks), batch_size)):
        rows = [
            _sequence(w, chunk, (first + i) * max_seq_len, num_layers, num_heads, max_seq_len)
            for i, chunk in enumerate(chunks[first : first + batch_size])
        ]
        r = np.concatenate([row[0] for row in rows])
        cross_entropy = np.concatenate([row[1] for row in rows]).mean()
        losses.append(cross_entropy + 0.02 * _sig_reg(r, seed + batch, slices))
        embeddings.append(r.mean(axis=0))
    return float(np.mean(losses)), np.mean(embeddings, axis=0)


def _sequence(
    w: Mapping[str, Array], chunk: bytes, start: int, num_layers: int, num_heads: int, T: int
) -> tuple[Array, Array]:
    tokens = np.full(T, PAD)
    tokens[: len(chunk)] = list(chunk)
    if len(chunk) < T:
        tokens[len(chunk)] = EOS
    positions = start + np.minimum(np.arange(T), len(chunk))
    x = w["embedding.weight"][tokens]
    for i in range(num_layers):
        layer = {
            name.removeprefix(f"encoder.layers.{i}."): tensor
            for name, tensor in w.items()
            if name.startswith(f"encoder.layers.{i}.")
        }
        x = x + _attention(layer, _norm(x, layer, "norm_1"), positions, num_heads)
        h = _linear(_norm(x, layer, "norm_2"), layer, "pwff.linear_inner")
        h = h * 0.5 * (1 + _erf(h / np.sqrt(2)))
        x = x + _linear(h, layer, "pwff.linear_outer")
    r = _norm(x, w, "final_norm")
    logits = _linear(r, w, "predictor")
    log_sum = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    targets = np.append(tokens[1:], PAD)
    losses = log_sum - logits[np.arange(T), targets]
    return r, np.where(targets == PAD, 0.0, losses)


def _attention(layer: Mapping[str, Array], x: Array, positions: NDArray[np.int64], num_heads: int) -> Array:
    T, D = x.shape
    K = D // num_heads
    q, k, v = (_linear(x, layer, f"attention.{name}") for name in ("query", "key", "value"))
    angles = positions[:, None] / 10_000.0 ** (2 * np.arange(K // 2) / K)
    cos, sin = np.cos(angles), np.sin(angles)
    mixed = np.empty((T, D))
    for head in range(num_heads):
        part = slice(head * K, (head + 1) * K)
        rotated = []
        for each in (q[:, part], k[:, part]):
            a, b = each[:, : K // 2], each[:, K // 2 :]
            rotated.append(np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1))
        for begin in range(0, T, 512):  # what lies in the future has weight 0 for such weights
            end = min(begin + 512, T)
            scores = rotated[0][begin:end] @ rotated[1][:end].T / np.sqrt(K)
            scores = np.where(np.arange(end) > np.arange(begin, end)[:, None], -np.inf, scores)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            mixed[begin:end, part] = weights / weights.sum(1, keepdims=True) @ v[:end, part]
    return _linear(mixed, layer, "attention.output")


def _sig_reg(r: Array, seed: int, slices: int) -> float:
    noise = np.asarray(arrgen.normal_array(seed % 2**64, [r.shape[1], slices], 0.0, 1.0), dtype=np.float64)
    z = r @ (noise / np.linalg.norm(noise, axis=0))
    total = np.zeros(len(r))
    for i in range(17):
        t = i * 3 / 16
        phi = np.exp(-(t**2) / 2)
        err = (np.cos(z * t).mean(1) - phi) ** 2 + np.sin(z * t).mean(1) ** 2
        total += err * phi * (3 / 16 if i in (0, 16) else 6 / 16)
    return float(total.mean() * slices)


def _norm(x: Array, w: Mapping[str, Array], name: str) -> Array:
    d = x - x.mean(1, keepdims=True)
    variance = (d * d).mean(1, keepdims=True)
    normed: Array = d / np.sqrt(variance + 1e-5) * w[f"{name}.gamma"] + w[f"{name}.beta"]
    return normed


def _linear(x: Array, w: Mapping[str, Array], name: str) -> Array:
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]
