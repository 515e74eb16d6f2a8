"""Which devices of a cluster's nodes get a worker."""

import pytest

from workers.cluster.node_devices import Node, wanted_devices

HEAD = Node("1", "head", num_cpus=0, num_gpus=0)
CPU = Node("2", "cpu", num_cpus=8, num_gpus=0)
GPU = Node("3", "gpu", num_cpus=8, num_gpus=2)


@pytest.mark.parametrize(
    ("nodes", "setting", "expected"),
    [
        ([HEAD], "auto", []),
        ([HEAD, CPU], "auto", ["2/cpu/0"]),
        ([HEAD, CPU, GPU], "auto", ["3/cuda/0", "3/cuda/1"]),
        ([HEAD, CPU, GPU], "cpu", ["2/cpu/0", "3/cpu/0"]),
        ([HEAD, CPU, GPU], "cuda", ["3/cuda/0", "3/cuda/1"]),
        ([CPU], "cpu,cpu", ["2/cpu/0", "2/cpu/1"]),
        ([CPU], "cuda", []),
    ],
)
def test_wanted_devices(nodes: list[Node], setting: str, expected: list[str]) -> None:
    assert [device.id for device in wanted_devices(nodes, setting)] == expected


def test_a_node_that_came_back_has_other_devices() -> None:
    again = Node("4", "cpu", num_cpus=8, num_gpus=0)
    assert wanted_devices([CPU], "cpu")[0].id != wanted_devices([again], "cpu")[0].id


def test_what_ray_says_of_a_node() -> None:
    entry = {"NodeID": "9", "NodeName": "", "NodeManagerAddress": "10.0.0.9", "Resources": {"GPU": 4.0}}
    assert Node.of_ray(entry) == Node("9", "10.0.0.9", num_cpus=0, num_gpus=4)
