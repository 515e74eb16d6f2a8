"""Bytes to sequences: the network's V1 data contract (upstream: `models/src/v1/data`).

1. The data is cut into chunks of `max_seq_len` bytes; a byte is a token.
2. A last chunk that is not full gets one EOS behind its last byte, then PAD. A full last chunk gets no EOS.
3. Targets are the tokens shifted left by one, PAD appended: the last target of every sequence is PAD.
4. A byte's position is its offset in the whole data; EOS and PAD all stand at the chunk's start + length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from .config import V1_BATCH_SIZE, V1_EOS_TOKEN_ID, V1_MAX_SEQ_LEN, V1_PAD_TOKEN_ID


class TokenizedSequence(NamedTuple):
    """One sequence, as lists of `max_seq_len` ints."""

    token_ids: list[int]
    targets: list[int]
    pos_ids: list[int]


class ByteSequenceBatch(NamedTuple):
    """Consecutive sequences, each part as a list of one list of `max_seq_len` ints for each."""

    token_ids: list[list[int]]
    targets: list[list[int]]
    pos_ids: list[list[int]]


@dataclass(frozen=True, slots=True)
class TokenizedBatch:
    """Consecutive sequences as arrays, each int64 [B, max_seq_len]."""

    token_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    pos_ids: NDArray[np.int64]

    def part(self, sequences: slice) -> "TokenizedBatch":
        """Some of the sequences."""
        return TokenizedBatch(self.token_ids[sequences], self.targets[sequences], self.pos_ids[sequences])


def joined(batches: Sequence[TokenizedBatch]) -> TokenizedBatch:
    """The sequences of at least one batch, one after the other."""
    if len(batches) == 1:
        return batches[0]
    return TokenizedBatch(
        np.concatenate([batch.token_ids for batch in batches]),
        np.concatenate([batch.targets for batch in batches]),
        np.concatenate([batch.pos_ids for batch in batches]),
    )


def num_sequences(data_size: int, max_seq_len: int = V1_MAX_SEQ_LEN) -> int:
    """How many sequences `data_size` bytes make; 0 for none."""
    return -(-data_size // max_seq_len)


def num_batches(data_size: int, max_seq_len: int = V1_MAX_SEQ_LEN, batch_size: int = V1_BATCH_SIZE) -> int:
    """How many batches `data_size` bytes make; the last may be smaller."""
    return -(-num_sequences(data_size, max_seq_len) // batch_size)


def count_targets(data_size: int, max_seq_len: int = V1_MAX_SEQ_LEN) -> tuple[int, int]:
    """How many targets this many bytes make, and how many of them are not padding.

    The last target of a sequence is padding, unless EOS follows the last byte of a sequence that is not full.
    """
    num_full, rest = divmod(data_size, max_seq_len)
    return (num_full + bool(rest)) * max_seq_len, num_full * (max_seq_len - 1) + rest


def tokenize_range(
    data: bytes | bytearray | memoryview, sequences: range, max_seq_len: int = V1_MAX_SEQ_LEN
) -> TokenizedBatch:
    """The sequences of these indices (step 1), touching no other part of the data."""
    start = sequences.start * max_seq_len
    found = np.frombuffer(memoryview(data)[start : sequences.stop * max_seq_len], dtype=np.uint8)
    B, T = len(sequences), max_seq_len
    tokens = np.full(B * T, V1_PAD_TOKEN_ID, dtype=np.int64)
    tokens[: found.size] = found
    if found.size < B * T:
        tokens[found.size] = V1_EOS_TOKEN_ID
    # Offsets stop growing at the end of the data: EOS and PAD share the position behind the last byte.
    pos_ids = start + np.minimum(np.arange(B * T, dtype=np.int64), found.size)
    token_ids = tokens.reshape(B, T)
    targets = np.full((B, T), V1_PAD_TOKEN_ID, dtype=np.int64)
    targets[:, :-1] = token_ids[:, 1:]
    return TokenizedBatch(token_ids, targets, pos_ids.reshape(B, T))


@overload
def tokenize(
    data: bytes | bytearray, max_seq_len: int = ..., batch_size: None = None
) -> list[TokenizedSequence]: ...
@overload
def tokenize(
    data: bytes | bytearray, max_seq_len: int = ..., *, batch_size: int
) -> list[ByteSequenceBatch]: ...
@overload
def tokenize(data: bytes | bytearray, max_seq_len: int, batch_size: int) -> list[ByteSequenceBatch]: ...
def tokenize(
    data: bytes | bytearray, max_seq_len: int = V1_MAX_SEQ_LEN, batch_size: int | None = None
) -> list[TokenizedSequence] | list[ByteSequenceBatch]:
    """All sequences of `data`, in order; none for no data. With a `batch_size`, in batches of so many.

    Without one it is what the published package's `tokenize` returns, with one what the network's documents show.
    The last batch may be smaller. Raises ValueError for sizes below 1.
    """
    if min(max_seq_len, 1 if batch_size is None else batch_size) < 1:
        raise ValueError("max_seq_len and batch_size must be at least 1")
    count = num_sequences(len(data), max_seq_len)
    whole = tokenize_range(data, range(count), max_seq_len)
    token_ids, targets, pos_ids = (part.tolist() for part in (whole.token_ids, whole.targets, whole.pos_ids))
    if batch_size is None:
        return [TokenizedSequence(*rows) for rows in zip(token_ids, targets, pos_ids, strict=True)]
    batches = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    return [ByteSequenceBatch(token_ids[batch], targets[batch], pos_ids[batch]) for batch in batches]
