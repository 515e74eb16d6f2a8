"""A worker like any other, but for two jobs: one touches memory that is not its own, one asks for too much.

Started by a pool as its entry module. `weights_checksum` names the fault.
"""

from collections.abc import Callable, Iterator

import torch

from workers.types import BatchScore, EvalJob
from workers.worker.main import main
from workers.worker.runner import Runner


class FaultingRunner(Runner):
    """Does to its device what the job asks for, then evaluates."""

    def _scores(
        self, job: EvalJob, data: bytes, batches: range, check_cancelled: Callable[[], None], *, shrink: bool
    ) -> Iterator[BatchScore]:
        match job.weights_checksum:
            case "touches-foreign-memory":
                far_away = torch.tensor([1 << 40], device=self._config.device)
                torch.zeros(1, device=self._config.device)[far_away].cpu()
            case "asks-for-too-much":
                torch.empty(1 << 50, dtype=torch.uint8, device=self._config.device)
        return super()._scores(job, data, batches, check_cancelled, shrink=shrink)


if __name__ == "__main__":
    main(FaultingRunner)
