"""A worker like any other, on a fake device: started by a test as its entry module."""

from tests.workers.worker.fake_device import Device, fake_architecture
from workers.types import WorkerConfig
from workers.worker.main import main
from workers.worker.runner import Runner


def runner(config: WorkerConfig) -> Runner:
    """The real one; a model takes 100 bytes of the config's budget."""
    device = Device()
    return Runner(config, lambda version: fake_architecture(device))


if __name__ == "__main__":
    main(runner)
