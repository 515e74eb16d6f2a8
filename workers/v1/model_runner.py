"""The mirror of the network's `ModelRunner`: weights and bytes in, loss and embedding out."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import tokenizer
from .batch_progress import OnFraction, ignore_fraction
from .batch_scorer import BatchScorer
from .cancellation import CancelCheck, never_cancelled
from .config import V1_BATCH_SIZE, V1_MAX_SEQ_LEN, V1_SIG_REG_COEFFICIENT, ModelConfig, SIGRegConfig
from .environment import warn_of_changed_numbers
from .errors import EmptyData
from .model import Model
from .precisions import Precision, hold_weights, set_matmul_precision
from .running_mean import BatchScore, running_mean
from .weights import load_tensors
from .weights_source import Weights, check_key

T = TypeVar("T")

GPU_BATCHES_AHEAD = 1
"""Batches that a GPU is handed before the numbers of an earlier one are waited for. Without one it stands idle for
about a millisecond between two, while their means are taken and the next is prepared."""


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
    not follow it: see `attention.fused_attention`.

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
        self._scorer = BatchScorer(
            self.config, self.device, precision, max_seq_len, batch_size, micro_batch_size, sig_reg
        )
        self._num_ahead = GPU_BATCHES_AHEAD if self.device.type == "cuda" else 0
        self._last_loaded: tuple[tuple[object, ...], LoadedModel] | None = None
        set_matmul_precision(precision)

    @property
    def micro_batch_size(self) -> int:
        """Sequences that are on the device at once."""
        return self._scorer.micro_batch_size

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
        with ThreadPoolExecutor(1, thread_name_prefix="make-modules") as beside:
            # Some 30 ms of Python for full V1, while other threads wait for a disk or a bus.
            made = beside.submit(self._model_without_weights)
            tensors = load_tensors(weights, self.config, decryption_key, self.device, check_cancelled)
            model = made.result()
        model.load_state_dict(tensors, assign=True)
        # The model has the only references to them now: each is freed once it is held otherwise.
        del tensors
        model.requires_grad_(False).eval()
        hold_weights(model, self.precision)
        return LoadedModel(model)

    @property
    def resident_bytes(self) -> int:
        """Bytes that any weights take on the device once they are loaded, in whatever dtype their file has them."""
        model = self._model_without_weights()
        hold_weights(model, self.precision)
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
        adds the cross-entropy of every token. `on_fraction` is told how far the batch is that is computed; on a GPU,
        which is handed the next one before a score is waited for, it is told of the first batch alone, and an error in
        a batch may come before the score of the one before it.
        Raises EmptyData for no data, ValueError for batches the data does not have or a seed out of range.
        """
        if not data:
            raise EmptyData("the data is empty: there is nothing to evaluate on")
        _check_seed(seed)
        if batches and not 0 <= min(batches) <= max(batches) < self.num_batches(len(data)):
            raise ValueError(f"the data has {self.num_batches(len(data))} batches, not those of {batches}")
        yield from self._in_turn(
            self._begin_batch(
                model.model,
                data,
                seed,
                index,
                check_cancelled,
                detail,
                on_fraction if index == batches.start or not self._num_ahead else ignore_fraction,
            )
            for index in batches
        )

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
        directions = self._scorer.directions(seed, 0)
        passes = list(_passes(sizes, self._scorer.pieces_at_once()))
        scores = self._in_turn(
            self._scorer.begin(
                model.model,
                [tokenizer.tokenize_range(pieces[i], range(sizes[i]), self.max_seq_len) for i in which],
                directions,
                check_cancelled,
            )
            for which in passes
        )
        for which, of_pass in zip(passes, scores, strict=True):
            for i, score in zip(which, of_pass, strict=True):
                yield replace(score, index=i)

    def _in_turn(self, begun: Iterator[Callable[[], T]]) -> Iterator[T]:
        """What each of them returns, one after the other, with as many begun ahead as the device should have."""
        waiting: deque[Callable[[], T]] = deque()
        for wait in begun:
            waiting.append(wait)
            if len(waiting) > self._num_ahead:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()

    def _begin_batch(
        self,
        model: Model,
        data: bytes,
        seed: int,
        index: int,
        check_cancelled: CancelCheck,
        detail: bool,
        on_fraction: OnFraction,
    ) -> Callable[[], BatchScore]:
        first = index * self.batch_size
        last = min(first + self.batch_size, tokenizer.num_sequences(len(data), self.max_seq_len))
        batch = tokenizer.tokenize_range(data, range(first, last), self.max_seq_len)
        directions = self._scorer.directions(seed, index)
        wait_for_scores = self._scorer.begin(
            model, [batch], directions, check_cancelled, detail=detail, on_fraction=on_fraction
        )

        def wait() -> BatchScore:
            (score,) = wait_for_scores()
            return replace(score, index=index)

        return wait

    def _num_sequences_of_piece(self, piece: bytes) -> int:
        if not piece:
            raise EmptyData("the data is empty: there is nothing to evaluate on")
        num_sequences = tokenizer.num_sequences(len(piece), self.max_seq_len)
        if num_sequences > self.batch_size:
            raise ValueError(f"a piece is one batch at most, and this one has {num_sequences} sequences")
        return num_sequences

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


class _NoDraws(TorchFunctionMode):
    """Leaves the initial draws of parameters out: on the meta device torch imports its compiler for them, 1.2 s."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (Tensor.uniform_, torch.nn.init.normal_):
            # Only the method is given its tensor by position, and has its result used.
            return args[0] if args else None
        return func(*args, **(kwargs or {}))


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


def _identity(weights: Weights, decryption_key: bytes | None) -> tuple[object, ...]:
    """Equal for the same weights: a file by its inode and state, bytes by their digest; and the key's digest."""
    check_key(decryption_key)
    key = None if decryption_key is None else hashlib.blake2b(decryption_key).digest()
    if isinstance(weights, bytes):
        return (hashlib.blake2b(weights).digest(), key)
    state = os.stat(weights)
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns, key)
