"""What the smoke test of an image insists on, where no container is needed."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from docker.smoke_test import check_device

ROOT = Path(__file__).parents[2]
ON_GPU = argparse.Namespace(device="cuda", precision="bf16")
CARD = [{"device_name": "NVIDIA H100"}]


def test_an_answer_of_the_gpu_will_do() -> None:
    check_device(ON_GPU, {"device": "cuda:0,cuda:1", "precision": "bf16"}, CARD)


@pytest.mark.parametrize(
    ("device", "precision", "devices"),
    [("cpu", "bf16", CARD), ("cuda:0", "float32", CARD), ("cuda:0", "bf16", [])],
)
def test_any_other_answer_is_wrong(device: str, precision: str, devices: list[dict[str, str]]) -> None:
    with pytest.raises(SystemExit):
        check_device(ON_GPU, {"device": device, "precision": precision}, devices)


def test_a_precision_that_a_cpu_does_not_have_is_refused() -> None:
    command = [sys.executable, "-m", "docker.smoke_test", "--precision", "bf16"]
    ran = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.endswith("smoke_test.py: precision bf16 needs --device cuda\n")
