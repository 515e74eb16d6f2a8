"""Screens with workers of this process's own: no server, weights evaluated where they lie."""

import asyncio
import os
from collections.abc import AsyncIterable
from pathlib import Path

from service.blob import BlobRef
from service.cli.encryption import commitment_of
from service.cli.input_file import require_regular_file
from service.cli.screen.lines import OnLine, line_of
from service.cli.screen.question import NamedModel, Question
from service.cli.urls import is_url
from service.cli.usage import CommandFailed
from service.config import Settings
from service.errors import ChecksumMismatch, ScoringError, SizeMismatch
from service.lifespan import open_pool, open_private_cache, served_model
from service.metrics import Metrics
from service.scoring.competition import ModelManifest, parse_decryption_key
from service.scoring.evaluator import Evaluator
from service.scoring.kept_pieces import KeptPieces
from service.scoring.kept_results import NoKeptResults
from service.scoring.limits import Limits
from service.scoring.scheduler import Scheduler
from service.scoring.screen import (
    LocalWeights,
    Piece,
    PieceResult,
    Screen,
    ScreenModel,
    ScreenSummary,
    screen_target,
)
from service.scoring.screener import Screener
from service.scoring.served_architecture import architecture_of
from workers.architectures import CURRENT_VERSION

_NO_LIMIT_SECONDS = 10.0 * 365 * 24 * 3600


async def screen_locally(
    question: Question, pieces: AsyncIterable[Piece], settings: Settings, on_line: OnLine
) -> ScreenSummary:
    """Cancelling ends the workers, whatever they do. Raises a WorkerError if none can start, and a ScoringError."""
    for model in question.models:
        if not is_url(model.url):
            require_regular_file(Path(model.url), or_url=True)
    architecture = architecture_of(settings)
    screen = await asyncio.to_thread(_screen, question, architecture.model.embedding_dim)
    async with open_private_cache(settings) as cache, open_pool(settings) as pool:
        scheduler = Scheduler(
            queue_size=1,
            num_workers=lambda: len(pool.status()),
            max_downloads=settings.max_weights_at_once,
            kept_bytes=await cache.capacity_bytes(),
            timeout_seconds=_NO_LIMIT_SECONDS,
        )
        limits = Limits(
            architecture=architecture,
            max_data_bytes=settings.max_data_bytes,
            max_model_bytes=settings.max_model_bytes,
            max_models=max(settings.max_models, len(screen.models)),
            architecture_version=CURRENT_VERSION,
        )

        async def emit(result: PieceResult) -> None:
            await on_line(line_of(result, screen))

        parts = (pool, NoKeptResults(), served_model(settings), Metrics())
        screener = Screener(cache, scheduler, pool, Evaluator(*parts), KeptPieces(*parts), limits)
        summary = await screener.screen(screen, pieces, emit)
    for found in screen.models:
        if (
            isinstance(found.weights, LocalWeights)
            and _identity(found.weights.path) != found.weights.identity
        ):
            raise CommandFailed(f"the weights {found.weights.path} were changed while they were evaluated")
    return summary


def _screen(question: Question, embedding_dim: int) -> Screen:
    places = {model.id: index for index, model in enumerate(question.models)}
    return Screen(
        models=tuple(ScreenModel(model.id, _weights(model)) for model in question.models),
        targets=tuple(
            screen_target(
                target.id,
                target.embedding,
                target.distance_threshold,
                tuple(places[name] for name in target.model_ids),
                embedding_dim,
            )
            for target in question.targets
        ),
        seed=question.seed,
    )


def _weights(model: NamedModel) -> ModelManifest | LocalWeights | ScoringError:
    try:
        key = None
        if model.decryption_key is not None:
            key = parse_decryption_key(model.decryption_key, fault="model_owner")
        if is_url(model.url):
            return ModelManifest(BlobRef(model.url, model.checksum, model.size), key)
        _verify(model)
    except ScoringError as error:
        return error
    return LocalWeights(model.url, _identity(model.url), Path(model.url).stat().st_size, key)


def _verify(model: NamedModel) -> None:
    """What is screened is what was promised. Raises SizeMismatch or ChecksumMismatch."""
    if model.size not in (None, Path(model.url).stat().st_size):
        raise SizeMismatch("the file does not have the size that was promised", blob="model")
    if model.checksum is not None and commitment_of(Path(model.url)).checksum != model.checksum:
        raise ChecksumMismatch("the file does not have the checksum that was promised", blob="model")


def _identity(path: str) -> str:
    state = os.stat(path)
    return f"{path} {state.st_dev} {state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"
