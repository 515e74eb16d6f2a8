"""Known evaluations, one small and one large: a device that gives other numbers must not be used.

The small one's numbers are those of the network's canonical Rust runner (Burn 0.19.1, NdArray, float32) for the case
`small-short` of `tests/golden/cases.json`: 100 bytes of text, seed 1, the small model. Its weights are
draws of the network's own generator, so that the test carries no file.

The large one is one layer of full V1, with as many sequences as are on a CPU, or on a GPU with little memory, at
once, so that its products are as large as those of a real evaluation: a device may fail in these alone. Its
numbers were computed with this package on a CPU in float32. On two cores it takes about 3 s, and 1 GB of memory
for a moment.
"""

from collections.abc import Iterator
from typing import NamedTuple

import arrgen
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from .config import V1_MAX_SEQ_LEN, ModelConfig
from .model_runner import ModelRunner
from .precisions import Precision
from .weights_header import expected_shapes

DATA = b"the quick brown fox jumps over a lazy dog while seven wizards mix black quartz potions. the quick brown "[
    :100
]
SEED = 1
WEIGHTS_SEED = 7
LARGE_CONFIG = ModelConfig(num_layers=1)


class Expected(NamedTuple):
    """What an evaluation gives."""

    loss: float
    embedding: tuple[float, ...]
    """Its first dimensions."""


# fmt: off
SMALL = Expected(0.60118324, (
    1.2143855, -1.7707163, -0.83857733, 0.86820847, -1.2657105, 0.17054385, -0.25456613, 0.6666933,
    0.9100681, -1.1763327, -0.551476, -0.35751012, 0.90276855, 0.4704614, 0.6643236, 0.22330572,
))
LARGE = {
    "cpu": (1, Expected(6.111786842346191, (
        0.049528882, 0.08052216, -0.4506819, 0.13911062, -0.0882696, 0.22053123, 0.3979292, -0.29156628,
    ))),
    "cuda": (4, Expected(6.107736110687256, (
        0.08007481, 0.05264115, -0.3734633, 0.20137185, -0.081289515, 0.13264656, 0.4450451, -0.32500908,
    ))),
}
"""By the kind of device: sequences, and their result."""
# fmt: on

TOLERANCE = {"float32": 5e-5, "float32-split": 5e-5, "tf32": 1e-2, "bf16": 5e-2}
"""Of the loss relative, of the embedding absolute (its components are near 1). Right devices differ from
each other by about 1e-6 in float32; the faster modes round by design."""


class SelfTest:
    """The test of one device, ready to be run again and again. Raises what a broken device raises."""

    def __init__(self, device: str, precision: Precision, *, small_model: bool = False) -> None:
        """`small_model`: the model that is served has no large product, so that there is nothing large to test."""
        self._device = device
        self._precision: Precision = precision
        self._small_model = small_model
        self._small_runner = ModelRunner(ModelConfig.small(), device, precision)
        self._small_weights = golden_weights()

    def run(self, *, with_large: bool) -> str | None:
        """None when the numbers are right; else the wrong ones, in words."""
        wrong = self._check(self._small_runner, DATA, self._small_weights, SMALL)
        if wrong or not with_large or self._small_model:
            return wrong
        runner = ModelRunner(LARGE_CONFIG, self._device, self._precision)
        num_sequences, expected = LARGE[runner.device.type]
        return self._check(runner, large_data(num_sequences), large_weights(), expected)

    def _check(self, runner: ModelRunner, data: bytes, weights: bytes, expected: Expected) -> str | None:
        output = runner.eval(data, weights, SEED)
        embedding = output.embedding[: len(expected.embedding)].numpy()
        loss_error = abs(output.loss - expected.loss) / expected.loss
        embedding_error = float(np.abs(embedding - np.array(expected.embedding)).max())
        tolerance = TOLERANCE[self._precision]
        if loss_error <= tolerance and embedding_error <= tolerance:  # false for NaN
            return None
        return (
            f"loss {output.loss:.8g} instead of {expected.loss:.8g}, embedding off by {embedding_error:.2g}"
        )


def large_data(num_sequences: int) -> bytes:
    """That many sequences of bytes in no particular order."""
    i = np.arange(num_sequences * V1_MAX_SEQ_LEN, dtype=np.uint64)
    return bytes(((i * i * np.uint64(31) + i * np.uint64(7)) >> np.uint64(5)).astype(np.uint8))


def large_weights() -> bytes:
    """Weights of one layer of full V1, as a safetensors file: 206 MB.

    Each tensor repeats the same draws from another start; their number is prime, so that no two rows are alike.
    """
    draws = _draw(WEIGHTS_SEED, 1_048_573)
    return save(
        {
            name: _large_tensor(name, shape, np.roll(draws, -1009 * i))
            for i, (name, shape) in enumerate(expected_shapes(LARGE_CONFIG).items())
        }
    )


def _large_tensor(name: str, shape: tuple[int, ...], draws: NDArray[np.float32]) -> NDArray[np.float32]:
    values = np.resize(draws, shape)
    if name.endswith("gamma"):
        return np.float32(1) + np.float32(0.1) * values
    if name.endswith(("beta", "bias")):
        return np.float32(0.1) * values
    return values if name == "embedding.weight" else values * np.float32(shape[0] ** -0.5)


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
