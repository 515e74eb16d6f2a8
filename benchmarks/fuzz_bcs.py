"""Millions of random and mutated messages into the codec of the gRPC door.

    python -m benchmarks.fuzz_bcs [--count 10000000] [--seed 0]

Each must give a value that encodes to the same bytes again, or a BcsError; anything else, a hang among it, ends
the run with a traceback. Every so often tracemalloc watches one call, and the resident memory of the whole
process is compared before and after.
"""

import argparse
import random
import resource
import signal
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, Self

from service.grpc_api.bcs import (
    BcsError,
    HealthRequest,
    HealthResponse,
    ManifestInput,
    ScoreRequest,
    ScoreResponse,
)


class Message(Protocol):
    """One of the codec's dataclasses."""

    def encode(self) -> bytes: ...

    @classmethod
    def decode(cls, encoded: bytes) -> Self: ...


MESSAGES: tuple[type[Message], ...] = (
    ScoreRequest,
    ScoreRequest,
    ScoreRequest,
    ScoreResponse,
    HealthResponse,
    HealthRequest,
)
MAX_SECONDS_PER_BATCH = 60
_BATCH = 10_000
_SMALL_BYTES = 256
"""Of fewer bytes the fixed cost of a value says nothing about how it grows."""


@dataclass(slots=True)
class Report:
    """What came of it."""

    num_inputs: int = 0
    num_accepted: int = 0
    num_refused: int = 0
    num_bytes: int = 0
    peak_bytes_per_byte: float = 0.0
    """Memory at the worst moment of one decode, per byte of its input."""
    inputs_by_strategy: dict[str, int] = field(default_factory=dict)


def seeds() -> list[bytes]:
    """Good messages to start from."""
    key = "4vJ9JU1bJJE96FWSJKvHsmmFADCg4gpZQff4P3bkLKi"
    models = (
        ManifestInput(
            "https://models.example/a", "8opHzTAnfzRpPEx21XtnrVTX28YQuCpAjcn1PczScKh", 4_838_416_000
        ),
        ManifestInput("https://models.example/böck?x=%20", "C" * 44, 2**64 - 1, key),
    )
    requests = [
        ScoreRequest("", "", 0, (), (), 0),
        ScoreRequest("https://data.example/d", key, 4, models[:1], (0.5, -0.0), 7),
        ScoreRequest("https://data.example/d", key, 1 << 20, models * 4, tuple(range(200)), 2**64 - 1),
    ]
    responses = [ScoreResponse(1, (4.5,), tuple(range(16)), (0.25,)), ScoreResponse(0, (), (), ())]
    messages: list[Message] = [*requests, *responses, HealthResponse(True)]
    return [message.encode() for message in messages]


def random_bytes(rng: random.Random, pool: list[bytes]) -> bytes:
    """Noise of any length, short ones most often."""
    return rng.randbytes(int(rng.random() ** 4 * 400))


def sparse_bytes(rng: random.Random, pool: list[bytes]) -> bytes:
    """Mostly zeros and small numbers: the lengths are plausible, so more of the message is read."""
    return bytes(rng.choices(_SPARSE, k=int(rng.random() ** 2 * 150)))


_SPARSE = (0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 11, 65, 127, 128, 255)


def bit_flips(rng: random.Random, pool: list[bytes]) -> bytes:
    """A good message with up to four bytes changed."""
    mutated = bytearray(rng.choice(pool))
    for _ in range(rng.randint(1, 4)):
        mutated[rng.randrange(len(mutated))] = rng.randrange(256)
    return bytes(mutated)


def cut_or_grown(rng: random.Random, pool: list[bytes]) -> bytes:
    """A good message that ends early, or goes on."""
    message = rng.choice(pool)
    return message[: rng.randrange(len(message))] if rng.random() < 0.7 else message + rng.randbytes(3)


def spliced(rng: random.Random, pool: list[bytes]) -> bytes:
    """The head of one message, the tail of another."""
    head, tail = rng.choice(pool), rng.choice(pool)
    return head[: rng.randrange(len(head))] + tail[rng.randrange(len(tail)) :]


def huge_lengths(rng: random.Random, pool: list[bytes]) -> bytes:
    """A good message with a length of up to 35 bits written over some place."""
    mutated = bytearray(rng.choice(pool))
    place = rng.randrange(len(mutated))
    mutated[place : place + 1] = rng.choice(_LENGTHS)
    return bytes(mutated)


