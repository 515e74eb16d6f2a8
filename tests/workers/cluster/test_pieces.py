"""Pieces travel to a node within their job: the weights are the one file that goes before it."""

from pathlib import Path
from typing import Any, cast

from workers.cluster.connector_process import ConnectorProcess
from workers.cluster.messages import RelayJob
from workers.cluster.remote_process import RemoteProcess
from workers.message_codec import encode
from workers.messages import Evaluate, Prefetch
from workers.types import EvalJob


class _Connector:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_only_the_weights_are_sent_before_pieces(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"some weights")
    connector = _Connector()
    process = RemoteProcess(1, "/on/the/node", cast(ConnectorProcess, connector))
    job = EvalJob.of_pieces((b"one", b"two"), weights_path=str(weights), weights_checksum="abc", seed=0)
    process.send(Evaluate(7, job, 0, 2))
    process.send(Prefetch(job))
    relayed, ahead = connector.sent
    assert isinstance(relayed, RelayJob)
    assert (relayed.weights.path, relayed.weights.size) == (str(weights), len(b"some weights"))
    assert relayed.data is None
    moved = EvalJob.of_pieces(
        (b"one", b"two"),
        weights_path="/on/the/node/abc",
        weights_checksum="abc",
        weights_size=len(b"some weights"),
        seed=0,
    )
    assert relayed.frames == encode(Evaluate(7, moved, 0, 2))
    assert (ahead.task_id, ahead.data) == (0, None)
