"""What `workers.v1` computes for the golden cases, bit for bit, in a way that is the same on all CPUs of one vendor.

    python -m tests.workers.v1.exact_numbers             # prints it
    python -m tests.workers.v1.exact_numbers --record    # adds it to golden/exact_numbers.json, for a new version

The last bits of a CPU's results depend on its instruction set and on the number of threads. So it is computed by one
thread of a process in which every library that chooses instructions is told to use the oldest ones (`PORTABLE`).
Between vendors, MKL makes a difference all the same.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.odd_weights_files import FILES
from tests.recipe import GOLDEN, TEST_KEY, encrypt, golden_cases, make_data, make_weights, safetensors_bytes

RECORD = GOLDEN / "exact_numbers.json"
"""Numerics version -> torch's version and the kind of CPU -> case -> what it gives."""

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
TOO_LONG = {"small-1-mib", "small-70000", "small-one-batch", "medium-3000", "wide-head-256"}


def compute_portably() -> dict[str, str]:
    """By case: the bits of its numbers, or how it is refused. In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers.v1.exact_numbers"],
        cwd=GOLDEN.parents[1],
        env=os.environ | PORTABLE,
        stdout=subprocess.PIPE,
        check=True,
    )
    numbers: dict[str, str] = json.loads(done.stdout)
    return numbers


def recorded() -> dict[str, dict[str, dict[str, str]]]:
    """The whole record."""
    record: dict[str, dict[str, dict[str, str]]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return record


def platform_name() -> str:
    """What the numbers depend on, beside the version of `workers.v1`."""
    return f"torch {version('torch').partition('+')[0]}, {platform.machine()}, {_cpu_vendor()}"


def _cpu_vendor() -> str:
    """GenuineIntel or AuthenticAMD, for example; empty where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    found = (
        re.search(r"^vendor_id\s*: (\S+)", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    )
    return found[1] if found else ""


def _compute() -> Iterator[tuple[str, str]]:
    from workers.v1 import ModelConfig, ModelRunner

    for case in golden_cases().values():
        if case.name not in TOO_LONG:
            runner = ModelRunner(
                ModelConfig(**case.config), max_seq_len=case.max_seq_len, batch_size=case.batch_size
            )
            weights = safetensors_bytes(make_weights(case.config, case.weights))
            yield case.name, _outcome(runner, make_data(case.data), weights, case.seed, None)
    runner, data = ModelRunner(ModelConfig.small()), make_data({"pattern": "text", "size": 100})
    for name, make in FILES.items():
        yield f"file {name}", _outcome(runner, data, make(), 1, None)
        yield f"file {name}, encrypted", _outcome(runner, data, encrypt(make()), 1, TEST_KEY)


def _outcome(runner: Any, data: bytes, weights: bytes, seed: int, key: bytes | None) -> str:
    from workers.v1 import EvaluationRefused

    try:
        output = runner.eval(data, weights, seed, decryption_key=key)
    except EvaluationRefused as error:
        return type(error).__name__
    embedding = hashlib.sha256(output.embedding.numpy().tobytes()).hexdigest()[:16]
    numbers = (output.loss, output.cross_entropy, output.sig_reg)
    return " ".join([*(number.hex() for number in numbers), embedding, str(output.attends_to_future)])


def _record() -> None:
    from workers.v1 import NUMERICS_VERSION

    record = recorded()
    known = record.setdefault(NUMERICS_VERSION, {})
    found = compute_portably()
    if known.setdefault(platform_name(), found) != found:
        sys.exit(
            f"numerics version {NUMERICS_VERSION} has other numbers: give NUMERICS_VERSION a new value first"
        )
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        _record()
    else:
        json.dump(dict(_compute()), sys.stdout, indent=1)
