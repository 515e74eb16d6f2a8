"""A pool whose workers are on the nodes of a Ray cluster, and which follows these as they come and go.

Supervision, splitting, prefetch and quarantine are those of `ProcessPool`; here is only what a cluster adds: which
devices there are now, and what becomes of everything when the cluster itself is lost. Imports no ray.
"""

import asyncio
import itertools
import logging
import time
from dataclasses import replace

from workers.cluster.connector_process import ConnectorProcess
from workers.cluster.messages import (
    Alive,
    ClusterConfig,
    Connected,
    ConnectionFailed,
    DeviceJoined,
    DeviceLeft,
    DeviceRefused,
    FileMoved,
    FileSent,
    Frames,
    FromConnector,
    JobUndelivered,
    ProcessEnded,
    ProcessStopped,
    SessionClosed,
    Spawned,
    SpawnFailed,
)
from workers.cluster.remote_process import RemoteProcess
from workers.errors import EvaluationRefused, NoWorker, WorkerCrashed
from workers.processes.devices import CPU_MEMORY_SHARE
from workers.processes.liveness import Liveness
from workers.processes.process_pool import ProcessPool
from workers.processes.supervisor import Place, Supervisor
from workers.processes.timeouts import Timeouts
from workers.queue_entry import QueueEntry
from workers.types import DeviceStatus, EvalJob, EvalResult, OnEvalProgress, WorkerConfig

logger = logging.getLogger(__name__)

JOIN_SECONDS = 120.0
"""How long the start waits for a first device, once the cluster is joined."""
_CONNECTOR_BEAT_SECONDS = 1.0
_CONNECTOR_SILENT_SECONDS = 15.0
_REMEMBERED_SECONDS = 3600.0
"""How long a node that left is spoken of."""
_FIRST_RETRY_SECONDS = 1.0
_MAX_RETRY_SECONDS = 30.0


