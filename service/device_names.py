"""What devices are called where each needs a name of its own: metrics and the status page."""

from collections import Counter
from collections.abc import Iterable, Iterator

from workers.types import DeviceStatus


def device_names(statuses: Iterable[DeviceStatus]) -> Iterator[str]:
    """The devices' names on their nodes. The second worker on a device is "cpu#2": no two of a node are the same."""
    seen: Counter[tuple[str, str]] = Counter()
    for status in statuses:
        seen[status.node, status.device] += 1
        number = seen[status.node, status.device]
        yield status.device if number == 1 else f"{status.device}#{number}"
