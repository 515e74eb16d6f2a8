"""What the steps work on: full V1 on a GPU, the network's small model on a CPU, with the same code."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tests.recipe import GoldenCase, golden_cases, golden_full_size, make_data
from workers.types import Precision

if TYPE_CHECKING:
    from workers.v1 import LoadedModel, ModelRunner

SEED = 1
MAX_SEQ_LEN = 1024
WORKER_BATCH_SIZE = 16
SMALL_BATCH_SIZE = 2
"""Of runners on a CPU, where 16 sequences take a second."""


@dataclass(frozen=True)
class Testbed:
    """A device, a precision, and a folder with weights in several forms."""

    __test__ = False  # no class of tests

    device: str
    """cuda or cpu."""
    folder: Path
    """Where the weights lie, and what steps share."""
    precision: Precision = "float32"

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    @cached_property
    def case(self) -> GoldenCase:
        """The golden case whose weights lie in the folder."""
        return golden_full_size() if self.is_gpu else golden_cases()["small-1025"]

    @property
    def plain(self) -> Path:
        return self.folder / f"{self._size}.safetensors"

    @property
    def encrypted(self) -> Path:
        """The same under `tests.recipe.TEST_KEY`."""
        return self.folder / f"{self._size}.encrypted"

    @property
    def float16(self) -> Path:
        """The same rounded to F16."""
        return self.folder / f"{self._size}.float16.safetensors"

    @property
    def batch_size(self) -> int:
        """Sequences of a runner's batch."""
        return WORKER_BATCH_SIZE if self.is_gpu else SMALL_BATCH_SIZE

    def data(self, num_batches: int) -> bytes:
        """Bytes of so many whole batches of a runner."""
        return _data(num_batches * self.batch_size)

    def data_of_workers(self, num_batches: int, sequences_on_cpu: int) -> bytes:
        """Bytes of so many whole batches of a worker, which has 16 sequences in each; on a CPU of few sequences."""
        return _data(num_batches * WORKER_BATCH_SIZE if self.is_gpu else sequences_on_cpu)

    def runner(
        self, precision: Precision | None = None, micro_batch_size: int | None = None
    ) -> "ModelRunner":
        """A runner for the weights of the folder, in this testbed's precision unless another is given."""
        from workers.v1 import ModelConfig, ModelRunner

        return ModelRunner(
            ModelConfig(**self.case.config),
            self.device,
            precision or self.precision,
            batch_size=self.batch_size,
            micro_batch_size=micro_batch_size,
        )

    def batch(self, runner: "ModelRunner", model: "LoadedModel", data: bytes) -> None:
        """Evaluate the first batch."""
        list(runner.eval_batches(model, data, SEED, range(1)))

    @property
    def _size(self) -> str:
        return "full" if self.is_gpu else "small"


def _data(num_sequences: int) -> bytes:
    return make_data({"pattern": "hash", "size": num_sequences * MAX_SEQ_LEN, "seed": 5})
