"""1 GB over loopback: download, verify and publish, ours beside what people use. Run: python -m benchmarks.download

    hashlib         one thread that only hashes as many bytes, with Python's own Blake2b
    libsodium       the same with the library that ours hashes with
    ours            BlobCache.fetch: Blake2b-256 while the bytes pass, fsync, rename
    httpx+hashlib   httpx to a file, then hashlib over the file
    curl+b2sum      curl to a file, then b2sum over the file
    curl|tee|b2sum  the same, hashed while the bytes pass
    the same+sync   and made durable, as ours is
    aria2c          4 connections, its own --checksum (sha-256: it knows no Blake2b)

The file server is a process of its own that answers with sendfile. Runs are interleaved; ratios are of medians.
CPU is that of the client. What makes its file durable waits for the disk: with --directory /dev/shm the disk
is out of the comparison.
"""

import argparse
import asyncio
import hashlib
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One run of one contender."""

    seconds: float
    cpu_seconds: float
    peak_bytes: float


# -- the server ------------------------------------------------------------------------------------------------


def serve(path: Path) -> None:
    """Answer GETs for one file, whole or by range, until killed; prints the port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer_all, args=(connection, path), daemon=True).start()


def _answer_all(connection: socket.socket, path: Path) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, path.open("rb") as file, connection.makefile("rb") as requests:
        try:
            while requests.readline():
                _answer(connection, file, _range_asked_for(requests))
        except (BrokenPipeError, ConnectionResetError):
            return


def _range_asked_for(requests: BinaryIO) -> str:
    wanted = ""
    while line := requests.readline().decode("latin-1").strip():
        if line.lower().startswith("range:"):
            wanted = line.partition("bytes=")[2]
    return wanted


def _answer(connection: socket.socket, file: BinaryIO, wanted: str) -> None:
    size = os.fstat(file.fileno()).st_size
    left, _, right = wanted.partition("-")
    first, last = int(left or 0), min(int(right or size), size - 1)
    head = f"HTTP/1.1 {206 if wanted else 200} OK\r\nContent-Length: {last - first + 1}\r\nAccept-Ranges: bytes\r\n"
    if wanted:
        head += f"Content-Range: bytes {first}-{last}/{size}\r\n"
    connection.sendall(head.encode() + b"\r\n")
    while first <= last:
        first += os.sendfile(connection.fileno(), file.fileno(), first, last - first + 1)


# -- the contenders --------------------------------------------------------------------------------------------


async def run_ours(url: str, directory: Path, checksum: str, size: int) -> Measured:
    """One fetch into an empty cache."""
    from service.blob import BlobRef
    from service.cache.blob_cache import BlobCache
    from service.download.downloader import Downloader
    from service.egress.url_policy import UrlPolicy

    downloader = Downloader(UrlPolicy(allow_http=True, allow_private_addresses=True))
    cache = BlobCache(directory, downloader, max_bytes=4 * size)
    await cache.start()
    began, cpu = time.perf_counter(), time.process_time()
    async with cache.fetch(BlobRef(url, checksum, size), kind="model", max_bytes=size):
        measured = Measured(time.perf_counter() - began, time.process_time() - cpu, _peak_bytes())
    await cache.close()
    await downloader.aclose()
    return measured


def run_httpx(url: str, directory: Path, checksum: str) -> Measured:
    """What a few lines of httpx do."""
    import httpx

    from service.checksum import encode_checksum

    began, cpu = time.perf_counter(), time.process_time()
    with (directory / "file").open("wb") as sink, httpx.stream("GET", url, trust_env=False) as response:
        for chunk in response.iter_bytes():
            sink.write(chunk)
    with (directory / "file").open("rb") as source:
        digest = hashlib.file_digest(source, lambda: hashlib.blake2b(digest_size=32)).digest()
    assert encode_checksum(digest) == checksum
    return Measured(time.perf_counter() - began, time.process_time() - cpu, _peak_bytes())


