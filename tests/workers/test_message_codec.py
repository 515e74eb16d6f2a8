"""What parent and worker send to each other arrives as it was, and nothing else is taken for a message."""

import json
import os
import pickle
import socket
import threading
import typing
from typing import Any

import numpy as np
import pytest

from workers.errors import DecryptionFailed, NoWorker, OutOfMemory
from workers.message_codec import MAX_MESSAGE_BYTES, Decoder, MalformedMessage, encode, receive
from workers.messages import (
    Accepted,
    BatchAdvanced,
    BatchDone,
    Configure,
    Evaluate,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Loaded,
    Prefetch,
    Ready,
    Resident,
    SelfTest,
    SelfTestFailed,
    Stop,
    Stopped,
    ToWorker,
)
from workers.types import BatchScore, EvalJob, WorkerConfig, WorkerMemory
from workers.v1.architecture_config import LIMITS, MAX_BATCH_BYTES

KEY = b"\0canary-canary-canary-canary-can\xff"
JOB = EvalJob("weights \udcff", "checksum", "data", 1, 2**64 - 1, KEY, weights_size=7, detail=True)
PLAIN_JOB = EvalJob("weights", "checksum", "data", 1, 0)
PIECES_JOB = EvalJob.of_pieces(
    (b"one", b"\0\xff"), weights_path="weights", weights_checksum="checksum", seed=0
)
TO_WORKER: list[ToWorker] = [
    Configure(WorkerConfig("cuda:0", precision="float32-split", num_threads=2, architecture="{}"), 0.5),
    Evaluate(1, JOB, 0, 4),
    Evaluate(2, PLAIN_JOB, 3, 4),
    Evaluate(3, PIECES_JOB, 0, 2),
    Stop(1),
    Prefetch(JOB),
    SelfTest(),
]
FROM_WORKER: list[FromWorker] = [
    Heartbeat(3, WorkerMemory(4, 3, 2, 1)),
    Ready("a device", {"torch": "2.13"}),
    SelfTestFailed("loss 1 instead of 2"),
    Accepted(1),
    Loaded(1, 1 / 3),
    BatchAdvanced(1, 3, 1 / 3),
    Finished(1),
    Stopped(1),
    Resident(frozenset({JOB.weights_id, PLAIN_JOB.weights_id})),
]


def frame(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


def sent(message: FromWorker) -> FromWorker:
    """What the parent receives of it."""
    decoded: list[FromWorker] = Decoder().feed(encode(message))
    assert len(decoded) == 1
    return decoded[0]


def score(embedding: Any, detail: Any = None, cross_entropy: float = 1 / 3) -> BatchDone:
    return BatchDone(1, BatchScore(2, cross_entropy, 1e-300, embedding, True, detail))


def test_every_message_has_its_example() -> None:
    examples = {type(message) for message in [*TO_WORKER, *FROM_WORKER]} | {BatchDone, Failed}
    assert examples == {*typing.get_args(ToWorker), *typing.get_args(FromWorker)}


@pytest.mark.parametrize("message", FROM_WORKER, ids=lambda message: type(message).__name__)
def test_the_parent_receives_what_the_worker_sends(message: FromWorker) -> None:
    assert sent(message) == message


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_the_worker_receives_what_the_parent_sends(message: ToWorker) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        threading.Thread(target=ours.sendall, args=(encode(message) * 2,)).start()
        assert [receive(theirs), receive(theirs)] == [message, message]
        ours.sendall(encode(message)[:-1])
        ours.close()
        assert receive(theirs) is None


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_messages_cut_anywhere_arrive_whole(size: int) -> None:
    stream = b"".join(encode(message) for message in FROM_WORKER)
    decoder = Decoder()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == FROM_WORKER


def test_the_largest_batch_fits_into_a_message() -> None:
    detail = np.zeros((1, MAX_BATCH_BYTES), np.float32)
    received = sent(score(np.zeros(LIMITS["embedding_dim"][1], np.float32), detail))
    assert isinstance(received, BatchDone)


def test_a_score_keeps_its_bits() -> None:
    embedding = np.frombuffer(np.random.default_rng(0).bytes(2048 * 4), np.float32)  # NaN among them
    detail = np.frombuffer(np.random.default_rng(1).bytes(16 * 1024 * 4), np.float32).reshape(16, 1024)
    received = sent(score(embedding, detail))
    assert isinstance(received, BatchDone)
    assert (received.score.index, received.score.cross_entropy, received.score.sig_reg) == (2, 1 / 3, 1e-300)
    assert received.score.embedding.tobytes() == embedding.tobytes()
    assert received.score.token_cross_entropy is not None
    assert received.score.token_cross_entropy.shape == (16, 1024)
    assert received.score.token_cross_entropy.tobytes() == detail.tobytes()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -0.0])
