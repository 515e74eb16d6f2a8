"""The demo: two candidates, trained and not, go encrypted through the whole service on this machine."""

import asyncio
import base64
import functools
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import base58
import httpx
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from service.cli.encryption import Commitment, commitment_of, encrypt_file, new_key
from service.cli.exit_codes import ExitCode
from service.cli.setting_flags import bad_settings_are_usage
from service.cli.usage import CommandFailed
from service.config import ExplicitSettings, Settings
from service.log import configure_log

_HELD_OUT_BYTES = 20_000
_SEED = 42
_TARGET = [1.0 if i % 2 else -1.0 for i in range(16)]
"""A direction to be near to: any of the small model's 16 dimensions will do."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    name: str
    url: str
    key: str
    commitment: Commitment

    def manifest(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "checksum": self.commitment.checksum,
            "size": self.commitment.size,
            "decryption_key": self.key,
        }


def run_demo(seconds: float, flags: dict[str, Any]) -> ExitCode:
    """Run every step. `flags` are settings, over the demo's own. Raises BadUsage or CommandFailed."""
    configure_log("console", "warning")
    with tempfile.TemporaryDirectory(prefix="soma-eval-demo-") as folder:
        own: dict[str, Any] = {"data_dir": Path(folder) / "data", "port": 0, "grpc_port": 0}
        closed_network = {"allow_http": True, "allow_private_addresses": True}
        with bad_settings_are_usage(has_variables=False):
            settings = ExplicitSettings(**(own | closed_network | flags))
        asyncio.run(_run_steps(seconds, settings, Path(folder)))
    return ExitCode.GOOD


async def _run_steps(seconds: float, settings: Settings, folder: Path) -> None:
    """Train, encrypt, publish, serve, evaluate and compete."""
    console = Console(highlight=False)
    text = _real_text()
    held_out = text[-_HELD_OUT_BYTES:]
    console.print(f"[bold]1.[/] Training one of two candidates of the small model for {seconds:g} s ...")
    steps = await _make_candidates(folder, seconds, text[:-_HELD_OUT_BYTES])
    console.print(f"   {steps} steps on {len(text) - _HELD_OUT_BYTES:,} bytes of Python's documentation.")
    console.print("[bold]2.[/] Encrypting both with AES-256-CTR and publishing them on a local file server.")
    with _file_server(folder) as base_url:
        candidates = [_publish(folder, base_url, name) for name in ("random", "trained")]
        console.print("[bold]3.[/] Starting the service and a worker process ...")
        from service.server import run_service  # takes a second, in which people read what happens

        async with run_service(settings) as (_components, addresses):
            async with httpx.AsyncClient(base_url=addresses.http, trust_env=False, timeout=60.0) as client:
                await _evaluate(console, client, candidates, held_out)
                await _compete(console, client, candidates, base_url, folder, held_out)
            console.print(f"   The API's documentation was at {addresses.http}/docs while this ran.")
    console.print("Everything is cleaned up. Next: [bold]soma-eval serve --help[/]")


def _real_text() -> bytes:
    """The language reference's topics, which ship with Python."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics)).encode()[:400_000]


async def _make_candidates(folder: Path, seconds: float, text: bytes) -> int:
    """Train in a process that is not left behind, and in which nothing of the current folder is imported (-P)."""
    file = folder / "training-text"
    file.write_bytes(text)
    with file.open("rb") as stdin:  # no pipe, whose end would be reported after Ctrl-C
        training = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "workers.demo_candidates", str(folder), str(seconds)),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
    try:
        output, _ = await training.communicate()
    finally:
        if training.returncode is None:
            training.kill()
            await training.wait()
    if training.returncode != 0:
        raise CommandFailed("a candidate could not be trained; the reason is above")
    return int(output)


def _publish(folder: Path, base_url: str, name: str) -> _Candidate:
    key = new_key()
    commitment = encrypt_file(folder / f"{name}.safetensors", folder / f"{name}.enc", key)
    return _Candidate(name, f"{base_url}/{name}.enc", base58.b58encode(key).decode(), commitment)


async def _evaluate(
    console: Console, client: httpx.AsyncClient, candidates: list[_Candidate], data: bytes
) -> None:
    console.print(
        f"[bold]4.[/] POST /eval for each, on {len(data):,} bytes that neither has seen, seed {_SEED}:"
    )
    table = Table("weights", "loss", "CE", "SIGReg", "distance", "download", "load", "eval", box=SIMPLE)
    losses = []
    for candidate in candidates:
        manifest = candidate.manifest()
        answer = await _post(
            client,
            "/eval",
            {
                "data": base64.b64encode(data).decode(),
                "weights_url": manifest["url"],
                "weights_checksum": manifest["checksum"],
                "weights_size": manifest["size"],
                "decryption_key": manifest["decryption_key"],
                "seed": _SEED,
                "target_embedding": _TARGET,
            },
        )
        numbers = [f"{answer[name]:.4f}" for name in ("loss", "cross_entropy", "sig_reg", "distance")]
        timings = answer["timings"]
        times = [f"{timings[f'{name}_seconds'] * 1000:.0f} ms" for name in ("download", "load", "eval")]
        table.add_row(candidate.name, *numbers, *times)
        losses.append(answer["loss"])
    console.print(table)
    if not losses[1] < losses[0]:
        raise CommandFailed("the trained candidate is not better than the random one")
    console.print(f"   Training is worth {losses[0] - losses[1]:.4f}: the lower loss is the better one.")


async def _compete(
    console: Console,
    client: httpx.AsyncClient,
    candidates: list[_Candidate],
    base_url: str,
    folder: Path,
    data: bytes,
) -> None:
    console.print("[bold]5.[/] POST /score: the competition, as the network runs it, data by URL:")
    (folder / "data.bin").write_bytes(data)
    published = commitment_of(folder / "data.bin")
    answer = await _post(
        client,
        "/score",
        {
            "data_url": f"{base_url}/data.bin",
            "data_checksum": published.checksum,
            "data_size": published.size,
            "model_manifests": [candidate.manifest() for candidate in candidates],
            "target_embedding": _TARGET,
            "seed": _SEED,
        },
    )
    winner = candidates[answer["winner"]].name
    console.print(
        f"   The winner is [bold]{winner}[/]: loss {answer['loss_score'][0]:.4f}, ahead by {answer['margin']:.4f}, "
        f"distance to the target {answer['distance'][0]:.4f}."
    )
    if winner != "trained":
        raise CommandFailed("the random candidate has won")


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> Any:
    response = await client.post(path, json=body)
    if response.status_code != httpx.codes.OK:
        raise CommandFailed(f"POST {path} answered {response.status_code}: {response.json().get('detail')}")
    return response.json()


@contextmanager
def _file_server(folder: Path) -> Iterator[str]:
    """The folder by http on a free port of this machine."""
    handler = functools.partial(_QuietFiles, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class _QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the demo prints its own steps."""
