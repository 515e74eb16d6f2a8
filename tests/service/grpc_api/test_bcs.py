"""The codec: what the real client sends, every value both ways, and every refusal."""

import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.fuzz_bcs import MESSAGES, Message, fuzz
from service.grpc_api.bcs import (
    BcsError,
    HealthRequest,
    HealthResponse,
    ManifestInput,
    ScoreRequest,
    ScoreResponse,
)

GOLDEN = Path(__file__).parents[2] / "golden"
CAPTURED = (GOLDEN / "score_request.bin").read_bytes()
FIELDS: dict[str, Any] = json.loads((GOLDEN / "score_request.json").read_text())

u64s = st.integers(0, 2**64 - 1)
f32s = st.lists(st.floats(width=32, allow_nan=False), max_size=40).map(tuple)
manifests = st.builds(
    ManifestInput, url=st.text(), checksum=st.text(), size=u64s, decryption_key=st.none() | st.text()
)
requests = st.builds(
    ScoreRequest,
    data_url=st.text(),
    data_checksum=st.text(),
    data_size=u64s,
    model_manifests=st.lists(manifests, max_size=5).map(tuple),
    target_embedding=f32s,
    seed=u64s,
)
responses = st.builds(ScoreResponse, winner=u64s, loss_score=f32s, embedding=f32s, distance=f32s)


def captured_fields() -> ScoreRequest:
    target = FIELDS["target_embedding"]
    return ScoreRequest(
        data_url=FIELDS["data_url"],
        data_checksum=FIELDS["data_checksum"],
        data_size=FIELDS["data_size"],
        model_manifests=tuple(ManifestInput(**manifest) for manifest in FIELDS["model_manifests"]),
        target_embedding=struct.unpack(f"<{len(target)}f", struct.pack(f"<{len(target)}f", *target)),
        seed=FIELDS["seed"],
    )


def test_what_the_real_client_sends_is_decoded_field_by_field() -> None:
    assert ScoreRequest.decode(CAPTURED) == captured_fields()


def test_what_the_real_client_sends_is_encoded_byte_by_byte() -> None:
    assert captured_fields().encode() == CAPTURED
    assert ScoreRequest.decode(CAPTURED).encode() == CAPTURED


def test_the_smallest_request_by_hand() -> None:
    request = ScoreRequest("", "", 0, (), (), 0)
    assert request.encode() == bytes(1 + 1 + 8 + 1 + 1 + 8)
    assert ScoreRequest.decode(bytes(20)) == request


def test_a_response_by_hand() -> None:
    encoded = (
        b"\x02\0\0\0\0\0\0\0"  # winner
        b"\x01\x00\x00\x80\x3f"  # loss_score: [1.0]
        b"\x02\x00\x00\x00\x00\x00\x00\x00\x80"  # embedding: [0.0, -0.0]
        b"\x01\x00\x00\x00\xbf"  # distance: [-0.5]
    )
    response = ScoreResponse(2, (1.0,), (0.0, -0.0), (-0.5,))
    assert response.encode() == encoded
    assert ScoreResponse.decode(encoded) == response
    assert math.copysign(1.0, ScoreResponse.decode(encoded).embedding[1]) == -1.0


def test_health_by_hand() -> None:
    assert HealthRequest().encode() == b""
    assert HealthRequest.decode(b"") == HealthRequest()
    assert [HealthResponse(ok).encode() for ok in (False, True)] == [b"\0", b"\1"]
    assert [HealthResponse.decode(b).ok for b in (b"\0", b"\1")] == [False, True]


@given(requests)
def test_every_request_survives_the_wire(request: ScoreRequest) -> None:
    assert ScoreRequest.decode(request.encode()) == request


@given(responses)
def test_every_response_survives_the_wire(response: ScoreResponse) -> None:
    assert ScoreResponse.decode(response.encode()) == response


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x00000001])
def test_infinities_quiet_nans_and_denormals_keep_their_bits(bits: int) -> None:
    encoded = bytes(8) + b"\1" + bits.to_bytes(4, "little") + b"\0\0"
    assert ScoreResponse.decode(encoded).encode() == encoded


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_one_clean_error(encoded: bytes) -> None:
    for message in MESSAGES:
        try:
            value = message.decode(encoded)
        except BcsError:
            continue
        assert len(value.encode()) == len(encoded)


@pytest.mark.parametrize("end", range(0, len(CAPTURED), 7))
def test_a_message_cut_anywhere_is_refused(end: int) -> None:
    with pytest.raises(BcsError, match=r"ends too early|promises more"):
        ScoreRequest.decode(CAPTURED[:end])


