"""Progress of downloads and evaluations, passed on to the caller of a request."""

from collections.abc import Callable

from service.download.throughput import DownloadProgress
from service.errors import BlobKind
from service.log import log_bug
from service.scoring.results import OnProgress, Progress
from workers.types import EvalProgress


def report_download(
    on_progress: OnProgress, progress: DownloadProgress, blob: BlobKind, model_index: int | None
) -> None:
    """Pass on how far a download is."""
    on_progress(
        Progress(
            "downloading",
            blob=blob,
            model_index=model_index,
            bytes_done=progress.bytes_done,
            bytes_total=progress.bytes_total,
            bytes_per_second=progress.bytes_per_second,
        )
    )


def batch_reporter(on_progress: OnProgress, model_index: int) -> Callable[[EvalProgress], None]:
    """A callback for the pool that passes on how far one model's evaluation is."""

    def report(progress: EvalProgress) -> None:
        on_progress(
            Progress(
                progress.phase,
                model_index=model_index,
                batches_done=progress.batches_done,
                num_batches=progress.num_batches,
                fraction=progress.fraction,
                is_here=True,
            )
        )

    return report


def logging_errors(on_progress: OnProgress) -> OnProgress:
    """The same callback, but an exception it raises is logged and does not fail the request."""

    def report(progress: Progress) -> None:
        try:
            on_progress(progress)
        except Exception as error:
            log_bug(error)

    return report
