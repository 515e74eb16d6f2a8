"""How weights and data of the golden vectors are made, and what else the tests need to write weights files.

`golden/*.json` were printed by the network's own Rust runner. They hold no tensors: each case names a
recipe, and the recipe turns integers into tensors through `arrgen`, the network's generator, which gives
the same bits on every machine. So nothing large is kept, and nothing can drift.
"""

import functools
import hashlib
import itertools
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arrgen
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"

SMALL_CONFIG: dict[str, int] = {
    "embedding_dim": 16,
    "pwff_hidden_dim": 32,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 264,
}
"""The network's own `--small-model`."""

SMALL_WEIGHTS: dict[str, Any] = {"scheme": "scaled", "seed": 7, "gain": 1.0}
"""The weights of most small-* cases."""

TEST_KEY = bytes(range(32))
"""A decryption key for tests."""

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class GoldenCase:
    """One case of `cases.json` or `full-v1.json`."""

    name: str
    config: dict[str, int]
    weights: dict[str, Any]
    data: dict[str, Any]
    seed: int
    max_seq_len: int
    batch_size: int
    loss: float
    cross_entropy: list[float]
    """One number per batch."""
    sig_reg: list[float]
    """One number per batch, without the coefficient."""
    embedding: NDArray[np.float32]
    """[embedding_dim]"""

    @property
    def attends_to_future(self) -> bool:
        return self.name.startswith("leak-")


@dataclass(frozen=True)
class GoldenCompetition:
    """One case of `competitions.json`."""

    name: str
    config: dict[str, int]
    models: list[dict[str, Any]]
    """Weights recipes."""
    data: dict[str, Any]
    seed: int
    target: NDArray[np.float32]
    winner: int
    distance: float
    losses: list[float]
    embedding: NDArray[np.float32]
    """The winner's."""


@dataclass(frozen=True)
class TensorRecipe:
    """One tensor of an architecture: its name, its shape, the seed of its draw and how the draw is scaled."""

    name: str
    shape: tuple[int, ...]
    seed: int
    role: str
    """gamma, beta, bias, weight or embedding."""


def tensor_recipes(config: Mapping[str, int], seed: int) -> Iterator[TensorRecipe]:
    """Every tensor of an architecture. Seeds of layers overlap on purpose: each shifts the last one by 1."""
    D, F, V = config["embedding_dim"], config["pwff_hidden_dim"], config["vocab_size"]
    of_layer: list[tuple[str, tuple[int, ...], str]] = [
        ("norm_1.gamma", (D,), "gamma"),
        ("norm_1.beta", (D,), "beta"),
        ("attention.query.weight", (D, D), "weight"),
        ("attention.query.bias", (D,), "bias"),
        ("attention.key.weight", (D, D), "weight"),
        ("attention.key.bias", (D,), "bias"),
        ("attention.value.weight", (D, D), "weight"),
        ("attention.value.bias", (D,), "bias"),
        ("attention.output.weight", (D, D), "weight"),
        ("attention.output.bias", (D,), "bias"),
        ("norm_2.gamma", (D,), "gamma"),
        ("norm_2.beta", (D,), "beta"),
        ("pwff.linear_inner.weight", (D, F), "weight"),
        ("pwff.linear_inner.bias", (F,), "bias"),
        ("pwff.linear_outer.weight", (F, D), "weight"),
        ("pwff.linear_outer.bias", (D,), "bias"),
    ]
    for layer in range(config["num_layers"]):
        for place, (name, shape, role) in enumerate(of_layer, start=1):
            yield TensorRecipe(f"encoder.layers.{layer}.{name}", shape, seed + layer + place, role)
    yield TensorRecipe("final_norm.gamma", (D,), seed + 100, "gamma")
    yield TensorRecipe("final_norm.beta", (D,), seed + 200, "beta")
    yield TensorRecipe("embedding.weight", (V, D), seed + 250, "embedding")
    yield TensorRecipe("predictor.weight", (D, V), seed + 300, "weight")
    yield TensorRecipe("predictor.bias", (V,), seed + 400, "bias")