@pytest.mark.parametrize(
    ("message", "smallest"),
    [(ScoreRequest, 20), (ScoreResponse, 11), (HealthRequest, 0), (HealthResponse, 1)],
)
def test_trailing_bytes_are_refused(message: type[Message], smallest: int) -> None:
    message.decode(bytes(smallest))
    with pytest.raises(BcsError, match="bytes follow"):
        message.decode(bytes(smallest + 1))


@pytest.mark.parametrize(
    ("length", "reason"),
    [
        (b"\x80\x00", "longer than it need be"),
        (b"\x81\x80\x00", "longer than it need be"),
        (b"\xff\xff\xff\xff\x10", "more than 32 bits"),
        (b"\xff\xff\xff\xff\xff\x01", "more than 32 bits"),
        (b"\xff\xff\xff\xff\x0f", "promises more"),
        (b"\x80\x80\x80\x80\x08", "promises more"),
        (b"\x15", "promises more"),
        (b"\x80", "ends too early"),
    ],
)
def test_a_bad_length_is_refused(length: bytes, reason: str) -> None:
    rest = b"" if reason == "ends too early" else bytes(20)
    with pytest.raises(BcsError, match=reason):
        ScoreRequest.decode(length + rest)


def test_a_length_takes_as_many_bytes_as_it_needs() -> None:
    for count in (127, 128, 16383, 16384, 2**21 - 1, 2**21):
        request = ScoreRequest("x" * count, "", 0, (), (), 0)
        assert ScoreRequest.decode(request.encode()) == request


def test_a_vector_is_judged_by_its_elements_before_it_is_read() -> None:
    no_models = bytes(10)
    with pytest.raises(BcsError, match="promises more"):
        ScoreRequest.decode(no_models + b"\x02" + bytes(21))  # two models take 22 bytes
    with pytest.raises(BcsError, match="promises more"):
        ScoreRequest.decode(no_models + b"\0" + b"\x03" + bytes(11))  # three floats take 12


@pytest.mark.parametrize("tag", [2, 0x7F, 0xFF])
def test_an_option_is_0_or_1(tag: int) -> None:
    manifest = bytes([0, 0, *bytes(8), tag])
    with pytest.raises(BcsError, match="0 or 1"):
        ScoreRequest.decode(bytes(10) + b"\1" + manifest + b"\0" + bytes(8))


@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_is_0_or_1(byte: int) -> None:
    with pytest.raises(BcsError, match="0 or 1"):
        HealthResponse.decode(bytes([byte]))


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_a_string_is_strict_utf8(text: bytes) -> None:
    with pytest.raises(BcsError, match="UTF-8"):
        ScoreRequest.decode(bytes([len(text)]) + text + bytes(19))


@pytest.mark.parametrize(
    "value",
    [
        ScoreRequest("", "", -1, (), (), 0),
        ScoreRequest("", "", 0, (), (), 2**64),
        ScoreRequest("\ud800", "", 0, (), (), 0),
        ScoreResponse(0, (1e39,), (), ()),
    ],
)
def test_a_value_that_bcs_cannot_write_is_refused(value: ScoreRequest | ScoreResponse) -> None:
    with pytest.raises(BcsError):
        value.encode()


def test_no_error_quotes_the_input() -> None:
    canary = b"https://user:secret@host/?token=1"
    for end in range(len(canary) + 20):
        with pytest.raises(BcsError) as caught:
            ScoreRequest.decode((bytes([len(canary)]) + canary + b"\xff" * 19)[:end])
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is None


def test_no_repr_shows_an_address_or_a_key() -> None:
    shown = repr(ScoreRequest.decode(CAPTURED))
    assert "://" not in shown
    assert all(m["decryption_key"] not in shown for m in FIELDS["model_manifests"] if m["decryption_key"])


def test_thousands_of_random_and_mutated_messages() -> None:
    report = fuzz(20_000, random.Random(1), measure_every=10)
    assert report.num_inputs == 20_000
    assert report.num_accepted > 500
    assert report.num_refused > 10_000
    assert report.peak_bytes_per_byte < 40


def test_more_models_than_any_competition_has_are_not_read() -> None:
    manifest = bytes(11)
    beginning, count, end = bytes(10), b"\xe0\xa7\x12", bytes(9)  # 300,000
    with pytest.raises(BcsError, match="a vector has more than 4096 elements"):
        ScoreRequest.decode(beginning + count + manifest * 300_000 + end)
