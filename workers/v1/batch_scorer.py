"""The numbers of one batch on one device: forward passes, the guard that proves them, the means over their tokens."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import runner_order
from .batch_progress import BatchProgress, OnFraction, ignore_fraction
from .cancellation import CancelCheck
from .config import ModelConfig, SIGRegConfig
from .forward import (
    CPU_TILE_ELEMENTS,
    MAX_SAFE_OFFSET,
    MAX_SAFE_SCORE,
    ForwardPass,
    Guard,
    joined_guard,
    linear,
    tiles,
)
from .loss import token_cross_entropy
from .model import Model
from .noise import batch_noise
from .precisions import ATTENTION_DTYPES, Precision, set_matmul_precision
from .running_mean import BatchScore
from .sig_reg import SIGReg, unit_columns
from .team import Team, compute
from .tokenizer import TokenizedBatch, joined

CPU_MICRO_BATCH_BYTES = 64 << 20
CUDA_MICRO_BATCH_BYTES = 4 << 30
"""Activations of one micro-batch: enough rows to keep the device busy, and no more."""

CPU_PIECES_BYTES = 16 << 20
"""The same of pieces that are evaluated together on a CPU, if these are enough for its threads: the scores of all come
at once, and so not too late."""

CPU_PASS_SEQUENCES = 1
"""Sequences that go through the layers together on a CPU, where threads share passes."""

CPU_LOSS_ROWS = 256
"""Tokens whose loss and SIGReg a thread computes at once."""

CPU_SIG_REG_ROWS = 64
CUDA_SIG_REG_ROWS = 16_384
"""Tokens whose slices are processed at once: on a CPU, what its caches hold."""


class BatchScorer:
    """Scores batches of sequences of one length with models of one shape.

    On a CPU the threads that torch has in the calling thread share the sequences and tiles of a batch (see `team`).
    """

    def __init__(
        self,
        config: ModelConfig,
        device: torch.device,
        precision: Precision,
        max_seq_len: int,
        batch_size: int,
        micro_batch_size: int | None,
        sig_reg: SIGRegConfig | None,
    ) -> None:
        """`micro_batch_size` is how many sequences are on the device at once; None: as many as suit the device."""
        self.config = config
        self.device = device
        self.precision = precision
        self.max_seq_len = max_seq_len
        self._is_micro_batch_given = micro_batch_size is not None
        self.micro_batch_size = min(micro_batch_size or self._default_micro_batch_size(), batch_size)
        self._sig_reg = SIGReg(sig_reg).to(device)

    def begin(
        self,
        model: Model,
        pieces: Sequence[TokenizedBatch],
        directions: Callable[[], Tensor],
        check_cancelled: CancelCheck,
        *,
        detail: bool = False,
        on_fraction: OnFraction = ignore_fraction,
    ) -> Callable[[], list[BatchScore]]:
        """Begin to score batches of sequences, which share forward passes. What it returns waits for a score of each.

        A CPU has computed them already; a GPU has been handed the work, and may be handed more before it is waited for.

        If the guard does not hold, or a number is not finite, each is scored by itself, and on the reference path
        where its own guard does not hold either: what one piece needs costs no other its result.
        """
        begin_path = partial(
            self._begin_path, model, pieces, directions, check_cancelled, detail, on_fraction
        )
        wait_for_fast = begin_path(reference=False)

        def wait() -> list[BatchScore]:
            scores, is_proven = wait_for_fast()
            if is_proven and all(map(_is_finite, scores)):
                return scores
            if len(pieces) == 1:
                return begin_path(reference=True)()[0]
            return [
                score
                for piece in pieces
                for score in self.begin(model, [piece], directions, check_cancelled, detail=detail)()
            ]

        return wait

    @torch.inference_mode()
    def _begin_path(
        self,
        model: Model,
        pieces: Sequence[TokenizedBatch],
        directions: Callable[[], Tensor],
        check_cancelled: CancelCheck,
        detail: bool,
        on_fraction: OnFraction,
        *,
        reference: bool,
    ) -> Callable[[], tuple[list[BatchScore], bool]]:
        """By one path the score of each piece, and whether the guard proves them (always so on the reference path).

        What the means are taken of stays on the device until all passes are through: one transfer.
        """
        set_matmul_precision(self.precision)
        batch = joined(pieces)
        num_sequences, T = batch.token_ids.shape
        is_cpu = self.device.type == "cpu"
        size = min(CPU_PASS_SEQUENCES, self.micro_batch_size) if is_cpu else self.micro_batch_size
        num_threads = torch.get_num_threads() if is_cpu else 1
        done: list[float] = []
        num_passes = -(-num_sequences // size)
        progress = BatchProgress(self.config, T, self._sig_reg.config.slices, num_passes, done.append)

        def on_progress() -> None:
            if done:
                on_fraction(done[-1])  # from this thread, whichever has computed it
            check_cancelled()

        def score(team: Team) -> list[tuple[Tensor, Tensor, Tensor, Guard]]:
            def score_pass(start: int) -> tuple[Tensor, Tensor, Tensor, Guard]:
                forward = ForwardPass(
                    model,
                    team,
                    reference=reference,
                    progress=progress,
                    attention_dtype=ATTENTION_DTYPES.get(self.precision, torch.float32),
                )
                sequences = batch.part(slice(start, start + size))
                return *self._score_sequences(forward, sequences, directions), forward.guard()

            starts = range(0, num_sequences, size)
            return team.share(score_pass, starts, self._passes_at_once(size, num_threads))

        *parts, guards = zip(*compute(score, num_threads, on_progress), strict=True)
        on_fraction(done[-1])
        guard = joined_guard(guards, self.micro_batch_size // size, self.config.head_dim)
        numbers = begin_copy(torch.cat([*(part.flatten() for kind in parts for part in kind), guard]))

        def wait() -> tuple[list[BatchScore], bool]:
            cross_entropy, sig_reg, embeddings, (score_bound, offset, leaks) = np.split(
                numbers(),
                np.cumsum([num_sequences * T, num_sequences * T, num_sequences * self.config.embedding_dim]),
            )
            scores = _scores(
                [len(piece.token_ids) for piece in pieces],
                cross_entropy.reshape(num_sequences, T),
                sig_reg.reshape(num_sequences, T),
                embeddings.reshape(num_sequences, self.config.embedding_dim),
                # Only the reference path looks for it, which takes one piece at a time.
                attends_to_future=bool(leaks),
                detail=detail,
            )
            return scores, bool(score_bound <= MAX_SAFE_SCORE and offset <= MAX_SAFE_OFFSET)

        return wait

    def _score_sequences(
        self, forward: ForwardPass, batch: TokenizedBatch, directions: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each token cross-entropy [B, T] and SIGReg [B, T], of each sequence the mean representation [B, D]."""
        token_ids, targets, positions = (
            self._on_device(part) for part in (batch.token_ids, batch.targets, batch.pos_ids)
        )
        r = forward.representations(token_ids, positions)  # (B, T, D)
        rows = r.flatten(0, 1)  # (N, D)

        def score_tile(tile: slice) -> tuple[Tensor, Tensor]:
            predictor = forward.model.predictor
            logits = linear(forward.operand(rows[tile], predictor), predictor)  # (R, V)
            cross_entropy = token_cross_entropy(logits, targets.flatten()[tile])  # (R)
            sig_reg = self._token_sig_reg(rows[tile], directions())
            forward.progress.sig_reg_advanced((tile.stop - tile.start) / len(rows))
            return cross_entropy, sig_reg

        num_rows = CPU_LOSS_ROWS if rows.device.type == "cpu" else len(rows)
        scored = forward.team.share(score_tile, tiles(len(rows), num_rows))
        cross_entropy, sig_reg = (torch.cat(part).view(targets.shape) for part in zip(*scored, strict=True))
        return cross_entropy, sig_reg, runner_order.mean_over_tokens(r)

    def directions(self, seed: int, index: int) -> Callable[[], Tensor]:
        """What the representations of batch `index` are projected on: [D, S], made once.

        On a GPU that is when they are first asked for: their noise is drawn while the queued forward pass runs.
        """

        @cache
        @torch.inference_mode()
        def directions() -> Tensor:
            noise = batch_noise(seed, index, self.config.embedding_dim, self._sig_reg.config.slices)
            return unit_columns(self._on_device(noise))

        if self.device.type == "cpu":
            directions()
        return directions

    def _on_device(self, array: NDArray[Any]) -> Tensor:
        """The array as a tensor there. From memory that is not pinned, a copy waits for all that a GPU is yet to do."""
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        with torch.cuda.device(self.device):  # whose context is to pin it
            return tensor.pin_memory().to(self.device, non_blocking=True)

    def _token_sig_reg(self, rows: Tensor, directions: Tensor) -> Tensor:
        """SIGReg of every token, without its coefficient: [N, D], [D, S] -> [N]."""
        rows_per_tile = CUDA_SIG_REG_ROWS if rows.is_cuda else CPU_SIG_REG_ROWS
        z = rows @ directions  # (N, S)
        return torch.cat([self._sig_reg.per_token(tile) for tile in torch.split(z, rows_per_tile)])  # (N)

    def _default_micro_batch_size(self) -> int:
        """As many sequences as keep their activations within the device's share."""
        share = CUDA_MICRO_BATCH_BYTES if self.device.type == "cuda" else CPU_MICRO_BATCH_BYTES
        return max(1, share // self._sequence_bytes())

    def _passes_at_once(self, size: int, num_threads: int) -> int:
        """Of `size` sequences each: as many as there is memory for, or by default as keep every thread busy.

        Each thread computes at most one pass of its own, and several share one in tiles where it has so many.
        """
        num_at_once = self.micro_batch_size // size
        if self._is_micro_batch_given:
            return num_at_once
        num_tiles = max(1, self.max_seq_len * self.config.embedding_dim // CPU_TILE_ELEMENTS)
        return max(num_at_once, -(-num_threads // num_tiles))

    def pieces_at_once(self) -> int:
        """Sequences, of several pieces, that are faster together than one after the other."""
        if self.device.type != "cpu":
            return self.micro_batch_size
        fitting = min(self.micro_batch_size, CPU_PIECES_BYTES // self._sequence_bytes())
        return max(1, fitting, self._passes_at_once(CPU_PASS_SEQUENCES, torch.get_num_threads()))

    def _sequence_bytes(self) -> int:
        """Activations of one sequence: about eight of [T, D] in float32."""
        return 8 * 4 * self.max_seq_len * self.config.embedding_dim


def begin_copy(numbers: Tensor) -> Callable[[], NDArray[Any]]:
    """Begin to copy them from the device. Called, what it returns waits for them, but for nothing queued behind."""
    if not numbers.is_cuda:
        return numbers.cpu().numpy
    with torch.cuda.device(numbers.device):
        copy = numbers.to("cpu", non_blocking=True)  # into pinned memory
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        copied.record()

    def wait() -> NDArray[Any]:
        copied.synchronize()
        found: NDArray[Any] = copy.numpy()
        return found

    return wait


def _scores(
    sizes: Sequence[int],
    cross_entropy: NDArray[np.float32],
    sig_reg: NDArray[np.float32],
    embeddings: NDArray[np.float32],
    *,
    attends_to_future: bool,
    detail: bool,
) -> list[BatchScore]:
    """The means of each piece, of so many sequences, from the numbers of all: [N, T], [N, T] and [N, D]."""
    ends = np.cumsum(sizes)[:-1]
    of_pieces = zip(
        *(np.split(numbers, ends) for numbers in (cross_entropy, sig_reg, embeddings)), strict=True
    )
    return [
        BatchScore(
            index=i,
            cross_entropy=runner_order.mean(cross_entropies.ravel()),
            sig_reg=runner_order.mean(sig_regs.ravel()),
            embedding=runner_order.mean_over_sequences(representations),
            attends_to_future=attends_to_future,
            token_cross_entropy=cross_entropies if detail else None,
        )
        for i, (cross_entropies, sig_regs, representations) in enumerate(of_pieces)
    ]


def _is_finite(score: BatchScore) -> bool:
    return bool(
        np.isfinite([score.cross_entropy, score.sig_reg]).all() and np.isfinite(score.embedding).all()
    )
