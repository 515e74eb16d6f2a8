"""A job as the pages show it: plain values, with times since 1970 rather than ages, so that equal means unchanged."""

from dataclasses import dataclass
from datetime import datetime

from service.errors import Fault, ScoringError
from service.http_api.status_page.rendering import age, size
from service.jobs.job import Job, JobState
from service.last_hour import Phase
from service.scoring.results import (
    CompetitionResult,
    Evaluation,
    ModelOutcome,
    Progress,
    Timings,
    WeightsCached,
)

_AFTER_DOWNLOAD = ("loading", "evaluating", "done")
"""A file in any other phase may be here too: see `Progress.is_here`, which earlier versions have not stored."""


@dataclass(frozen=True, slots=True)
class Bar:
    """How far one kind of work is."""

    name: str
    share: float
    """0 to 1."""
    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something has no result."""

    code: str
    title: str
    detail: str
    fault: Fault

    @classmethod
    def of(cls, error: ScoringError) -> "Failure":
        """The error in the words of the table of errors."""
        return cls(error.full_code, error.title, error.detail, error.fault)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job in the list."""

    id: str
    kind: str
    num_models: int
    state: JobState
    created: float
    ended: float | None
    bars: tuple[Bar, ...]
    """While it runs."""
    summary: str
    """What it came to, in a few words."""
    failure: Failure | None
    rejected: tuple[Failure, ...]
    """Of the models of a competition that goes on without them, or has a winner."""

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        return None if self.ended is None else self.ended - self.created


@dataclass(frozen=True, slots=True)
class Segment:
    """A phase on the time line of a model, in seconds since the job was admitted."""

    phase: Phase | str
    start: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """What one model is worth, and where and how that was found."""

    loss: float
    cross_entropy: float
    sig_reg: float
    distance: float | None
    attends_to_future: bool
    weights_checksum: str
    weights_cached: WeightsCached
    device: str
    computed: float | None
    """When, for numbers that were kept from an earlier request."""
    total_seconds: float
    timeline: tuple[Segment, ...]
    cross_entropy_along: tuple[float, ...]
    """Along the data; empty where it is not known."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> "Numbers":
        """Those of an evaluation."""
        result, provenance, timings = evaluation.result, evaluation.provenance, evaluation.timings
        return cls(
            loss=result.loss,
            cross_entropy=result.cross_entropy,
            sig_reg=result.sig_reg,
            distance=evaluation.distance,
            attends_to_future=result.attends_to_future,
            weights_checksum=provenance.weights_checksum,
            weights_cached=timings.weights_cached,
            device=result.device,
            computed=provenance.computed_at.timestamp() if timings.result_cached else None,
            total_seconds=timings.total_seconds,
            timeline=tuple(_timeline(timings)),
            cross_entropy_along=result.cross_entropy_along,
        )


@dataclass(frozen=True, slots=True)
class ModelView:
    """One model of a job."""

    index: int
    phase: str
    bars: tuple[Bar, ...]
    numbers: Numbers | None
    failure: Failure | None
    is_winner: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to say of it: the job ended without it."""
        return not (self.bars or self.numbers or self.failure)


@dataclass(frozen=True, slots=True)
class JobView:
    """Everything about a job."""

    row: JobRow
    data_bar: Bar | None
    models: tuple[ModelView, ...]
    """Those that there is something to say of."""
    margin: float | None
    near_tie: bool
    provenance: tuple[tuple[str, str], ...]
    """What all its numbers have in common, by name; empty where it has none."""

    @property
    def cross_entropy_range(self) -> tuple[float, float]:
        """The least and the greatest along the data, over all models: their charts have one scale."""
        numbers = [
            number for model in self.models if model.numbers for number in model.numbers.cross_entropy_along
        ]
        return min(numbers, default=0.0), max(numbers, default=0.0)

    @property
    def longest_seconds(self) -> float:
        """The length of the time lines."""
        return (
            max((model.numbers.total_seconds for model in self.models if model.numbers), default=0.0) or 1.0
        )


def row_of(job: Job) -> JobRow:
    """The job as a row of the list."""
    return JobRow(
        id=job.id,
        kind=job.kind,
        num_models=job.num_models,
        state=job.state,
        created=job.created_at.timestamp(),
        ended=_moment(job.finished_at),
        bars=() if job.finished else tuple(_bars(job.models, job.estimated_seconds_left())),
        summary=_summary(job),
        failure=None if job.error is None else Failure.of(job.error),
        rejected=tuple(map(Failure.of, _rejected(job))),
    )


def view_of(job: Job) -> JobView:
    """The job as a page of its own."""
    result = job.result if isinstance(job.result, CompetitionResult) else None
    evaluations = [outcome.evaluation for outcome in _outcomes(job) if outcome.evaluation]
    return JobView(
        row=row_of(job),
        data_bar=_download_bar([job.data], "data") if job.data and not job.finished else None,
        models=tuple(model for index in range(len(job.models)) if not (model := _model(job, index)).is_empty),
        margin=result.margin if result else None,
        near_tie=result.near_tie if result else False,
        provenance=tuple(_provenance(evaluations[0])) if evaluations else (),
    )


