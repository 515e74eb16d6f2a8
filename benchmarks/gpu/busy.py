"""Keeps a device busy until it is ended: `python -m benchmarks.gpu.busy DEVICE [BYTES_LEFT]`.

Says "busy" once it is. With BYTES_LEFT it takes all memory of the card but that, and computes nothing.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> None:
    import torch

    device = sys.argv[1]
    if len(sys.argv) > 2:
        free, _total = torch.cuda.mem_get_info(device)
        held = torch.empty(max(0, free - int(sys.argv[2])), dtype=torch.uint8, device=device)
        print("busy", flush=True)
        time.sleep(600)
        del held
        return
    size = 256 if device == "cpu" else 8192
    x = torch.randn(size, size, device=device)
    x @ x
    print("busy", flush=True)
    while True:
        for _ in range(4):
            x @ x
        if device != "cpu":
            torch.cuda.synchronize(device)


@contextmanager
def busy_process(device: str, bytes_left: int | None = None) -> Iterator[None]:
    """Such a process for the length of the block. Raises RuntimeError if it cannot be had."""
    command = [sys.executable, "-m", "benchmarks.gpu.busy", device]
    command += [] if bytes_left is None else [str(bytes_left)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "busy\n":
                raise RuntimeError("the process that keeps the device busy has ended")
            yield
        finally:
            process.kill()


if __name__ == "__main__":
    main()