def make_tensor(
    config: Mapping[str, int], recipe: Mapping[str, Any], tensor: TensorRecipe
) -> NDArray[np.float32]:
    """One tensor. All arithmetic is float32, so the bits are the same everywhere."""
    draw = np.asarray(arrgen.normal_array(tensor.seed, list(tensor.shape), 0.0, 1.0), dtype=np.float32)
    scheme = recipe["scheme"]
    if scheme == "unit":
        return np.ascontiguousarray(draw)
    if tensor.role == "gamma":
        draw = np.float32(1) + np.float32(0.1) * draw
    elif tensor.role in ("beta", "bias"):
        draw = np.float32(0.1) * draw
    elif tensor.role == "weight":
        draw = draw * np.float32(recipe.get("gain", 1.0) / tensor.shape[0] ** 0.5)
    if scheme == "shift" and tensor.role == "embedding":
        draw = draw + np.float32(recipe["offset"])
    if scheme == "leak" and tensor.name.endswith((".query.bias", ".key.bias")):
        # The slowest rotary pair of each head: +offset in every query, -offset in every key.
        K = config["embedding_dim"] // config["num_heads"]
        sign = np.float32(1 if tensor.name.endswith(".query.bias") else -1)
        draw[K // 2 - 1 :: K] += sign * np.float32(recipe["offset"])
    return np.ascontiguousarray(draw, dtype=np.float32)


def make_weights(config: Mapping[str, int], recipe: Mapping[str, Any]) -> Tensors:
    """The tensors of a recipe {"scheme": unit | scaled | leak | shift, "seed", "gain", "offset"}, by name."""
    return {t.name: make_tensor(config, recipe, t) for t in tensor_recipes(config, recipe["seed"])}


def make_data(recipe: Mapping[str, Any]) -> bytes:
    """The bytes of a recipe: {"pattern": count | zeros | text | hash, "size", "seed" (hash only)}."""
    size: int = recipe["size"]
    match recipe["pattern"]:
        case "count":
            return (bytes(range(256)) * (size // 256 + 1))[:size]
        case "zeros":
            return bytes(size)
        case "text":
            line = b"the quick brown fox jumps over a lazy dog while seven wizards mix black quartz potions. "
            return bytes(itertools.islice(itertools.cycle(line), size))
        case "hash":
            num_blocks = size // 32 + 1
            digests = (hashlib.sha256(f"{recipe['seed']}:{i}".encode()).digest() for i in range(num_blocks))
            return b"".join(digests)[:size]
    raise ValueError(f"unknown pattern {recipe['pattern']!r}")


DTYPE_NAMES: dict[str, str] = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True)
class RawTensor:
    """A tensor of a dtype numpy does not have (BF16, F8_E4M3), or with a header entry of its own."""

    dtype: str
    shape: tuple[int, ...]
    body: bytes


def safetensors_bytes(
    tensors: Mapping[str, NDArray[Any] | RawTensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """A safetensors file of these tensors, laid out in the order given."""
    header, bodies = safetensors_parts(tensors, metadata)
    return safetensors_file(header, b"".join(bodies))


def safetensors_parts(
    tensors: Mapping[str, NDArray[Any] | RawTensor], metadata: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[bytes]]:
    """The header as a dict, to be made odd, and the tensors' bytes in order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    bodies: list[bytes] = []
    offset = 0
    for name, tensor in tensors.items():
        raw = tensor if isinstance(tensor, RawTensor) else raw_tensor(tensor)
        end = offset + len(raw.body)
        header[name] = {"dtype": raw.dtype, "shape": list(raw.shape), "data_offsets": [offset, end]}
        bodies.append(raw.body)
        offset = end
    return header, bodies


def raw_tensor(array: NDArray[Any]) -> RawTensor:
    return RawTensor(DTYPE_NAMES[str(array.dtype)], array.shape, array.tobytes())


def safetensors_file(header: Mapping[str, Any] | str | bytes, body: bytes, *, padded: bool = True) -> bytes:
    """Header (a dict, or its text as it stands) and body as one file."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    if padded:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def write_weights(
    path: Path, config: Mapping[str, int], recipe: Mapping[str, Any], key: bytes | None = None
) -> Path:
    """Write the weights of a recipe, encrypted when there is a key; tensor by tensor, so any size will do."""
    plan = sorted(tensor_recipes(config, recipe["seed"]), key=lambda tensor: tensor.name)
    header: dict[str, Any] = {}
    offset = 0
    for tensor in plan:
        end = offset + 4 * int(np.prod(tensor.shape))
        header[tensor.name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encryptor = None if key is None else aes_256_ctr(key).encryptor()
    with path.open("wb") as file:
        for part in itertools.chain(
            [safetensors_file(header, b"")], (make_tensor(config, recipe, t).tobytes() for t in plan)
        ):
            file.write(part if encryptor is None else encryptor.update(part))
    return path


def aes_256_ctr(key: bytes) -> Cipher[modes.CTR]:
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16)))


def encrypt(plain: bytes, key: bytes = TEST_KEY) -> bytes:
    """As the network publishes weights: AES-256-CTR, zero IV, the whole file, no tag."""
    return aes_256_ctr(key).encryptor().update(plain)


def small_weights_bytes(recipe: Mapping[str, Any] = SMALL_WEIGHTS) -> bytes:
    """A safetensors file of the small model."""
    return safetensors_bytes(make_weights(SMALL_CONFIG, recipe))


@functools.cache
def golden_cases() -> dict[str, GoldenCase]:
    """`cases.json`, by name."""
    cases = json.loads((GOLDEN / "cases.json").read_text())["cases"]
    return {case["name"]: _golden_case(case) for case in cases}


@functools.cache
def golden_full_size() -> GoldenCase:
    """`full-v1.json`: one case at full size, for benchmarks."""
    return _golden_case(json.loads((GOLDEN / "full-v1.json").read_text())["cases"][0])


@functools.cache
def golden_competitions() -> dict[str, GoldenCompetition]:
    """`competitions.json`, by name."""
    cases = json.loads((GOLDEN / "competitions.json").read_text())["cases"]
    return {case["name"]: _golden_competition(case) for case in cases}


@functools.cache
def golden_weights_files() -> dict[str, dict[str, Any]]:
    """The rows of `weights_files.json`, by name: {"change", "accepted", "loss" or "upstream_error"}."""
    rows = json.loads((GOLDEN / "weights_files.json").read_text())["files"]
    return {row["name"]: row for row in rows}


def _golden_case(case: Mapping[str, Any]) -> GoldenCase:
    expected = case["expected"]
    return GoldenCase(
        name=case["name"],
        config=case["config"],
        weights=case["weights"],
        data=case["data"],
        seed=int(case["seed"]),
        max_seq_len=case["max_seq_len"],
        batch_size=case["batch_size"],
        loss=expected["loss"],
        cross_entropy=expected["cross_entropy"],
        sig_reg=expected["sig_reg"],
        embedding=np.array(expected["embedding"], dtype=np.float32),
    )


def _golden_competition(case: Mapping[str, Any]) -> GoldenCompetition:
    target, expected = case["target"], case["expected"]
    return GoldenCompetition(
        name=case["name"],
        config=case["config"],
        models=case["models"],
        data=case["data"],
        seed=int(case["seed"]),
        target=np.asarray(arrgen.normal_array(target["seed"], target["shape"], 0.0, 1.0), dtype=np.float32),
        winner=expected["winner"],
        distance=expected["distance"],
        losses=expected["losses"],
        embedding=np.array(expected["embedding"], dtype=np.float32),
    )
