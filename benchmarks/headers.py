"""What it takes to judge hostile headers: seconds, memory, and how long other threads have to wait.

    python -m benchmarks.headers [--library] [NAME ...]

Each header has close to 100 MB, the most that the network takes, and is judged in a process of its own. --library
measures the safetensors library's reader, which the network uses, on the same files.
"""

import argparse
import multiprocessing
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import safetensors

from workers.v1.errors import WeightsInvalid
from workers.v1.header_entries import LENGTH_BYTES
from workers.v1.weights_header import NoHeader, parse_header

TARGET_BYTES = 99_000_000
TENSOR = b'"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
BODY_BYTES = 8


def repeated(item: bytes, used: int = 200) -> bytes:
    """As often as it fits into a header beside what is there."""
    return b",".join([item] * ((TARGET_BYTES - used) // (len(item) + 1)))


def numbered(item: str, count: int) -> bytes:
    """Each with another name."""
    return ",".join(item % index for index in range(count)).encode()


def with_field(value: bytes) -> bytes:
    """A sound header whose tensor has a field that nobody asked for."""
    return b"{" + TENSOR[:-1] + b',"x":' + value + b"}}"


HEADERS: dict[str, Callable[[], bytes]] = {
    "full model (219 tensors)": lambda: b"{" + TENSOR + b"," + numbered(EMPTY, 218) + b"}",
    "million empty tensors": lambda: b"{" + TENSOR + b"," + numbered(EMPTY, 1_000_000) + b"}",
    "as many empty tensors as fit": lambda: b"{" + TENSOR + b"," + numbered(EMPTY, 1_600_000) + b"}",
    "the same, as arrays": lambda: b"{" + TENSOR + b"," + numbered('"%d":["U8",[0],[8,8]]', 3_300_000) + b"}",
    "one name again and again": lambda: b"{" + repeated(TENSOR) + b"}",
    "metadata: one string": lambda: (
        b'{"__metadata__":{"a":"' + b"x" * (TARGET_BYTES - 200) + b'"},' + TENSOR + b"}"
    ),
    "metadata: 7 million names": lambda: (
        b'{"__metadata__":{' + numbered('"%d":""', 7_800_000) + b"}," + TENSOR + b"}"
    ),
    "metadata: one name again and again": lambda: (
        b'{"__metadata__":{' + repeated(b'"":""') + b"}," + TENSOR + b"}"
    ),
    'extra field: {"":0,"":0 ..': lambda: with_field(b"{" + repeated(b'"":0') + b"}"),
    "extra field: [0,0 ..": lambda: with_field(b"[" + repeated(b"0") + b"]"),
    "extra field: [[],[] ..": lambda: with_field(b"[" + repeated(b"[]") + b"]"),
    "extra field: {} nested 100 deep": lambda: with_field(
        b"[" + repeated(b'{"":' * 100 + b"0" + b"}" * 100) + b"]"
    ),
    "extra field: [] nested 100 deep": lambda: with_field(b"[" + repeated(b"[" * 100 + b"]" * 100) + b"]"),
    "extra field: numbers like 1e300": lambda: with_field(b"[" + repeated(b"1e300") + b"]"),
    "millions of extra fields": lambda: b"{" + TENSOR[:-1] + b"," + repeated(b'"s":[[0]]') + b"}}",
    "a shape of 49 million sizes": lambda: (
        b"{" + TENSOR + b',"b":{"dtype":"F32","shape":[0,' + repeated(b"1") + b'],"data_offsets":[8,8]}}'
    ),
}
EMPTY = '"t%d":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}'


def judge(text: bytes) -> str:
    """By our reader."""
    try:
        return f"{len(parse_header(text, LENGTH_BYTES + len(text) + BODY_BYTES).tensors)} tensors"
    except (NoHeader, WeightsInvalid) as error:
        return str(error)


def judge_by_library(text: bytes) -> str:
    """By the safetensors library."""
    descriptor = os.memfd_create("weights")
    path = Path(f"/proc/self/fd/{descriptor}")
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(BODY_BYTES))
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return f"{len(file.keys())} tensors"
    except safetensors.SafetensorError as error:
        return str(error)


class Heartbeat:
    """A thread that wants to run every few milliseconds."""

    def __init__(self) -> None:
        self.longest_wait = 0.0
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        last = time.perf_counter()
        while True:
            time.sleep(0.005)
            now = time.perf_counter()
            self.longest_wait, last = max(self.longest_wait, now - last), now


def peak_mb() -> float:
    """Of this process's memory, since it was last reset."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000


def measure(name: str, by_library: bool) -> None:
    """Print a row."""
    text = HEADERS[name]()
    heartbeat = Heartbeat()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started, cpu_started = peak_mb(), time.perf_counter(), time.process_time()
    verdict = (judge_by_library if by_library else judge)(text)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print(
        f"{name:36} {len(text) / 1e6:6.2f} {seconds:8.2f} {cpu_seconds:8.2f} {peak_mb() - before:8.0f}"
        f" {heartbeat.longest_wait:8.2f}  {verdict:.60}",
        flush=True,
    )


def main(names: Iterable[str], by_library: bool) -> None:
    """A row for each header."""
    print(
        f"{'header':36} {'MB':>6} {'seconds':>8} {'CPU s':>8} {'peak MB':>8} {'waited s':>8}  verdict",
        flush=True,
    )
    for name in names:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, by_library))
        process.start()
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="the beginning of a header's name; all by default"
    )
    parser.add_argument("--library", action="store_true")
    arguments = parser.parse_args()
    main(
        [name for name in HEADERS if name.startswith(tuple(arguments.names or [""]))],
        arguments.library,
    )
