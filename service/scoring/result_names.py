"""Which keys the results of a pool go by: those of the kinds of device that it has."""

from service.scoring.kept_results import Refusal, ResultKey, ServedModel
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalResult


class ResultNames:
    """The keys of one pool's results."""

    def __init__(self, pool: WorkerPool, model: ServedModel) -> None:
        self._pool = pool
        self._model = model

    def of(self, job: EvalJob) -> list[ResultKey]:
        """What a job's result may be kept under: a key for each kind of device in the pool, GPUs first."""
        workers = [worker for worker in self._pool.status() if worker.versions]
        workers.sort(key=lambda worker: worker.kind.device == "cpu")
        return list(dict.fromkeys(self._model.key(job, each.kind, each.versions) for each in workers))

    def of_outcome(self, job: EvalJob, outcome: EvalResult | Refusal) -> ResultKey | None:
        """What to keep an outcome under; None for one that another try may not give."""
        if not isinstance(outcome, EvalResult):  # it does not say which kind of device has found it
            keys = self.of(job)
            return keys[0] if len(keys) == 1 else None
        if outcome.was_cut_smaller:
            return None
        return self._model.key(job, outcome.kind, outcome.versions)
