"""What the machine is, and how long a fresh process needs before it can compute on the device."""

import os
import platform
import shutil
import subprocess
import time

from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.testbed import Testbed

QUERY = "driver_version,pcie.link.gen.max,pcie.link.width.max,clocks.max.sm,power.limit"


def run(testbed: Testbed, findings: Findings) -> None:
    began = time.perf_counter()
    import torch

    imported = time.perf_counter()
    x = torch.ones(64, 64, device=testbed.device)
    float((x @ x).sum())
    ready = time.perf_counter()
    findings.add(
        "a fresh process",
        f"{imported - began:.1f} s to import torch, {ready - imported:.1f} s to the first product",
        import_seconds=imported - began,
        first_product_seconds=ready - imported,
    )
    findings.add("versions", f"Python {platform.python_version()}, torch {torch.__version__}")
    findings.add("machine", f"{os.cpu_count()} cores", num_cores=float(os.cpu_count() or 1))
    if testbed.is_gpu:
        card = torch.cuda.get_device_properties(0)
        findings.add(
            "card",
            f"{card.name}, {card.total_memory / 1e9:.0f} GB, CUDA {torch.version.cuda}",
            note=_driver(),
        )
    else:
        findings.missing("card", NEEDS_GPU)


def _driver() -> str:
    """What the driver's own tool says, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    asked = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=30, check=False)
    return f"{QUERY}: {asked.stdout.strip()}"
