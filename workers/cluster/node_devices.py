"""Which devices of a cluster's nodes get a worker."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of the cluster that is alive."""

    id: str
    """Ray's: another one each time the node joins."""
    name: str
    num_cpus: int
    num_gpus: int

    @classmethod
    def of_ray(cls, entry: Mapping[str, Any]) -> "Node":
        """From an entry of `ray.nodes()`."""
        resources = entry["Resources"]
        return cls(
            id=entry["NodeID"],
            name=entry.get("NodeName") or entry["NodeManagerAddress"],
            num_cpus=int(resources.get("CPU", 0)),
            num_gpus=int(resources.get("GPU", 0)),
        )


@dataclass(frozen=True, slots=True)
class NodeDevice:
    """One device of a node, which gets one worker."""

    node: Node
    kind: str
    """"cpu" or "cuda"."""
    index: int
    num_on_node: int
    """Workers of this node."""

    @property
    def id(self) -> str:
        """Of no other device, and of none of a node that joined before."""
        return f"{self.node.id}/{self.kind}/{self.index}"


def wanted_devices(nodes: Sequence[Node], setting: str) -> list[NodeDevice]:
    """One worker for each of these.

    "cuda" is every GPU of every node, "cpu" one worker on each node that lends processors to Ray. "auto" is every
    GPU, or, where no node has any, as "cpu". A head that was started with `--num-cpus 0` and has no GPU gets none.
    """
    names = [name.strip() for name in setting.split(",")]
    any_gpu = any(node.num_gpus for node in nodes)
    devices = []
    for node in nodes:
        kinds = [kind for name in names for kind in _kinds(name, node, any_gpu)]
        devices += [NodeDevice(node, kind, index, len(kinds)) for index, kind in enumerate(kinds)]
    return devices


def _kinds(name: str, node: Node, any_gpu: bool) -> list[str]:
    if name == "cuda" or (name == "auto" and any_gpu):
        return ["cuda"] * node.num_gpus
    return ["cpu"] if node.num_cpus else []
