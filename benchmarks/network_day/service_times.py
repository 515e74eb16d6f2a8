"""How long things take: the one table of numbers that a simulated day is made of, each with where it comes from.

*counted*: from the architecture; *stated*: by a vendor; *measured*: by a benchmark of this project; *assumed*: nobody
has measured it here. Nothing of this project has run on a GPU of a cluster, so every second of a GPU is assumed.
"""

from dataclasses import dataclass

GB = 10**9
MIB = 1 << 20
DAY_SECONDS = 86_400.0
SUBMISSIONS_A_DAY = 86_400
"""What the network aims at: one each second."""

WEIGHTS_BYTES = 4_840_000_000
"""Of full V1. Counted."""
FLOP_PER_SEQUENCE = 8.1e15 / 3 / 1024
"""Counted: 1 MiB is 1,024 sequences, and over three models 8.1 PFLOP; so 10 KB over three models is some 75 TFLOP."""


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """One worker. Seconds unless said otherwise."""

    name: str
    per_sequence: float
    """Computing one sequence of 1,024 bytes, in a batch of 16."""
    per_batch: float
    """On top, for each batch."""
    per_task: float
    """From the head's message to the start of work, and from the last batch to the head: messages and relaying."""
    load_bytes_per_second: float
    """Weights from the node's disk or page cache into the device's memory, decrypted."""
    start: float
    """From spawn to a passed self-test."""
    self_test: float
    """Another self-test, once a minute, between two tasks."""
    resident_bytes: int
    """Device memory that weights may take."""


def _h100(name: str, flop_per_second: float) -> DeviceTimes:
    return DeviceTimes(
        name=name,
        per_sequence=FLOP_PER_SEQUENCE / flop_per_second,
        per_batch=0.005,  # assumed: launches of 24 layers, noise, one copy to the host
        per_task=0.02,  # assumed; `check` found 8 to 46 ms on one busy machine
        load_bytes_per_second=2.0 * GB,  # assumed: page cache, one core of AES, and PCIe
        start=60.0,  # assumed: import of torch, CUDA, the large self-test
        self_test=0.05,  # assumed
        resident_bytes=int(0.6 * 80 * GB),  # workers.worker.device.MEMORY_SHARE of 80 GB: 9 models
    )


H100_FLOAT32 = _h100("80 GB, float32", 45e12)
"""Assumed: two thirds of the 67 TFLOP/s that are stated for float32 outside tensor cores of an H100 SXM."""
H100_TF32 = _h100("80 GB, tf32", 200e12)
"""Assumed: two fifths of the 495 TFLOP/s that are stated for dense TF32."""
H100_BF16 = _h100("80 GB, bf16", 400e12)
"""Assumed: two fifths of the 990 TFLOP/s that are stated for dense BF16."""


@dataclass(frozen=True, slots=True)
class HeadCosts:
    """Processor time of the service's event loop, in seconds. Measured: `benchmarks.network_day.head_costs`."""

    per_submission: float
    per_evaluation: float
    per_batch: float
    """Decoding the score of a batch with an embedding of 2,048 numbers, and folding it."""


HEAD_COSTS = HeadCosts(per_submission=0.0082, per_evaluation=0.0032, per_batch=0.00017)
"""Measured with Python 3.11 on a Xeon of two cores that were busy with other work, so rather too much."""
HASH_BYTES_PER_SECOND = 0.9 * GB
"""Blake2b of one file, on one core, at the head and at a node. Assumed."""
PUBLISHER_BYTES_PER_SECOND = 0.25 * GB
"""Assumed: what one publisher's bucket sends over four connections."""
DISK_BYTES_PER_SECOND = 2.0 * GB
"""Assumed: an NVMe disk of the head, for what it writes and reads together."""
NODE_LOSS_NOTICED_SECONDS = 2.5
"""Measured (docs/cluster.md): a node that is killed is given up after 1.2 to 2.4 s; a frozen one after 8 to 12 s."""
NODE_AWAY_SECONDS = 600.0
"""Assumed: until a lost node is back, with the files that it had."""
DOLLARS_PER_GPU_HOUR = 2.50
"""Assumed: a rented 80 GB H100. `--price` is another."""