def run_hashing(library: str, num_bytes: int) -> Measured:
    """The same number of bytes, a mebibyte at a time, all from one buffer."""
    from service.checksum import Hasher

    data, hasher = os.urandom(CHUNK), Hasher() if library == "libsodium" else hashlib.blake2b(digest_size=32)
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(num_bytes // CHUNK):
        hasher.update(data)
    return Measured(time.perf_counter() - began, time.process_time() - cpu, _peak_bytes())


def _peak_bytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _run_self(*arguments: str) -> Callable[[Path], Measured]:
    """Run this file in a fresh process, which measures without its imports."""

    def run(directory: Path) -> Measured:
        command = [sys.executable, "-m", "benchmarks.download", *arguments, "--directory", str(directory)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return Measured(*map(float, output.split()))

    return run


def _run_shell(command: str) -> Callable[[Path], Measured]:
    def run(directory: Path) -> Measured:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run(["bash", "-o", "pipefail", "-ec", command], check=True, cwd=directory)
        seconds = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Measured(seconds, cpu, float("nan"))

    return run


def contenders(url: str, num_bytes: int, blake2b: str, sha256: str) -> dict[str, Callable[[Path], Measured]]:
    """Those that this machine has; the digests in hex."""
    from service.checksum import encode_checksum

    checksum = encode_checksum(bytes.fromhex(blake2b))
    what = ("--url", url, "--checksum", checksum, "--num-bytes", str(num_bytes))
    found = {
        "hashlib": _run_self("--one", "hashlib", *what),
        "libsodium": _run_self("--one", "libsodium", *what),
        "ours": _run_self("--one", "ours", *what),
        "httpx+hashlib": _run_self("--one", "httpx", *what),
    }
    if shutil.which("curl") and shutil.which("b2sum"):
        check = f"[[ $(b2sum -l 256 {{}}) == {blake2b}* ]]"
        found["curl+b2sum"] = _run_shell(f"curl -sf -o file {url} && {check.format('file')}")
        streamed = f"curl -sf {url} | tee file | {{ {check.format('-')}; }}"
        found["curl|tee|b2sum"] = _run_shell(streamed)
        found["the same+sync"] = _run_shell(f"{streamed} && sync file")
    if shutil.which("aria2c"):
        options = f"-q -x4 -s4 --file-allocation=falloc --checksum=sha-256={sha256}"
        found["aria2c"] = _run_shell(f"aria2c {options} -o file {url}")
    return found


# -- the comparison --------------------------------------------------------------------------------------------


def make_file(path: Path, num_bytes: int) -> tuple[str, str]:
    """Random bytes; their Blake2b-256 and their SHA-256 in hex."""
    blake2b, sha256 = hashlib.blake2b(digest_size=32), hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(num_bytes // CHUNK):
            chunk = os.urandom(CHUNK)
            file.write(chunk)
            blake2b.update(chunk)
            sha256.update(chunk)
    return blake2b.hexdigest(), sha256.hexdigest()


def level_the_field(path: Path, num_bytes: int) -> None:
    """Nobody pays for the disk work of another, and each finds as much memory that was just in use.

    A virtual machine may give memory that lies free back to its host, and gets it back slowly.
    """
    with path.open("wb") as file:
        for _ in range(num_bytes // CHUNK):
            file.write(bytes(CHUNK))
    os.sync()
    path.unlink()


def compare(directory: Path, num_bytes: int, num_runs: int) -> None:
    """Run all of them in turn, and print one table."""
    source = directory / "source"
    digests = make_file(source, num_bytes)
    command = [sys.executable, "-m", "benchmarks.download", "--serve", str(source)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/file"
            found = contenders(url, num_bytes, *digests)
            results: dict[str, list[Measured]] = {name: [] for name in found}
            for _ in range(num_runs):
                for name, run in found.items():
                    level_the_field(directory / "level", num_bytes)
                    with tempfile.TemporaryDirectory(dir=directory) as folder:
                        results[name].append(run(Path(folder)))
            print_table(results, num_bytes)
        finally:
            server.kill()


def print_table(results: dict[str, list[Measured]], num_bytes: int) -> None:
    """Medians, and ratios of medians."""
    medians = {name: statistics.median(run.seconds for run in runs) for name, runs in results.items()}
    print(f"{num_bytes / 1e9:.2f} GB, {os.cpu_count()} cores, medians of {len(results['ours'])} runs")
    print(f"{'':16}{'seconds':>8}{'MB/s':>7}{'ours is':>9}{'fastest':>9}{'CPU s':>7}{'peak MB':>9}")
    for name, runs in results.items():
        seconds = medians[name]
        cpu = statistics.median(run.cpu_seconds for run in runs)
        print(
            f"{name:16}{seconds:8.2f}{num_bytes / seconds / 1e6:7.0f}{seconds / medians['ours']:8.2f}x"
            f"{min(run.seconds for run in runs):9.2f}{cpu:7.2f}{max(run.peak_bytes for run in runs) / 1e6:9.0f}"
        )
    rates = [
        f"{medians[name] / medians['ours']:.2f} of one {name} thread" for name in ("hashlib", "libsodium")
    ]
    print("ours hashes, receives and writes at", " and ".join(rates))


def main() -> None:
    """Compare, or be one of the processes that are compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--directory", type=Path, help="where the files lie (default: the temporary folder)")
    parser.add_argument("--num-bytes", type=int, default=1 << 30)
    parser.add_argument("--num-runs", type=int, default=7)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=["ours", "httpx", "hashlib", "libsodium"], help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--checksum", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.one is None:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
            compare(Path(folder), arguments.num_bytes, arguments.num_runs)
    else:
        measured = run_one(arguments)
        print(measured.seconds, measured.cpu_seconds, measured.peak_bytes)


def run_one(arguments: argparse.Namespace) -> Measured:
    """Be one contender."""
    url, directory, checksum = arguments.url, arguments.directory, arguments.checksum
    if arguments.one == "ours":
        return asyncio.run(run_ours(url, directory, checksum, arguments.num_bytes))
    if arguments.one == "httpx":
        return run_httpx(url, directory, checksum)
    return run_hashing(arguments.one, arguments.num_bytes)


if __name__ == "__main__":
    main()
