"""A small golden evaluation: a device that gives other numbers computes wrongly, and must not decide money.

The numbers are those of the network's canonical Rust runner (Burn 0.19.1, NdArray, float32) for the case
`small-short` of `tests/golden/cases.json`: 100 bytes of text, seed 1, the small model. Its weights are
draws of the network's own generator, so that the test carries no file.
"""

from collections.abc import Iterator

import arrgen
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from .config import ModelConfig
from .model_runner import ModelRunner, Precision

DATA = b"the quick brown fox jumps over a lazy dog while seven wizards mix black quartz potions. the quick brown "[
    :100
]
SEED = 1
WEIGHTS_SEED = 7
EXPECTED_LOSS = 0.60118324
# fmt: off
EXPECTED_EMBEDDING = (
    1.2143855, -1.7707163, -0.83857733, 0.86820847, -1.2657105, 0.17054385, -0.25456613, 0.6666933,
    0.9100681, -1.1763327, -0.551476, -0.35751012, 0.90276855, 0.4704614, 0.6643236, 0.22330572,
)
# fmt: on

TOLERANCE = {"float32": 5e-5, "float32-split": 5e-5, "tf32": 1e-2, "bf16": 5e-2}
"""Of the loss relative, of the embedding absolute (its components are near 1). Right devices differ from
each other by about 1e-6 in float32; the faster modes round by design."""


class SelfTest:
    """The test of one device, ready to be run again and again. Raises what a broken device raises."""

    def __init__(self, device: str, precision: Precision) -> None:
        self._runner = ModelRunner(ModelConfig.small(), device, precision)
        self._tolerance = TOLERANCE[precision]
        self._weights = golden_weights()

    def run(self) -> str | None:
        """None when the numbers come out right; else what came out."""
        output = self._runner.eval(DATA, self._weights, SEED)
        loss_error = abs(output.loss - EXPECTED_LOSS) / EXPECTED_LOSS
        embedding_error = float(np.abs(output.embedding.numpy() - np.array(EXPECTED_EMBEDDING)).max())
        if loss_error <= self._tolerance and embedding_error <= self._tolerance:  # false for NaN
            return None
        return (
            f"loss {output.loss:.8g} instead of {EXPECTED_LOSS:.8g}, embedding off by {embedding_error:.2g}"
        )


def golden_weights() -> bytes:
    """The case's weights, as a safetensors file."""
    return save(dict(_tensors()))


def _tensors() -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Name and value of every tensor; each is a draw whose seed follows from its place in the model."""
    config = ModelConfig.small()
    D, hidden, V = config.embedding_dim, config.pwff_hidden_dim, config.vocab_size
    for layer in range(config.num_layers):
        seed, prefix = WEIGHTS_SEED + layer, f"encoder.layers.{layer}."
        yield from _norm(prefix + "norm_1", D, seed + 1)
        for i, part in enumerate(("query", "key", "value", "output")):
            yield from _linear(f"{prefix}attention.{part}", D, D, seed + 3 + 2 * i)
        yield from _norm(prefix + "norm_2", D, seed + 11)
        yield from _linear(prefix + "pwff.linear_inner", D, hidden, seed + 13)
        yield from _linear(prefix + "pwff.linear_outer", hidden, D, seed + 15)
    yield "final_norm.gamma", _gamma(D, WEIGHTS_SEED + 100)
    yield "final_norm.beta", _bias(D, WEIGHTS_SEED + 200)
    yield "embedding.weight", _draw(WEIGHTS_SEED + 250, V, D)
    yield "predictor.weight", _matrix(D, V, WEIGHTS_SEED + 300)
    yield "predictor.bias", _bias(V, WEIGHTS_SEED + 400)


def _norm(name: str, dim: int, seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield name + ".gamma", _gamma(dim, seed)
    yield name + ".beta", _bias(dim, seed + 1)


def _linear(name: str, num_in: int, num_out: int, seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    yield name + ".weight", _matrix(num_in, num_out, seed)
    yield name + ".bias", _bias(num_out, seed + 1)


def _gamma(dim: int, seed: int) -> NDArray[np.float32]:
    return np.float32(1) + np.float32(0.1) * _draw(seed, dim)


def _bias(dim: int, seed: int) -> NDArray[np.float32]:
    return np.float32(0.1) * _draw(seed, dim)


def _matrix(num_in: int, num_out: int, seed: int) -> NDArray[np.float32]:
    return _draw(seed, num_in, num_out) * np.float32(1.0 / num_in**0.5)


def _draw(seed: int, *shape: int) -> NDArray[np.float32]:
    return np.asarray(arrgen.normal_array(seed, list(shape), 0.0, 1.0), dtype=np.float32)