class ClusterPool:
    """A `workers.pool.WorkerPool` of worker processes on the nodes of a cluster."""

    def __init__(
        self, cluster: ClusterConfig, config: WorkerConfig, timeouts: Timeouts | None = None
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._pool = ProcessPool(
            (), timeouts, precision=config.precision, may_grow=True, architecture=config.architecture
        )
        self._connector: ConnectorProcess | None = None
        self._workers: dict[str, Supervisor] = {}
        """By device id."""
        self._refused: dict[str, DeviceRefused] = {}
        self._left: dict[str, float] = {}
        """By the name of a node: when a device of it left, on the monotonic clock."""
        self._num_devices: int | None = None
        """That the cluster had when it was joined."""
        self._session_numbers = itertools.count(1)
        self._sessions: dict[int, RemoteProcess] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._following: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._reason = "the Ray cluster is not joined"
        """Why there is no worker."""

    # -- the contract

    async def start(self) -> None:
        """Join the cluster and start a worker on every device; returns when each has passed its self-test.

        Raises NoWorker if the cluster cannot be joined, or none can start.
        """
        self._following = asyncio.create_task(self._follow())
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                while not self._is_known and not self._following.done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        try:
            if not self._workers:
                raise NoWorker(f"no worker could start: {self._trouble()}")
            await self._pool.start()
        except BaseException:
            await self.close()
            raise

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """Evaluate one model on one data set, on every device that is idle; see `ProcessPool.evaluate`."""
        if not self._workers:
            raise NoWorker(f"no worker is alive: {self._trouble()}")
        return await self._pool.evaluate(job, on_progress, entry)

    async def evaluate_pieces(
        self, job: EvalJob, entry: QueueEntry | None = None
    ) -> list[EvalResult | EvaluationRefused]:
        """Evaluate one model on several small data sets, on one device; see `ProcessPool.evaluate_pieces`."""
        if not self._workers:
            raise NoWorker(f"no worker is alive: {self._trouble()}")
        return await self._pool.evaluate_pieces(job, entry)

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, and one per device that is not used, without waiting."""
        refused = [
            DeviceStatus(
                device=each.device,
                node=each.node,
                ready=False,
                busy=False,
                pid=None,
                restarts=0,
                trouble=f"not used: {each.reason}",
            )
            for each in self._refused.values()
        ]
        return self._pool.status() + refused

    def nodes(self) -> dict[str, bool]:
        """By name, whether each node is there; one that left is remembered for an hour."""
        there = {worker.place.node for worker in self._workers.values()}
        there |= {each.node for each in self._refused.values()}
        now = time.monotonic()
        for node, left_at in list(self._left.items()):
            if node in there or now - left_at > _REMEMBERED_SECONDS:
                del self._left[node]
        return dict.fromkeys(sorted(self._left), False) | dict.fromkeys(sorted(there), True)

    async def close(self) -> None:
        """End every worker process and leave the cluster; returns when the connector is gone."""
        await self._pool.close()
        if self._following:
            self._following.cancel()
            await asyncio.gather(self._following, *self._removals, return_exceptions=True)
            self._following = None

    # -- one connector after the other

    async def _follow(self) -> None:
        """Keep a connector running until cancelled. Ends if the first one cannot join."""
        delay = _FIRST_RETRY_SECONDS
        has_joined = False
        while True:
            await self._serve_with_a_connector()
            has_joined = has_joined or self._num_devices is not None
            if not has_joined:
                self._changed.set()
                return
            delay = (
                _FIRST_RETRY_SECONDS if self._num_devices is not None else min(2 * delay, _MAX_RETRY_SECONDS)
            )
            self._num_devices = None
            logger.error("the Ray cluster is lost (%s); joining it again in %.0f s", self._reason, delay)
            await asyncio.sleep(delay)

    async def _serve_with_a_connector(self) -> None:
        """One connector, from its start to its end."""
        try:
            self._connector = connector = await ConnectorProcess.spawn(self._cluster)
        except OSError as error:
            self._reason = f"the Ray connector could not be started: {error.strerror}"
            return
        try:
            await self._listen(connector)
        except EOFError:
            self._reason = "the process that talks to Ray has ended"
        except asyncio.CancelledError:  # the pool is closed
            self._reason = "the Ray cluster was left"
            await asyncio.shield(connector.leave())
            raise
        finally:
            self._connector = None
            await asyncio.shield(connector.kill())
            self._lose_all(self._reason)

    async def _listen(self, connector: ConnectorProcess) -> None:
        """Act on each message until the connector ends (EOFError), fails, or is silent for too long."""
        self._reason = ""
        liveness = Liveness(_CONNECTOR_BEAT_SECONDS)
        while liveness.silent_seconds < _CONNECTOR_SILENT_SECONDS:
            message = await connector.receive(_CONNECTOR_BEAT_SECONDS)
            liveness.observe_any(message is not None)
            if message is not None and not self._act_on(message):
                return
        self._reason = "the process that talks to Ray froze"

    def _act_on(self, message: FromConnector) -> bool:
        """Whether the connector goes on."""
        match message:
            case Alive():
                pass
            case Connected(num_devices):
                self._num_devices = num_devices
                logger.info("joined the Ray cluster, which has %d devices to use", num_devices)
            case ConnectionFailed(reason):
                self._reason = reason
                return False
            case FileSent(node, num_bytes, seconds):
                logger.info("sent %d bytes to node %s in %.1f s", num_bytes, node, seconds)
            case DeviceJoined():
                self._add(message)
            case DeviceLeft(device_id, reason):
                self._remove(device_id, reason)
            case DeviceRefused(device_id, node, device, reason):
                logger.error("%s of node %s is not used: %s", device, node, reason)
                self._refused[device_id] = message
            case _:
                self._pass_on(message)
                return True
        self._changed.set()
        return True

    def _pass_on(
        self,
        message: Spawned
        | SpawnFailed
        | Frames
        | ProcessStopped
        | FileMoved
        | JobUndelivered
        | SessionClosed
        | ProcessEnded,
    ) -> None:
        process = self._sessions.get(message.session)  # of an earlier session: dropped
        if process is None:
            return
        process.take(message)
        if isinstance(message, ProcessEnded):
            del self._sessions[message.session]

    # -- devices that come and go

    def _add(self, joined: DeviceJoined) -> None:
        self._refused.pop(joined.device_id, None)
        num_threads = self._config.num_threads or max(1, joined.num_cores // joined.num_on_node)
        is_cpu = joined.device == "cpu"
        memory = int(joined.free_memory_bytes * CPU_MEMORY_SHARE / joined.num_on_node) if is_cpu else None
        config = replace(
            self._config,
            device=joined.device,
            num_threads=num_threads,
            memory_budget_bytes=self._config.memory_budget_bytes or memory,
        )

        async def spawn(config: WorkerConfig) -> RemoteProcess:
            return await self._spawn(joined, config)

        logger.info("%s of node %s joins", joined.device_on_node, joined.node)
        place = Place(joined.node, joined.device_on_node, joined.build)
        self._workers[joined.device_id] = self._pool.add_worker(config, spawn, place)

    def _remove(self, device_id: str, reason: str) -> None:
        refused = self._refused.pop(device_id, None)
        worker = self._workers.pop(device_id, None)
        if refused:
            self._left[refused.node] = time.monotonic()
        if worker:
            self._left[worker.place.node] = time.monotonic()
            logger.warning("%s of node %s leaves: %s", worker.place.device, worker.place.node, reason)
            self._reason = reason
            removal = asyncio.create_task(self._pool.remove_worker(worker, reason))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def _spawn(self, joined: DeviceJoined, config: WorkerConfig) -> RemoteProcess:
        if self._connector is None:
            raise OSError(None, "the Ray cluster is not joined")
        process = RemoteProcess(next(self._session_numbers), joined.data_dir, self._connector)
        self._sessions[process.session] = process
        try:
            await process.spawn(joined.device_id, config)
        except BaseException:
            await asyncio.shield(process.kill())
            raise
        return process

    def _lose_all(self, reason: str) -> None:
        """The connector is gone: running work fails, and no device is known any more."""
        self._pool.fail_all(WorkerCrashed("the connection to the Ray cluster was lost"))
        for process in list(self._sessions.values()):
            process.lose("was lost with the connection to the Ray cluster")
        self._sessions.clear()
        for device_id in [*self._refused, *self._workers]:
            self._remove(device_id, reason)

    @property
    def _is_known(self) -> bool:
        """Whether each device that the cluster had has joined or was refused, and there was one."""
        num_known = len(self._workers) + len(self._refused)
        return self._num_devices is not None and num_known >= max(1, self._num_devices)

    def _trouble(self) -> str:
        refused = [
            f"{each.device} of node {each.node} is not used: {each.reason}" for each in self._refused.values()
        ]
        if refused:
            return refused[0]
        return self._reason or "no node of the Ray cluster has a device to use"
