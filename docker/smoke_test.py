# ruff: noqa: T201
"""Test a built image: `python -m docker.smoke_test [IMAGE] [--device cuda] [--precision P]` from the repository's root.

Starts a container of the image, hardened as in compose.yaml, and has it evaluate encrypted weights from a file
server on this machine. What it must answer is a golden loss, printed by the network's own runner.
By default on a CPU, so a cuda image is tested where there is no GPU too, all but its GPU. With --device cuda the
container is given the GPUs, and it is an error when the answer comes from anything else.
"""

import argparse
import base64
import functools
import hashlib
import http.server
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import base58
import grpc
import httpx

from benchmarks.gpu.tolerances import TOLERANCES
from tests.recipe import TEST_KEY, GoldenCase, golden_cases, make_data, write_weights
from workers.types import Precision

STOP_SECONDS = 90
HARDENED = [
    "--read-only",
    "--tmpfs=/tmp:size=256m,mode=1777,nosuid,nodev,noexec",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges:true",
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", default="soma-eval:cpu")
    parser.add_argument("--ready-seconds", type=float, default=120)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    options = parser.parse_args()
    if options.precision != "float32" and options.device == "cpu":
        parser.exit(2, f"{parser.prog}: precision {options.precision} needs --device cuda\n")
    case = golden_cases()["small-short"]
    with tempfile.TemporaryDirectory() as folder:
        weights = write_weights(Path(folder) / "weights", case.config, case.weights, TEST_KEY)
        serve = [f"--device={options.device}", f"--precision={options.precision}"]
        with file_server(Path(folder)) as port, container(options.image, serve) as name:
            smoke(name, eval_request(case, weights, port), case.loss, options)
    for layer in docker("history", "--format={{.Size}}\t{{.CreatedBy}}", options.image).splitlines():
        if not layer.startswith("0B"):
            print(f"  layer  {layer[:100]}")
    print(f"{options.image}: {int(docker('inspect', '--format={{.Size}}', options.image)) / 1e6:.0f} MB")


def smoke(name: str, request: dict[str, Any], golden_loss: float, options: argparse.Namespace) -> None:
    started = time.monotonic()
    url = f"http://{docker('port', name, '8000').splitlines()[0]}"
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        wait_until_200(name, client, "/health", options.ready_seconds)
        print(f"/health answers after {time.monotonic() - started:.1f} s")
        wait_until_200(name, client, "/ready", options.ready_seconds)
        print(f"/ready answers after {time.monotonic() - started:.1f} s")
        devices = client.get("/info").json()["devices"]
        response = client.post("/eval", json=request)
    check("POST /eval", response.status_code, lambda status: status == 200, response.text[:2000])
    answer = response.json()
    allowed = TOLERANCES[options.precision].loss
    check(
        f"loss, golden {golden_loss}",
        answer["loss"],
        lambda loss: abs(loss - golden_loss) <= allowed * golden_loss,
    )
    check_device(options, answer["provenance"], devices)
    print(f"  timings {json.dumps(answer['timings'])}")

    with grpc.insecure_channel(docker("port", name, "9124").splitlines()[0]) as channel:
        grpc_health = channel.unary_unary("/scoring.Scoring/Health")(b"", timeout=10)
    check("gRPC Health", grpc_health, lambda ok: ok == b"\x01")
    check("user", docker("exec", name, "id", "-u"), lambda uid: uid == "10001")
    health_check = json.loads(docker("inspect", "--format={{json .Config.Healthcheck.Test}}", name))
    check("health check", health_check[0], lambda kind: kind == "CMD")
    docker("exec", name, *health_check[1:])

    stopping = time.monotonic()
    docker("stop", f"--time={STOP_SECONDS}", name)
    state = json.loads(docker("inspect", "--format={{json .State}}", name))
    check(
        f"exit code, {time.monotonic() - stopping:.1f} s after SIGTERM", state["ExitCode"], lambda rc: rc == 0
    )


def check_device(
    options: argparse.Namespace, provenance: dict[str, Any], devices: list[dict[str, Any]]
) -> None:
    """The answer was computed where, and in the precision that was asked for; a GPU has its vendor's name."""
    check("device", provenance["device"], lambda device: device.partition(":")[0] == options.device)
    check("precision", provenance["precision"], lambda precision: precision == options.precision)
    names = [device["device_name"] for device in devices]
    check("device names", names, lambda names: bool(names) and all(names))


def eval_request(case: GoldenCase, weights: Path, port: int) -> dict[str, Any]:
    ciphertext = weights.read_bytes()
    return {
        "data": base64.b64encode(make_data(case.data)).decode(),
        "weights_url": f"http://host.docker.internal:{port}/{weights.name}",
        "weights_checksum": base58.b58encode(hashlib.blake2b(ciphertext, digest_size=32).digest()).decode(),
        "weights_size": len(ciphertext),
        "decryption_key": base58.b58encode(TEST_KEY).decode(),
        "seed": case.seed,
    }


@contextmanager
def file_server(folder: Path) -> Iterator[int]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("0.0.0.0", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextmanager
def container(image: str, flags: list[str]) -> Iterator[str]:
    """A running service, its ports published on free ones; what it printed is shown if anything goes wrong.

    `flags` are further ones of `serve`; with --device=cuda the container is given every GPU.
    """
    ports = ["--publish=127.0.0.1::8000", "--publish=127.0.0.1::9124"]
    host = ["--add-host=host.docker.internal:host-gateway"]
    gpus = ["--gpus=all"] if "--device=cuda" in flags else []
    serve = ["serve", "--small-model", "--allow-http", "--allow-private-addresses", *flags]
    name = docker("run", "--detach", *HARDENED, *gpus, *ports, *host, image, *serve)
    try:
        yield name
    except BaseException:
        subprocess.run(["docker", "logs", "--tail=100", name], check=False)
        raise
    finally:
        docker("rm", "--force", "--volumes", name)


def docker(*arguments: str) -> str:
    return subprocess.run(
        ["docker", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def wait_until_200(name: str, client: httpx.Client, path: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        if docker("inspect", "--format={{.State.Running}}", name) != "true":
            raise SystemExit("the container has ended")
        try:
            answer = str(client.get(path).status_code)
        except httpx.TransportError as error:
            answer = repr(error)
        if answer == "200":
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"{path} after {seconds:.0f} s: {answer}")
        time.sleep(0.2)


def check(what: str, found: Any, is_good: Callable[[Any], bool], detail: str = "") -> None:
    print(f"{what}: {found}")
    if not is_good(found):
        raise SystemExit(f"{what} is wrong: {found}\n{detail}")


if __name__ == "__main__":
    main()
