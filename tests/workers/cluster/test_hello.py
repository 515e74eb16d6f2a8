"""A node is used only if its versions are the head's."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workers.cluster.hello import own_hello, read_hello, refusal, write_hello
from workers.message_codec import MalformedMessage, encode
from workers.messages import Heartbeat

OURS = own_hello(Path("/data"))


def test_a_node_with_the_same_versions_is_used() -> None:
    assert refusal(OURS, replace(OURS, num_cores=99, data_dir="/other")) == ""


@pytest.mark.parametrize("field", ["protocol", "package", "architectures", "numerics", "torch", "arrgen"])
def test_another_version_is_refused_in_one_sentence_that_names_both(field: str) -> None:
    other: Any = 99 if field == "protocol" else "99.9"
    reason = refusal(OURS, replace(OURS, **{field: other}))
    assert str(other) in reason
    assert str(getattr(OURS, field)).partition("+")[0] in reason
    assert "\n" not in reason


def test_builds_of_one_torch_version_may_work_together() -> None:
    assert refusal(OURS, replace(OURS, torch=OURS.torch.partition("+")[0] + "+cu130")) == ""


def test_a_hello_arrives_as_it_was() -> None:
    assert read_hello(write_hello(OURS)) == OURS


@pytest.mark.parametrize("frame", [b"", b"\0\0\0\2{}", encode(Heartbeat()), write_hello(OURS) * 2])
def test_anything_else_is_no_hello(frame: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read_hello(frame)
