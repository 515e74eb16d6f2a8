"""A device's actor as the connector holds it: made when it is needed, and again when it was lost."""

import asyncio
from typing import TYPE_CHECKING, Any

from workers.cluster.cluster_errors import ActorLost, NotOurs
from workers.cluster.hello import Hello, read_hello
from workers.cluster.node_devices import NodeDevice
from workers.message_codec import MalformedMessage

if TYPE_CHECKING:
    from workers.cluster.ray_cluster import RayCluster


class DeviceActor:
    """One device of a node, and most of the time its actor."""

    def __init__(self, device: NodeDevice, cluster: "RayCluster") -> None:
        self.device = device
        self._cluster = cluster
        self._actor: Any = None
        self._starting = asyncio.Lock()

    async def start(self, timeout_seconds: float | None) -> Hello:
        """Make sure that there is an actor that answers; returns its hello. Raises ActorLost, NotOurs."""
        async with self._starting:
            if self._actor is None:
                self._actor = self._cluster.start_actor(self.device)
            answer = await self.call("hello", timeout_seconds=timeout_seconds)
        try:
            return read_hello(answer)
        except MalformedMessage:
            raise NotOurs("its hello cannot be read, as of another version of soma-eval") from None

    async def call(self, method: str, *arguments: Any, timeout_seconds: float | None) -> Any:
        """What a method of the actor returns. An actor that is lost is given up. Raises ActorLost."""
        actor = self._actor
        if actor is None:
            raise ActorLost("was lost")
        try:
            return await self._cluster.call(actor, method, *arguments, timeout_seconds=timeout_seconds)
        except ActorLost:
            self._give_up(actor)
            raise

    def end(self) -> None:
        """End the actor, and its worker process with it."""
        if self._actor is not None:
            self._give_up(self._actor)

    def _give_up(self, actor: Any) -> None:
        if self._actor is actor:  # another call may have given it up already
            self._actor = None
            self._cluster.end_actor(actor)
