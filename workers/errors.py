"""Why an evaluation gave no result. Picklable; the messages carry no key, no URL and no path.

WorkerError
├── EvaluationRefused          these weights or data have no result, the same everywhere: no retry helps
│   ├── DecryptionFailed       a key was given and what it yields is not a safetensors file
│   ├── WeightsInvalid         not what the network accepts as weights of this architecture
│   ├── EmptyData              no bytes to evaluate on
│   └── NonFiniteResult        loss or embedding is NaN or infinite
├── EvaluationCrashesWorker    these weights ended two workers: kept from a third
└── WorkerTrouble              this machine's trouble: another try may succeed
    ├── WorkerCrashed          the process died or froze under the job
    ├── FileUnreadable         the machine could not read the weights or the data it was pointed to
    ├── OutOfMemory            the device has too little memory, even with nothing else on it
    ├── StorageFull            no machine that could evaluate it has room on its disk for the files
    └── NoWorker               no worker is alive or will be soon
        └── PrecisionNeedsGpu  the precision asked for is none of a CPU's, and a worker would run on one
"""


class WorkerError(Exception):
    """Base of every failure of a pool."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class EvaluationRefused(WorkerError):
    """These weights or this data have no result; every worker says the same."""


class DecryptionFailed(EvaluationRefused):
    """The key does not fit: what it yields is not a safetensors file."""


class WeightsInvalid(EvaluationRefused):
    """The file is not what the network accepts as weights of this architecture."""


class EmptyData(EvaluationRefused):
    """There are no bytes to evaluate on."""


class NonFiniteResult(EvaluationRefused):
    """The loss or the embedding is NaN or infinite."""


class EvaluationCrashesWorker(WorkerError):
    """Two workers died of this evaluation; no third one is risked."""


class WorkerTrouble(WorkerError):
    """Trouble of this machine; another try may succeed."""


class WorkerCrashed(WorkerTrouble):
    """The worker died or froze while it had the job."""


class FileUnreadable(WorkerTrouble):
    """The weights or the data are not to be read where the job says they lie."""


class OutOfMemory(WorkerTrouble):
    """The device's memory does not suffice, even with nothing else on it."""


class StorageFull(WorkerTrouble):
    """The machine that was to evaluate it has no room on its disk for the files."""


class NoWorker(WorkerTrouble):
    """No worker is alive, and none will be soon."""


class PrecisionNeedsGpu(NoWorker):
    """A precision was asked for that only a GPU has, and a worker would run on a CPU."""
