"""What devices are called where each needs a name of its own: metrics and the status page."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Protocol


class OnNode(Protocol):
    """A device of a node, such as `workers.types.DeviceStatus`."""

    @property
    def node(self) -> str: ...

    @property
    def device(self) -> str: ...


def device_names(statuses: Iterable[OnNode]) -> Iterator[str]:
    """The devices' names on their nodes. The second worker on a device is "cpu#2": no two of a node are the same."""
    seen: Counter[tuple[str, str]] = Counter()
    for status in statuses:
        seen[status.node, status.device] += 1
        number = seen[status.node, status.device]
        yield status.device if number == 1 else f"{status.device}#{number}"