def _model(job: Job, index: int) -> ModelView:
    outcomes, progress = _outcomes(job), job.models[index]
    outcome = outcomes[index] if outcomes else ModelOutcome()
    error = outcome.error or progress.error
    if error is None and job.error is not None and job.error.model_index == index:
        error = job.error
    return ModelView(
        index=index,
        phase=progress.phase,
        bars=() if job.finished or progress.phase == "failed" else tuple(_bars([progress])),
        numbers=None if outcome.evaluation is None else Numbers.of(outcome.evaluation),
        failure=None if error is None else Failure.of(error),
        is_winner=isinstance(job.result, CompetitionResult) and job.result.winner == index,
    )


def _provenance(evaluation: Evaluation) -> list[tuple[str, str]]:
    result, provenance = evaluation.result, evaluation.provenance
    return [
        ("data", provenance.data_checksum),
        ("sequences", f"{result.num_sequences:,}"),
        ("batches", f"{result.num_batches:,}"),
        ("seed", str(provenance.seed)),
        ("architecture", f"{provenance.architecture_version}, {provenance.architecture}"),
        ("numerics", provenance.numerics_version),
        ("precision", result.precision),
        *([("computed", "in smaller pieces, for lack of memory")] if result.was_cut_smaller else []),
        *sorted(result.versions.items()),
    ]


def _moment(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _outcomes(job: Job) -> tuple[ModelOutcome, ...]:
    match job.result:
        case CompetitionResult() as result:
            return result.outcomes
        case Evaluation() as evaluation:
            return (ModelOutcome(evaluation),)
        case None:
            return ()


def _rejected(job: Job) -> list[ScoringError]:
    errors = [progress.error for progress in job.models] if not job.finished else []
    errors += [outcome.error for outcome in _outcomes(job)]
    return [error for error in errors if error is not None]


def _summary(job: Job) -> str:
    match job.result:
        case Evaluation() as evaluation:
            return f"loss {evaluation.result.loss:.6f}"
        case CompetitionResult() as result:
            return f"model {result.winner} wins with loss {result.winning.result.loss:.6f}"
        case None:
            return ""


# -- while it runs -----------------------------------------------------------------------------------------


def _bars(models: list[Progress], seconds_left: float | None = None) -> list[Bar]:
    """Download, load and batches, over the models that have not failed, with the time left where it is known."""
    models = [progress for progress in models if progress.phase != "failed"] or models
    num_loaded = sum(progress.phase in ("evaluating", "done") for progress in models)
    num_loading = sum(progress.phase == "loading" for progress in models)
    batches_done = sum(progress.batches_done or 0 for progress in models)
    num_batches = sum(progress.num_batches or 0 for progress in models)
    known = sum(progress.num_batches is not None for progress in models)
    batches = sum(progress.batches for progress in models)
    share = batches / num_batches * known / len(models) if num_batches else 0.0
    left = "" if seconds_left is None else f", {_roughly(seconds_left)} left"
    load = "loading" if num_loading else ("done" if num_loaded == len(models) else "")
    if len(models) > 1:
        load = f"{num_loaded} of {len(models)}"
    return [
        _download_bar(models, "download"),
        Bar("load", round(num_loaded / len(models), 3), load),
        Bar("batches", round(share, 3), f"{batches_done:,} of {num_batches:,}{left}" if num_batches else ""),
    ]


def _download_bar(files: list[Progress], name: str) -> Bar:
    coming = [file for file in files if file.phase == "downloading" and not _is_here(file)]
    rate = sum(file.bytes_per_second or 0.0 for file in coming)
    share = sum(_share_here(file) for file in files) / len(files)
    text = f"{size(rate)}/s" if coming else ("done" if all(map(_is_here, files)) else "")
    return Bar(name, round(share, 3), text)


def _share_here(file: Progress) -> float:
    if _is_here(file):
        return 1.0
    return (file.bytes_done or 0) / file.bytes_total if file.bytes_total else 0.0


def _is_here(file: Progress) -> bool:
    has_all_bytes = file.phase == "downloading" and file.bytes_done == file.bytes_total is not None
    return file.is_here or has_all_bytes or file.phase in _AFTER_DOWNLOAD


def _roughly(seconds: float) -> str:
    """In steps of 5 s at most, so that the estimate does not change a panel with each look at it."""
    return age(seconds if seconds < 10 else 5 * round(seconds / 5))


# -- when it has ended -------------------------------------------------------------------------------------


def _timeline(timings: Timings) -> list[Segment]:
    """The phases of one evaluation, one after the other, up to its end."""
    phases = [
        ("download", timings.download_seconds),
        ("queue", timings.queue_seconds),
        ("load", timings.load_seconds),
        ("eval", timings.eval_seconds),
    ]
    start = max(0.0, timings.total_seconds - sum(seconds for _, seconds in phases))
    segments = [Segment("wait", 0.0, start)]
    for phase, seconds in phases:
        segments.append(Segment(phase, start, seconds))
        start += seconds
    return segments
