"""The weights of the golden case at this size: plain, encrypted and as F16, each tensor made by a process of its own.

Plain and encrypted are byte for byte what `tests.recipe.write_weights` writes one tensor after the other.
"""

import json
import os
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed
from service.cli.encryption import commitment_of
from tests.recipe import (
    TEST_KEY,
    GoldenCase,
    TensorRecipe,
    make_tensor,
    safetensors_file,
    tensor_recipes,
)

AES_BLOCK_BYTES = 16


@dataclass(frozen=True)
class Placed:
    """A tensor and where its bytes begin in the files."""

    recipe: TensorRecipe
    offset: int
    float16_offset: int


def run(testbed: Testbed, findings: Findings) -> None:
    files = (testbed.plain, testbed.encrypted, testbed.float16)
    if all(path.exists() for path in (*files, commitments_file(testbed))):
        findings.add("weights", "those of an earlier run", note=str(testbed.folder))
        return
    began = time.perf_counter()
    make_weights(testbed.case, *files)
    commitments = {path.name: commitment_of(path).checksum for path in (testbed.plain, testbed.encrypted)}
    commitments_file(testbed).write_text(json.dumps(commitments))
    seconds, size = time.perf_counter() - began, sum(path.stat().st_size for path in files)
    findings.add(
        "weights",
        f"{size / 1e9:.2f} GB made in {seconds:.1f} s",
        note="plain, encrypted, F16",
        seconds=seconds,
    )


def commitments_file(testbed: Testbed) -> Path:
    """The checksums of the plain and the encrypted file, by name."""
    return testbed.plain.with_suffix(".checksums")


def make_weights(case: GoldenCase, plain: Path, encrypted: Path, float16: Path) -> None:
    """Write all three files; they appear complete or not at all."""
    partial = [path.with_name(path.name + ".partial") for path in (plain, encrypted, float16)]
    tensors = sorted(tensor_recipes(case.config, case.weights["seed"]), key=lambda tensor: tensor.name)
    header, begins = _header(tensors, "F32", 4)
    float16_header, float16_begins = _header(tensors, "F16", 2)
    for path, begin in zip(partial, (header, header, float16_header), strict=True):
        path.write_bytes(_encrypted(begin, 0) if path == partial[1] else begin)
    placed = [Placed(*each) for each in zip(tensors, begins, float16_begins, strict=True)]
    placed.sort(key=lambda each: -float(np.prod(each.recipe.shape)))  # the large ones first
    tasks = [(case.config, case.weights, each, partial) for each in placed]
    if len(tasks) * sum(case.config.values()) < 1_000_000:  # the small model: processes would cost more
        for task in tasks:
            _write_tensor(task)
    else:
        with ProcessPoolExecutor(min(16, os.cpu_count() or 1)) as processes:
            list(processes.map(_write_tensor, tasks))
    for path, final in zip(partial, (plain, encrypted, float16), strict=True):
        path.rename(final)


def _header(tensors: list[TensorRecipe], dtype: str, num_bytes: int) -> tuple[bytes, list[int]]:
    """The beginning of a safetensors file, and where each tensor begins in it."""
    entries: dict[str, Any] = {}
    begins, end = [], 0
    for tensor in tensors:
        begins.append(end)
        end += num_bytes * int(np.prod(tensor.shape))
        entries[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begins[-1], end],
        }
    header = safetensors_file(entries, b"")
    return header, [len(header) + begin for begin in begins]


def _write_tensor(task: tuple[Mapping[str, int], Mapping[str, Any], Placed, list[Path]]) -> None:
    config, recipe, placed, (plain, encrypted, float16) = task
    tensor = make_tensor(config, recipe, placed.recipe)
    clear = tensor.tobytes()
    _write_at(plain, placed.offset, clear)
    _write_at(encrypted, placed.offset, _encrypted(clear, placed.offset))
    _write_at(float16, placed.float16_offset, tensor.astype(np.float16).tobytes())


def _encrypted(clear: bytes, offset: int) -> bytes:
    """These bytes of a file, which begin at `offset` in it, under the test key."""
    block, within = divmod(offset, AES_BLOCK_BYTES)
    counter = modes.CTR(block.to_bytes(AES_BLOCK_BYTES, "big"))
    cipher = Cipher(algorithms.AES(TEST_KEY), counter).encryptor()
    cipher.update(bytes(within))
    return cipher.update(clear)


def _write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)
