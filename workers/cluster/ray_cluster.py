"""Every call of Ray that there is: joining a cluster, its nodes, its actors, its objects.

Runs in the connector alone. Ray may end the process that it runs in, as when its head is gone for long.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workers.cluster.cluster_errors import ActorLost, CannotJoin, CannotPut
from workers.cluster.messages import LOCAL, ClusterConfig
from workers.cluster.node_devices import Node, NodeDevice
from workers.cluster.relay_actor import RelayActor

_LOCAL_STORE_BYTES = 256 << 20
_PROBE_SECONDS = 60.0
_CONNECT_SECONDS = 10.0
_CALLS_AT_ONCE = 64
"""Of one actor: reads wait for the worker meanwhile."""


class RayCluster:
    """The cluster that this process has joined. Blocking; asynchronous where it says so."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config

    def join(self) -> None:
        """Join it, or start a private one. Raises CannotJoin."""
        address = self._config.address
        options: dict[str, Any] = {"address": address}
        if address == LOCAL:
            options |= {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
        elif not _listens(address):
            raise CannotJoin(f"nothing answers at {address}, where the head of the Ray cluster should")
        elif not self._config.allow_open and not asks_for_token(address):
            raise CannotJoin(
                f"the Ray cluster at {address} asks for no token, so whoever reaches it may run code in it: start "
                "Ray with RAY_AUTH_MODE=token, or allow it with --allow-open-cluster"
            )
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False)
        except Exception as error:  # Ray raises its own, RuntimeError, ConnectionError, ValueError
            raise CannotJoin(f"the Ray cluster at {address} cannot be joined: {_first_line(error)}") from None

    def leave(self) -> None:
        """End what was started here, and the private cluster."""
        ray.shutdown()

    def nodes(self) -> list[Node]:
        """Those that are alive."""
        entries: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return [Node.of_ray(entry) for entry in entries if entry["Alive"]]

    def start_actor(self, device: NodeDevice) -> Any:
        """An actor for this device, on its node; it may take a while until it runs."""
        resources: dict[str, float] = {"num_gpus": 1, "num_cpus": 0}
        if device.kind == "cpu":
            share = device.node.num_cpus / device.num_on_node
            resources = {"num_cpus": int(share) if share >= 1 else share}
        config = self._config
        return (
            ray.remote(RelayActor)
            .options(
                **resources,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=_CALLS_AT_ONCE,
                scheduling_strategy=NodeAffinitySchedulingStrategy(device.node.id, soft=False),
            )
            .remote(
                os.path.join(config.data_dir, _file_name(device.node.name)),
                config.data_max_bytes,
                config.entry_module,
                config.silence_seconds,
                config.fence_seconds,
            )
        )

    def end_actor(self, actor: Any) -> None:
        """End it now. One that is frozen, or whose node is, ends when it thaws."""
        with contextlib.suppress(RayError):
            ray.kill(actor, no_restart=True)

    def put(self, block: bytes) -> Any:
        """The block as an object, which is there as long as the reference that is returned. Raises CannotPut."""
        try:
            return ray.put(block)
        except RayError as error:
            raise CannotPut(type(error).__name__) from None

    async def call(self, actor: Any, method: str, *arguments: Any, timeout_seconds: float | None) -> Any:
        """What a method of the actor returns. Asynchronous. Raises ActorLost."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await getattr(actor, method).remote(*arguments)
        except TimeoutError:
            raise ActorLost(f"gave no answer for {timeout_seconds:g} s") from None
        except RayError as error:
            raise ActorLost(f"was lost: {_first_line(error)}") from None


def asks_for_token(address: str) -> bool:
    """Whether a cluster refuses who has no token. Raises CannotJoin when it does not answer."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check", "--address", address],
            env=environment | {"RAY_AUTH_MODE": "disabled"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CannotJoin(f"the Ray cluster at {address} does not answer") from None
    if probe.returncode == 0:
        return False
    if "token" in (probe.stdout + probe.stderr).lower():
        return True
    raise CannotJoin(f"the Ray cluster at {address} does not answer")


def _listens(address: str) -> bool:
    """Whether something accepts connections there. Raises CannotJoin for what is no address."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise CannotJoin(f"{address!r} is no address of a Ray cluster: give HOST:PORT, or {LOCAL}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        return False
    return True


def _first_line(error: Exception) -> str:
    """What Ray says, without its traceback of the other side."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _file_name(node: str) -> str:
    return "".join(each if each.isalnum() or each in "-._" else "_" for each in node).lstrip(".") or "node"
