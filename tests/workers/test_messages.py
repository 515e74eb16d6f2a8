"""The frames between parent and worker."""

import os
import pickle
import socket
import threading

import numpy as np
import pytest

from workers.errors import DecryptionFailed
from workers.messages import (
    MAX_MESSAGE_BYTES,
    BatchDone,
    Configure,
    Decoder,
    Evaluate,
    Failed,
    Finished,
    Heartbeat,
    encode,
    receive,
)
from workers.types import BatchScore, EvalJob, WorkerConfig

JOB = EvalJob("weights", "checksum", "data", 1, 2**64 - 1, bytes(32))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_cut_anywhere_come_out_whole(size: int) -> None:
    stream = b"".join(encode(message) for message in (Heartbeat(), Finished(3), Heartbeat()))
    decoder = Decoder()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    messages = [message for piece in pieces for message in decoder.feed(piece)]
    assert messages == [Heartbeat(), Finished(3), Heartbeat()]


def test_a_score_keeps_its_bits() -> None:
    embedding = np.frombuffer(np.random.default_rng(0).bytes(64), np.float32)
    (message,) = Decoder().feed(encode(BatchDone(1, BatchScore(2, 0.1, 0.2, embedding, True))))
    assert isinstance(message, BatchDone)
    assert message.score.embedding.tobytes() == embedding.tobytes()


def test_an_error_keeps_its_kind() -> None:
    (message,) = Decoder().feed(encode(Failed(1, DecryptionFailed("no"))))
    assert isinstance(message, Failed)
    assert isinstance(message.error, DecryptionFailed)
    assert message.error.detail == "no"


def test_the_worker_reads_message_by_message() -> None:
    ours, theirs = socket.socketpair()
    configure = Configure(WorkerConfig("cpu"), 1.0)
    evaluate = Evaluate(1, JOB, 0, 4)
    with ours, theirs:
        threading.Thread(target=ours.sendall, args=(encode(configure) + encode(evaluate),)).start()
        assert receive(theirs) == configure
        assert receive(theirs) == evaluate
        ours.sendall(encode(evaluate)[:-1])
        ours.close()
        assert receive(theirs) is None


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps(os.system),
        b"cworkers.messages\nencode\n.",
        b"\x80\x04\x8c\x10workers.messages\x8c\x0cpickle.loads\x93.",
    ],
    ids=["a function", "a function beside the messages", "a function behind a dot"],
)
def test_a_worker_sends_messages_and_nothing_else(payload: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="a worker sent a"):
        Decoder().feed(len(payload).to_bytes(4, "big") + payload)


def test_a_message_without_end_is_not_waited_for() -> None:
    decoder = Decoder()
    with pytest.raises(pickle.UnpicklingError, match="announced a message of"):
        decoder.feed((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))


def test_no_key_is_printed_with_a_job() -> None:
    assert "\\x00" not in repr(Evaluate(1, JOB, 0, 4))
    assert pickle.loads(pickle.dumps(JOB)).decryption_key == bytes(32)
