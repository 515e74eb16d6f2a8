"""Whatever bytes come from a node, nothing but our own messages is made of them, and nothing else is raised.

`python -m benchmarks.cluster fuzz` does the same with a million.
"""

import json
import random
import typing

import pytest

from tests.workers.cluster.frames import examples, mutations
from workers.cluster.hello import Hello
from workers.cluster.messages import FromConnector, ToConnector
from workers.message_codec import Decoder, MalformedMessage, encode
from workers.messages import FromWorker, ToWorker

NUM_FRAMES = 20_000


@pytest.mark.parametrize(
    "allowed",
    [FromWorker, FromConnector, ToWorker, ToConnector, Hello],
    ids=["from-worker", "from-connector", "to-worker", "to-connector", "hello"],
)
def test_no_frame_makes_a_foreign_class(allowed: typing.Any) -> None:
    ours = typing.get_args(allowed) or (allowed,)
    num_decoded = 0
    for frame in mutations(random.Random(1), allowed, NUM_FRAMES):
        try:
            decoded = Decoder(allowed).feed(frame)
        except MalformedMessage:
            continue
        num_decoded += len(decoded)
        assert all(type(message) in ours for message in decoded)
    assert num_decoded > NUM_FRAMES / 100  # the mutations are mild enough to reach the readers of fields


@pytest.mark.parametrize("name", ["os.system", "WorkerConfig", "Decoder", "__class__", "Spawn", "Evaluate"])
def test_a_class_that_is_no_message_of_this_direction_is_refused(name: str) -> None:
    payload = json.dumps([name, {}]).encode()
    with pytest.raises(MalformedMessage):
        Decoder(FromConnector).feed(len(payload).to_bytes(4, "big") + payload)


def test_every_message_of_the_connector_arrives_as_it_was() -> None:
    for message in examples(FromConnector):
        assert Decoder(FromConnector).feed(encode(message)) == [message]
