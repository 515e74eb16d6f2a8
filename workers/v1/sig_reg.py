"""SIGReg: how far representations are from a standard normal, seen through random directions.

B batch, T tokens, D embedding, S slices, P points of t without 0.

For each token and each t: `err = (mean over slices of cos(z t) - phi)^2 + (mean over slices of sin(z t))^2`
with `z = r @ A` and `phi = exp(-t^2 / 2)`, the characteristic function of the normal; then the trapezoid
sum over t, weighted with phi (upstream: `models/src/v1/modules/sig_reg.rs`).
"""

import math

import torch
from torch import Tensor, nn

from .config import SIGRegConfig


class SIGReg(nn.Module):
    """The regulariser of training; `per_token` is what evaluation shares with it."""

    def __init__(self, config: SIGRegConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SIGRegConfig()
        self.step = config.t_max / (config.points - 1)  # 3 / 16 on the network: exact in float32
        t = torch.arange(config.points, dtype=torch.float64) * self.step
        weights = torch.full((config.points,), 2.0 * self.step, dtype=torch.float64)
        weights[0] = weights[-1] = self.step
        phi = torch.exp(-0.5 * t.square())
        # t = 0 is left out: there cos = phi = 1 and sin = 0 whatever z is, so its error is 0.
        self.register_buffer("phi", phi[1:].float(), persistent=False)  # (P)
        self.register_buffer("weights", (weights * phi)[1:].float(), persistent=False)  # (P)
        self.phi: Tensor
        self.weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The regulariser of representations [..., D], times the coefficient, with fresh noise of torch's.

        As the published reference does it in training. Evaluation takes its noise from `noise.batch_noise`.
        """
        noise = torch.randn(x.shape[-1], self.config.slices, dtype=x.dtype, device=x.device)
        return self.compute(x, noise)

    def compute(self, x: Tensor, noise: Tensor) -> Tensor:
        """The regulariser of representations [..., D], times the coefficient; noise [D, S]. A scalar."""
        return self.per_token(x @ unit_columns(noise)).mean() * self.config.coefficient

    def per_token(self, z: Tensor) -> Tensor:
        """The weighted error of each token, [..., S] -> [...], without the coefficient.

        z are the projections. The error is multiplied with the number of slices, where the number of
        samples would belong: this looks like a bug upstream, and is kept.
        """
        cos_mean, sin_mean = mean_powers(z * self.step, self.config.points - 1)  # (..., P) each
        err = (cos_mean - self.phi).square() + sin_mean.square()  # (..., P)
        return (err @ self.weights) * z.shape[-1]


def unit_columns(noise: Tensor) -> Tensor:
    """Directions [D, S]: each column divided by its 2-norm."""
    return noise / torch.linalg.vector_norm(noise, dim=0)


def mean_powers(theta: Tensor, highest: int) -> tuple[Tensor, Tensor]:
    """Means over the last axis of cos(k theta) and of sin(k theta), k = 1..highest: [..., S] -> [..., highest].

    Nothing of size [..., S, highest] is made. With u = exp(i theta) and k = a + A b, the mean of u^k is the
    inner product of u^a and (u^A)^b over the slices. So for k = 1..16 only u, u^2, u^3, u^4 and u^4, u^8,
    u^12 are needed, each a product of few others, and one small matrix product per token does the rest.
    Against float64, the error of a mean is below 1e-6.
    """
    A = math.isqrt(highest - 1) + 1
    num_blocks = -(-highest // A)
    low = _powers(torch.cos(theta), torch.sin(theta), A)  # u^1 .. u^A
    high = [(torch.ones_like(theta), torch.zeros_like(theta))]  # (u^A)^0 ..
    if num_blocks > 1:
        high += _powers(*low[-1], num_blocks - 1)
    left = torch.stack([part for power in low for part in power], dim=-2)  # (..., 2A, S)
    right = torch.stack([part for power in high for part in power], dim=-2)  # (..., 2 blocks, S)
    products = (left @ right.transpose(-2, -1)) / theta.shape[-1]  # (..., 2A, 2 blocks)
    products = products.unflatten(-1, (num_blocks, 2)).unflatten(-3, (A, 2))  # (..., A, 2, blocks, 2)
    cos_cos, cos_sin = products[..., 0, :, 0], products[..., 0, :, 1]  # (..., A, blocks)
    sin_cos, sin_sin = products[..., 1, :, 0], products[..., 1, :, 1]
    cos_mean = (cos_cos - sin_sin).transpose(-2, -1).flatten(-2)  # k = 1, 2, 3 ... in order
    sin_mean = (sin_cos + cos_sin).transpose(-2, -1).flatten(-2)
    return cos_mean[..., :highest], sin_mean[..., :highest]


def _powers(cos: Tensor, sin: Tensor, highest: int) -> list[tuple[Tensor, Tensor]]:
    """u, u^2 .. u^highest of u = cos + i sin, each from the product of two about half as high."""
    powers = [(cos, sin)]
    for k in range(2, highest + 1):
        (c, s), (d, e) = powers[k // 2 - 1], powers[k - k // 2 - 1]
        powers.append((c * d - s * e, c * e + s * d))
    return powers
