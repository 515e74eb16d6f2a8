"""A worker like any other, but for two jobs: one touches memory that is not its own, one asks for too much.

Started by a pool as its entry module. `weights_checksum` names the fault.
"""

from collections.abc import Iterator

import torch

from workers.types import BatchScore, CancelCheck, EvalJob, OnFraction, ignore_fraction
from workers.worker.main import main
from workers.worker.runner import Runner


class FaultingRunner(Runner):
    """Does to its device what the job asks for, in the middle of an evaluation."""

    def evaluate(
        self,
        job: EvalJob,
        batches: range,
        check_cancelled: CancelCheck,
        on_fraction: OnFraction = ignore_fraction,
    ) -> Iterator[BatchScore]:
        def fault() -> None:
            check_cancelled()
            match job.weights_checksum:
                case "touches-foreign-memory":
                    far_away = torch.tensor([1 << 40], device="cuda")
                    torch.zeros(1, device="cuda")[far_away].cpu()
                case "asks-for-too-much":
                    torch.empty(1 << 50, dtype=torch.uint8, device="cuda")

        return super().evaluate(job, batches, fault, on_fraction)


if __name__ == "__main__":
    main(FaultingRunner)
