"""Nodes of a cluster without Ray: real relay actors in this process, and the files that they are sent."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import base58

from workers.cluster.cluster_errors import ActorLost
from workers.cluster.device_actor import DeviceActor
from workers.cluster.messages import FileToSend
from workers.cluster.node_devices import Node, NodeDevice
from workers.cluster.relay_actor import RelayActor
from workers.types import EvalJob

MISBEHAVING = "tests.workers.processes.misbehaving"


def checksum_of(content: bytes) -> str:
    """Blake2b-256, Base58."""
    return base58.b58encode(hashlib.blake2b(content, digest_size=32).digest()).decode()


def file_to_send(folder: Path, content: bytes, name: str = "file") -> FileToSend:
    """The content as a file of the head's."""
    path = folder / name
    path.write_bytes(content)
    return FileToSend(str(path), checksum_of(content), len(content))


def with_checksums(job: EvalJob) -> EvalJob:
    """The job with the checksums that its files have."""
    weights, data = Path(job.weights_path).read_bytes(), Path(job.data_path).read_bytes()
    return replace(
        job,
        weights_checksum=checksum_of(weights),
        weights_size=len(weights),
        data_checksum=checksum_of(data),
    )


class InProcessCluster:
    """Stands where Ray would be: its actors are real ones, called directly, and its objects are bytes."""

    def __init__(self, folder: Path, max_bytes: int = 1 << 30, fence_seconds: float = 30.0) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._fence_seconds = fence_seconds
        self.num_put = 0
        self.lost: set[RelayActor] = set()

    def device(self, node: str, index: int = 0) -> DeviceActor:
        """The actor of one device, not started."""
        return DeviceActor(NodeDevice(Node(node, node, 1, 0), "cpu", index, 1), self)  # type: ignore[arg-type]

    def folder_of(self, node: str) -> Path:
        """Where the node keeps files."""
        return self._folder / node

    def start_actor(self, device: NodeDevice) -> RelayActor:
        """As `RayCluster` does."""
        folder = str(self.folder_of(device.node.name))
        return RelayActor(folder, self._max_bytes, MISBEHAVING, 10.0, self._fence_seconds)

    def end_actor(self, actor: RelayActor) -> None:
        """As `RayCluster` does."""
        self.lost.add(actor)

    def put(self, block: bytes) -> bytes:
        """As `RayCluster` does."""
        self.num_put += 1
        return block

    async def call(
        self, actor: RelayActor, method: str, *arguments: Any, timeout_seconds: float | None
    ) -> Any:
        """As `RayCluster` does."""
        if actor in self.lost:
            raise ActorLost("was lost")
        return await getattr(actor, method)(*arguments)
