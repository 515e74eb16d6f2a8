"""The mirror of the network's `ModelRunner`: weights and bytes in, loss and embedding out."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import runner_order, tokenizer
from .batch_progress import BatchProgress, OnFraction, ignore_fraction
from .cancellation import CancelCheck, never_cancelled
from .config import V1_BATCH_SIZE, V1_MAX_SEQ_LEN, V1_SIG_REG_COEFFICIENT, ModelConfig, SIGRegConfig
from .environment import warn_of_changed_numbers
from .errors import EmptyData
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
from .model import Linear, Model
from .noise import batch_noise
from .running_mean import BatchScore, running_mean
from .sig_reg import SIGReg, unit_columns
from .split_matmul import hold_in_parts
from .team import Team, compute
from .tokenizer import TokenizedBatch, joined
from .weights import load_tensors
from .weights_source import Weights, check_key

Precision = Literal["float32", "tf32", "bf16", "float32-split"]
"""float32-split: products of two float16 parts on tensor cores (`split_matmul`). What each is worth: docs/gpu.md."""

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


@dataclass(frozen=True, slots=True)
class EvalOutput:
    """One model on one data set. `loss = cross_entropy + 0.02 * sig_reg`."""

    loss: float
    cross_entropy: float
    sig_reg: float
    embedding: Tensor
    """float32 [D], on the CPU."""
    attends_to_future: bool
    """A masked score won weight: such weights see the bytes they predict."""
    num_sequences: int
    num_batches: int


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """Weights resident on a device, ready to be evaluated; dropped like any other value."""

    model: Model

    @property
    def resident_bytes(self) -> int:
        """Bytes its tensors take on the device. On a CPU, those of a mapped file count: they can be evicted."""
        return sum(tensor.nbytes for tensor in self.model.parameters())


class ModelRunner:
    """Evaluates weights of one architecture on one device, as the network's Rust runner does.

    `eval` is the whole of it for one caller. `load`, `num_batches` and `eval_batches` are its parts, for a
    worker that keeps weights resident and shares an evaluation with others; `running_mean` folds the scores.

    The numbers depend on weights, data, seed, device kind and precision alone, on a GPU on `micro_batch_size` too.
    On a CPU as many threads share an evaluation as torch has in the calling thread (see `team`).
    Construction sets torch's process-wide float32 matmul precision to IEEE (TF32 on request). Attention on a GPU does
    not follow it: see `forward.causal_attention`.

    Not safe for use by several threads at once.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
        max_seq_len: int = V1_MAX_SEQ_LEN,
        batch_size: int = V1_BATCH_SIZE,
        micro_batch_size: int | None = None,
        sig_reg: SIGRegConfig | None = None,
    ) -> None:
        """`device` is one of torch's, or "auto": a GPU if there is one, else the CPU.

        `micro_batch_size` is how many sequences are on the device at once; give a smaller one, such as
        half of `runner.micro_batch_size`, after running out of memory. By default it follows from the
        config and the kind of device alone, and a CPU takes more at once where it would have idle cores else.
        `sig_reg` is the network's by default, and its coefficient always.

        Raises ValueError for a precision the device does not have, sizes below 1, or another coefficient.
        """
        if sig_reg is not None and sig_reg.coefficient != V1_SIG_REG_COEFFICIENT:
            raise ValueError(f"the coefficient of SIGReg is {V1_SIG_REG_COEFFICIENT} in every evaluation")
        if min(max_seq_len, batch_size, micro_batch_size or 1) < 1:
            raise ValueError("max_seq_len, batch_size and micro_batch_size must be at least 1")
        if precision not in get_args(Precision):
            raise ValueError(f"precision is one of {', '.join(get_args(Precision))}, not {precision!r}")
        self.config = config or ModelConfig()
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if precision != "float32" and self.device.type != "cuda":
            raise ValueError(f"precision {precision!r} needs a CUDA device, not {self.device.type!r}")
        if self.device.type == "cuda":
            warn_of_changed_numbers()
        self.precision: Precision = precision
        self.max_seq_len = max_seq_len
        self.batch_size = batch_size
        self._is_micro_batch_given = micro_batch_size is not None
        self.micro_batch_size = min(micro_batch_size or self._default_micro_batch_size(), batch_size)
        self._sig_reg = SIGReg(sig_reg).to(self.device)
        self._last_loaded: tuple[tuple[object, ...], LoadedModel] | None = None
        self._set_matmul_precision()

    def eval(
        self, data: bytes, weights: Weights, seed: int = 0, decryption_key: bytes | None = None
    ) -> EvalOutput:
        """Evaluate weights (a path, or the bytes of a file) on data, both as published.

        `seed` is 0 .. 2**64 - 1. `decryption_key` is 32 bytes, for weights that are encrypted.
        The weights last used stay resident, so evaluating them again does not load them again.

        Raises WeightsInvalid, DecryptionFailed, EmptyData or NonFiniteResult, see `errors`.
        """
        if not data:
            raise EmptyData("the data is empty: there is nothing to evaluate on")
        model = self._resident(weights, decryption_key)
        batches = range(self.num_batches(len(data)))
        mean = running_mean(self.eval_batches(model, data, seed, batches))
        return EvalOutput(
            loss=mean.loss,
            cross_entropy=mean.cross_entropy,
            sig_reg=mean.sig_reg,
            embedding=torch.from_numpy(mean.embedding),
            attends_to_future=mean.attends_to_future,
            num_sequences=tokenizer.num_sequences(len(data), self.max_seq_len),
            num_batches=len(batches),
        )

    def load(
        self,
        weights: Weights,
        decryption_key: bytes | None = None,
        check_cancelled: CancelCheck = never_cancelled,
    ) -> LoadedModel:
        """Bring weights to the device: validated by their header first, then decrypted straight into tensors.

        A plain float32 file is mapped, not copied, and must not be changed while the model lives.
        `check_cancelled` is called before every few MiB, from this thread, and may raise to stop.
        Raises WeightsInvalid or DecryptionFailed.
        """
        model = self._model_without_weights()
        model.load_state_dict(  # which holds their only references: each is freed once it is held otherwise
            load_tensors(weights, self.config, decryption_key, self.device, check_cancelled), assign=True
        )
        model.requires_grad_(False).eval()
        self._hold_in_precision(model)
        return LoadedModel(model)

    @property
    def resident_bytes(self) -> int:
        """Bytes that any weights take on the device once they are loaded, in whatever dtype their file has them."""
        model = self._model_without_weights()
        self._hold_in_precision(model)
        return LoadedModel(model).resident_bytes

    def num_batches(self, data_size: int) -> int:
        """How many batches `data_size` bytes make."""
        return tokenizer.num_batches(data_size, self.max_seq_len, self.batch_size)

    def eval_batches(
        self,
        model: LoadedModel,
        data: bytes,
        seed: int,
        batches: range,
        check_cancelled: CancelCheck = never_cancelled,
        *,
        detail: bool = False,
        on_fraction: OnFraction = ignore_fraction,
    ) -> Iterator[BatchScore]:
        """Score these batches, one after the other; closing the iterator stops between two.

        `check_cancelled` is called from this thread each time the work has advanced, several times per layer of a large
        model, and may raise to stop.
        Which batches are asked for together makes no difference to the bits of any, nor does `detail`, which
        adds the cross-entropy of every token. `on_fraction` is told how far the batch is that is computed.
        Raises EmptyData for no data, ValueError for batches the data does not have or a seed out of range.
        """
        if not data:
            raise EmptyData("the data is empty: there is nothing to evaluate on")
        _check_seed(seed)
        if batches and not 0 <= min(batches) <= max(batches) < self.num_batches(len(data)):
            raise ValueError(f"the data has {self.num_batches(len(data))} batches, not those of {batches}")
        for index in batches:
            yield self._score_batch(model.model, data, seed, index, check_cancelled, detail, on_fraction)

    def eval_pieces(
        self,
        model: LoadedModel,
        pieces: Sequence[bytes],
        seed: int,
        check_cancelled: CancelCheck = never_cancelled,
    ) -> Iterator[BatchScore]:
        """Score several small data sets, as many together as make it faster.

        Yields one score for each, in order; its `index` is that of the piece. A piece is data of its own, of at
        most one batch: its noise, that of batch 0, is the same for all, and every mean is taken over its own
        sequences. A score is that of `eval_batches` on this piece alone: on a CPU to the bit, on a GPU up to rounding,
        for products of another shape add in another order.
        Raises EmptyData for a piece without bytes, ValueError for one of several batches or a seed out of range.
        """
        _check_seed(seed)
        sizes = [self._num_sequences_of_piece(piece) for piece in pieces]
        directions = self._directions(seed, 0)
        for which in _passes(sizes, self._pieces_at_once()):
            scores = self._score_pieces(
                model.model,
                [tokenizer.tokenize_range(pieces[i], range(sizes[i]), self.max_seq_len) for i in which],
                directions,
                check_cancelled,
            )
            for i, score in zip(which, scores, strict=True):
                yield replace(score, index=i)

    @torch.inference_mode()
    def _score_batch(
        self,
        model: Model,
        data: bytes,
        seed: int,
        index: int,
        check_cancelled: CancelCheck,
        detail: bool,
        on_fraction: OnFraction,
    ) -> BatchScore:
        first = index * self.batch_size
        last = min(first + self.batch_size, tokenizer.num_sequences(len(data), self.max_seq_len))
        batch = tokenizer.tokenize_range(data, range(first, last), self.max_seq_len)
        directions = self._directions(seed, index)
        (score,) = self._score_pieces(
            model, [batch], directions, check_cancelled, detail=detail, on_fraction=on_fraction
        )
        return replace(score, index=index)

    @torch.inference_mode()
    def _score_pieces(
        self,
        model: Model,
        pieces: Sequence[TokenizedBatch],
        directions: Callable[[], Tensor],
        check_cancelled: CancelCheck,
        *,
        detail: bool = False,
        on_fraction: OnFraction = ignore_fraction,
    ) -> list[BatchScore]:
        """A score for each batch of sequences, which share forward passes: on the fast path, all at once.

        If the guard does not hold, or a number is not finite, each is scored by itself, and on the reference path
        where its own guard does not hold either: what one piece needs costs no other its result.
        """
        self._set_matmul_precision()
        run = partial(self._run, model, pieces, directions, check_cancelled, detail, on_fraction)
        scores, is_proven = run(reference=False)
        if is_proven and all(map(_is_finite, scores)):
            return scores
        if len(pieces) == 1:
            return run(reference=True)[0]
        return [
            score
            for piece in pieces
            for score in self._score_pieces(model, [piece], directions, check_cancelled, detail=detail)
        ]

    def _run(
        self,
        model: Model,
        pieces: Sequence[TokenizedBatch],
        directions: Callable[[], Tensor],
        check_cancelled: CancelCheck,
        detail: bool,
        on_fraction: OnFraction,
        *,
        reference: bool,
    ) -> tuple[list[BatchScore], bool]:
        """By one path the score of each piece, and whether the guard proves them (always so on the reference path).

        What the means are taken of stays on the device until all passes are through: one transfer.
        """
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
                forward = ForwardPass(model, team, reference=reference, progress=progress)
                sequences = batch.part(slice(start, start + size))
                return *self._score_sequences(forward, sequences, directions), forward.guard()

            starts = range(0, num_sequences, size)
            return team.share(score_pass, starts, self._passes_at_once(size, num_threads))

        *parts, guards = zip(*compute(score, num_threads, on_progress), strict=True)
        on_fraction(done[-1])
        guard = joined_guard(guards, self.micro_batch_size // size, self.config.head_dim)
        numbers = torch.cat([*(part.flatten() for kind in parts for part in kind), guard])
        cross_entropy, sig_reg, embeddings, (score_bound, offset, leaks) = np.split(
            numbers.cpu().numpy(),
            np.cumsum([num_sequences * T, num_sequences * T, num_sequences * self.config.embedding_dim]),
        )
        ends = np.cumsum([len(piece.token_ids) for piece in pieces])[:-1]
        scores = [
            BatchScore(
                index=i,
                cross_entropy=runner_order.mean(cross_entropies.ravel()),
                sig_reg=runner_order.mean(sig_regs.ravel()),
                embedding=runner_order.mean_over_sequences(representations),
                attends_to_future=bool(leaks),  # on the reference path, which takes one piece at a time
                token_cross_entropy=cross_entropies if detail else None,
            )
            for i, (cross_entropies, sig_regs, representations) in enumerate(
                zip(
                    *(
                        np.split(each.reshape(num_sequences, -1), ends)
                        for each in (cross_entropy, sig_reg, embeddings)
                    ),
                    strict=True,
                )
            )
        ]
        return scores, bool(score_bound <= MAX_SAFE_SCORE and offset <= MAX_SAFE_OFFSET)

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

    def _directions(self, seed: int, index: int) -> Callable[[], Tensor]:
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

    def _num_sequences_of_piece(self, piece: bytes) -> int:
        if not piece:
            raise EmptyData("the data is empty: there is nothing to evaluate on")
        num_sequences = tokenizer.num_sequences(len(piece), self.max_seq_len)
        if num_sequences > self.batch_size:
            raise ValueError(f"a piece is one batch at most, and this one has {num_sequences} sequences")
        return num_sequences

    def _token_sig_reg(self, rows: Tensor, directions: Tensor) -> Tensor:
        """SIGReg of every token, without its coefficient: [N, D], [D, S] -> [N]."""
        rows_per_tile = CUDA_SIG_REG_ROWS if rows.is_cuda else CPU_SIG_REG_ROWS
        z = rows @ directions  # (N, S)
        return torch.cat([self._sig_reg.per_token(tile) for tile in torch.split(z, rows_per_tile)])  # (N)

    def _resident(self, weights: Weights, decryption_key: bytes | None) -> LoadedModel:
        """The weights of the last call if these are the same, else loaded in their place."""
        identity = _identity(weights, decryption_key)
        if self._last_loaded is None or self._last_loaded[0] != identity:
            self._last_loaded = None  # release the old weights before the new ones are loaded
            self._last_loaded = (identity, self.load(weights, decryption_key))
        return self._last_loaded[1]

    def _model_without_weights(self) -> Model:
        with _NoDraws(), torch.device("meta"):
            return Model(self.config)

    def _hold_in_precision(self, model: Model) -> None:
        hold = HOLD.get(self.precision)
        if hold:
            hold_linear_weights(model, hold)

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

    def _pieces_at_once(self) -> int:
        """Sequences, of several pieces, that are faster together than one after the other."""
        if self.device.type != "cpu":
            return self.micro_batch_size
        fitting = min(self.micro_batch_size, CPU_PIECES_BYTES // self._sequence_bytes())
        return max(1, fitting, self._passes_at_once(CPU_PASS_SEQUENCES, torch.get_num_threads()))

    def _sequence_bytes(self) -> int:
        """Activations of one sequence: about eight of [T, D] in float32."""
        return 8 * 4 * self.max_seq_len * self.config.embedding_dim

    def _set_matmul_precision(self) -> None:
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


class _NoDraws(TorchFunctionMode):
    """Leaves the initial draws of parameters out: on the meta device torch imports its compiler for them, 1.2 s."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.uniform_, torch.nn.init.normal_):
            return (
                args[0] if args else None
            )  # only the method is given its tensor so, and has its result used
        return func(*args, **(kwargs or {}))


def hold_in_bf16(layer: Linear) -> None:
    """Products and attention then run in bfloat16; norms, residuals, softmax of the loss and SIGReg in float32."""
    layer.to(torch.bfloat16)


HOLD: dict[Precision, Callable[[Linear], None]] = {
    "bf16": hold_in_bf16,
    "float32-split": hold_in_parts,
}
"""How the weights of products are held, where not as they are in the file."""


def hold_linear_weights(model: Model, hold: Callable[[Linear], None]) -> None:
    """Every one of them as `hold` does it."""
    for part in model.modules():
        if isinstance(part, Linear):
            hold(part)


def _passes(sizes: Sequence[int], most: int) -> Iterator[range]:
    """Consecutive pieces of these numbers of sequences, as many together as have at most `most`, or one alone."""
    start = num_sequences = 0
    for i, size in enumerate(sizes):
        if i > start and num_sequences + size > most:
            yield range(start, i)
            start, num_sequences = i, 0
        num_sequences += size
    if start < len(sizes):
        yield range(start, len(sizes))


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ValueError(f"the seed must lie in 0 .. 2**64 - 1, not {seed}")


def _is_finite(score: BatchScore) -> bool:
    return bool(
        np.isfinite([score.cross_entropy, score.sig_reg]).all() and np.isfinite(score.embedding).all()
    )


def _identity(weights: Weights, decryption_key: bytes | None) -> tuple[object, ...]:
    """Equal for the same weights: a file by its inode and state, bytes by their digest; and the key's digest."""
    check_key(decryption_key)
    key = None if decryption_key is None else hashlib.blake2b(decryption_key).digest()
    if isinstance(weights, bytes):
        return (hashlib.blake2b(weights).digest(), key)
    state = os.stat(weights)
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, key)
