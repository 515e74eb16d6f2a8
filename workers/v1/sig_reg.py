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
        regulariser: Tensor = self.per_token(x @ unit_columns(noise)).mean()
        return regulariser * self.config.coefficient

    def per_token(self, z: Tensor) -> Tensor:
        """The weighted error of each token, [..., S] -> [...], without the coefficient.

        z are the projections. The error is multiplied by the number of slices, where the number of
        samples would belong: this looks like a bug upstream, and is kept.
        """
        mean = mean_powers(z * self.step, self.config.points - 1)  # (..., P), complex: cos + i sin
        err = (mean.real - self.phi).square() + mean.imag.square()  # (..., P)
        weighted: Tensor = (err @ self.weights) * z.shape[-1]
        return weighted


def unit_columns(noise: Tensor) -> Tensor:
    """Directions [D, S]: each column divided by its 2-norm."""
    directions: Tensor = noise / torch.linalg.vector_norm(noise, dim=0)
    return directions


def mean_powers(theta: Tensor, highest: int) -> Tensor:
    """Means over the last axis of exp(i k theta), k = 1 .. highest: [..., S] -> complex [..., highest].

    Nothing of size [..., highest, S] is made. With k = a + b, b a multiple of A and a = 1 .. A, the sums that
    make cos(k theta) of those of a and b are inner products over the slices. So for 16 powers only six
    cosines and six sines are taken, of 1, 2, 3, 4, 8 and 12 theta, and small matrix products do the rest.
    The error of a mean is about 1e-7 against float64, that of taking 16 cosines and sines each.
    """
    A = math.isqrt(highest - 1) + 1
    multiples = [*range(1, A + 1), *range(2 * A, highest, A)]
    angles = theta.unsqueeze(-2) * theta.new_tensor(multiples).unsqueeze(-1)  # (..., M, S)
    cos, sin = torch.cos(angles), torch.sin(angles)
    cos_a, sin_a = cos[..., :A, :].mT, sin[..., :A, :].mT  # (..., S, A): a = 1 .. A
    cos_b, sin_b = cos[..., A - 1 :, :], sin[..., A - 1 :, :]  # (..., M - A + 1, S): b = A, 2 A ..
    real = torch.cat([cos_a.sum(-2, keepdim=True), cos_b @ cos_a - sin_b @ sin_a], dim=-2)
    imag = torch.cat([sin_a.sum(-2, keepdim=True), cos_b @ sin_a + sin_b @ cos_a], dim=-2)
    sums = torch.complex(real.flatten(-2), imag.flatten(-2))  # k = 1, 2, 3 ... in order
    return sums[..., :highest] / theta.shape[-1]