def test_a_score_keeps_numbers_that_are_not_finite(number: float) -> None:
    received = sent(score(np.zeros(1, np.float32), cross_entropy=number))
    assert isinstance(received, BatchDone)
    assert repr(received.score.cross_entropy) == repr(number)


def test_an_error_keeps_its_class() -> None:
    for error in DecryptionFailed("no"), OutOfMemory("none"):
        received = sent(Failed(1, error))
        assert isinstance(received, Failed)
        assert type(received.error) is type(error)
        assert received.error.detail == error.detail


def altered(message: FromWorker, **changes: Any) -> bytes:
    """The message as JSON, with some of its fields replaced."""
    name, content = json.loads(encode(message)[4:])
    return json.dumps([name, content | changes]).encode()


SCORE = json.loads(encode(score(np.zeros(2, np.float32)))[4:])[1]["score"]


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps(os.system),
        b"",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'["Heartbeat"]',
        b'["encode", {}]',
        b'[["Heartbeat"], {}]',
        encode(Stop(1))[4:],
        altered(Heartbeat(), progress="1"),
        altered(Heartbeat(), progress=True),
        altered(Heartbeat(), progress=None),
        altered(Heartbeat(), unknown=1),
        altered(Heartbeat(), memory={"total": 10**400, "used": 1, "weights": 1, "weights_limit": 1}),
        altered(Heartbeat(), memory={"total": 1, "used": -1, "weights": 1, "weights_limit": 1}),
        b'["Heartbeat", {}]',
        altered(Loaded(1, 1.0), load_seconds=10**400),
        altered(BatchAdvanced(1, 3, 0.5), fraction=1.5),
        altered(BatchAdvanced(1, 3, 0.5), fraction=-0.5),
        altered(BatchAdvanced(1, 3, 0.5), fraction=float("nan")),
        altered(BatchAdvanced(1, 3, 0.5), index="3"),
        altered(Ready("", {}), versions={"torch": 1}),
        altered(Resident(frozenset()), weights=[["1", "2"]]),
        altered(Resident(frozenset()), weights="abc"),
        altered(Failed(1, OutOfMemory("no")), error=["WorkerError", "no"]),
        altered(Failed(1, OutOfMemory("no")), error=[["OutOfMemory"], "no"]),
        altered(score(np.zeros(2, np.float32)), score=SCORE | {"embedding": [[3], "AAAAAAAAAAA="]}),
        altered(score(np.zeros(2, np.float32)), score=SCORE | {"embedding": [[-1, -2], "AAAAAAAAAAA="]}),
        altered(score(np.zeros(2, np.float32)), score=SCORE | {"embedding": [[2], "AAAA?AAAAAA="]}),
        altered(score(np.zeros(2, np.float32)), score=SCORE | {"embedding": None}),
    ],
)
def test_nothing_else_is_a_message(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        Decoder().feed(frame(payload))


def test_a_worker_cannot_report_what_the_parent_decides() -> None:
    with pytest.raises(MalformedMessage):
        sent(Failed(1, NoWorker("none")))


def test_a_message_without_end_is_not_waited_for() -> None:
    header = (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(MalformedMessage, match="was announced"):
        Decoder().feed(header)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(header)
        with pytest.raises(MalformedMessage, match="was announced"):
            receive(theirs)


def test_no_key_is_in_a_repr_or_an_error() -> None:
    assert "canary" not in repr(TO_WORKER)
    payload = encode(Evaluate(1, JOB, 0, 4))[4:]
    with pytest.raises(MalformedMessage) as raised:
        Decoder().feed(frame(payload[:-1]))
    assert raised.value.__context__ is None
    assert raised.value.args == ("what was received is no message",)
