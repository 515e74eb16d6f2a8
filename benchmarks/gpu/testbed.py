"""What the steps work on: full V1 on a GPU, the network's small model on a CPU, with the same code."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tests.recipe import GoldenCase, golden_cases, golden_full_size, make_data
from workers.types import Precision

if TYPE_CHECKING:
    from workers.v1 import LoadedModel, ModelRunner

BATCH_BYTES = 16 * 1024
SEED = 1


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

    def data(self, num_batches: int) -> bytes:
        """Bytes of so many whole batches of 16 x 1024 tokens."""
        return make_data({"pattern": "hash", "size": num_batches * BATCH_BYTES, "seed": 5})

    def runner(
        self, precision: Precision | None = None, micro_batch_size: int | None = None
    ) -> "ModelRunner":
        """A runner for the weights of the folder, in this testbed's precision unless another is given."""
        from workers.v1 import ModelConfig, ModelRunner

        return ModelRunner(
            ModelConfig(**self.case.config),
            self.device,
            precision or self.precision,
            micro_batch_size=micro_batch_size,
        )

    def batch(self, runner: "ModelRunner", model: "LoadedModel", data: bytes) -> None:
        """Evaluate the first batch."""
        list(runner.eval_batches(model, data, SEED, range(1)))

    @property
    def _size(self) -> str:
        return "full" if self.is_gpu else "small"