_LENGTHS = (
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\x07",
    b"\xff\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x01",
    b"\xff\xff\x7f",
    b"\xff\x7f",
    b"\x80\x00",
    b"\x80\x80\x80\x80\x80\x80\x80",
)


def many_small_parts(rng: random.Random, pool: list[bytes]) -> bytes:
    """What costs most memory per byte: models of empty strings, floats, one-letter keys."""
    num_models, num_floats = rng.randrange(60), rng.randrange(60)
    model = rng.choice((bytes(11), bytes(10) + b"\1\1x", b"\1a\1b" + b"\xff" * 8 + b"\1\2xy"))
    floats = struct.pack("<f", rng.random()) * num_floats
    return bytes(10) + bytes([num_models]) + model * num_models + bytes([num_floats]) + floats + bytes(8)


STRATEGIES: tuple[Callable[[random.Random, list[bytes]], bytes], ...] = (
    random_bytes,
    sparse_bytes,
    bit_flips,
    cut_or_grown,
    spliced,
    huge_lengths,
    many_small_parts,
)


def fuzz(count: int, rng: random.Random, *, measure_every: int = 1000) -> Report:
    """Try `count` inputs. Raises what the codec raises beside BcsError, and AssertionError for a false value."""
    report, pool = Report(), seeds()
    for number in range(count):
        make = STRATEGIES[number % len(STRATEGIES)]
        encoded = make(rng, pool)
        message = MESSAGES[number // len(STRATEGIES) % len(MESSAGES)]
        if number % measure_every == 0:
            report.peak_bytes_per_byte = max(report.peak_bytes_per_byte, _peak_per_byte(message, encoded))
        try:
            value = message.decode(encoded)
        except BcsError:
            report.num_refused += 1
        else:
            report.num_accepted += 1
            again = value.encode()
            assert again == encoded or _differs_by_nan_only(encoded, again), encoded.hex()
        report.num_bytes += len(encoded)
        name = make.__name__
        report.inputs_by_strategy[name] = report.inputs_by_strategy.get(name, 0) + 1
    report.num_inputs = count
    return report


def _differs_by_nan_only(encoded: bytes, again: bytes) -> bool:
    """A signalling NaN comes back as a quiet one: bit 22 of that float is set, and nothing else differs."""
    differing = [a ^ b for a, b in zip(encoded, again, strict=True) if a != b]
    return bool(differing) and set(differing) == {0x40}


def _peak_per_byte(message: type[Message], encoded: bytes) -> float:
    if len(encoded) < _SMALL_BYTES:
        return 0.0
    tracemalloc.start()
    try:
        message.decode(encoded)
    except BcsError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak / len(encoded)


def _resident_bytes() -> int:
    """The most this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Run it, a line for every million."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    fuzz(_BATCH, random.Random(arguments.seed))  # warm: what follows is compared with this
    resident_before, started = _resident_bytes(), time.monotonic()
    total = Report()
    while total.num_inputs < arguments.count:
        signal.alarm(MAX_SECONDS_PER_BATCH)  # a hang ends the run
        batch = fuzz(min(_BATCH, arguments.count - total.num_inputs), rng)
        signal.alarm(0)
        _add(total, batch)
        if total.num_inputs % 1_000_000 == 0:
            print(f"{total.num_inputs:>11,} inputs, {time.monotonic() - started:.0f} s", file=sys.stderr)
    seconds = time.monotonic() - started
    grown = _resident_bytes() - resident_before
    print(f"{total.num_inputs:,} inputs ({total.num_bytes / 1e6:,.0f} MB) in {seconds:.0f} s:", end=" ")
    print(f"{total.num_inputs / seconds:,.0f} a second")
    print(f"{total.num_accepted:,} accepted, {total.num_refused:,} refused cleanly, 0 crashes, 0 hangs")
    print(f"peak memory of one decode: {total.peak_bytes_per_byte:.1f} bytes per byte of input")
    print(f"resident memory grew by {grown / 2**20:.1f} MiB")
    for name, number in sorted(total.inputs_by_strategy.items()):
        print(f"  {name:18} {number:>10,}")


def _add(total: Report, batch: Report) -> None:
    total.num_inputs += batch.num_inputs
    total.num_accepted += batch.num_accepted
    total.num_refused += batch.num_refused
    total.num_bytes += batch.num_bytes
    total.peak_bytes_per_byte = max(total.peak_bytes_per_byte, batch.peak_bytes_per_byte)
    for name, number in batch.inputs_by_strategy.items():
        total.inputs_by_strategy[name] = total.inputs_by_strategy.get(name, 0) + number


if __name__ == "__main__":
    main()
