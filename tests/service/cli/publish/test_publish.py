"""`publish` as the person who commits its output needs it: what is there is what was sent, and its key is not lost."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from soma_sdk import SomaClient

from service.cli.publish.file_store import FileStore
from service.cli.publish.store import Part
from service.cli.publish.upload import MIN_PART_BYTES
from tests.exec_prepared import Inherited
from tests.file_server import FileServer
from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    RawTensor,
    make_weights,
    safetensors_bytes,
    small_weights_bytes,
)
from tests.s3_server import BUCKET, SECRET, S3Server
from tests.service.cli.command import InProcess, run_command, start_command

PLAIN = small_weights_bytes()
TO = f"s3://{BUCKET}/best.enc"
PUBLISH = ("publish", "plain.safetensors", "--small-model", "--data-dir", "data", "--to", TO)
NUM_PARTS = 7


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server().running() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def large(plain: Path) -> bytes:
    """Sound weights of the small model, with a large tensor that nobody needs."""
    extra = RawTensor("U8", ((NUM_PARTS - 1) * MIN_PART_BYTES,), bytes((NUM_PARTS - 1) * MIN_PART_BYTES))
    content = safetensors_bytes({**make_weights(SMALL_CONFIG, SMALL_WEIGHTS), "extra": extra})
    (plain / "plain.safetensors").write_bytes(content)
    return content


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_key(folder: Path) -> str:
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    return (folder / "key").read_text().strip()


def test_the_networks_client_decrypts_what_is_in_s3(in_plain: InProcess, plain: Path, s3: S3Server) -> None:
    ran = in_plain.run(*PUBLISH, "--key-file", "key", "--json")
    assert ran.code == 0, ran.err
    content, key = s3.content("best.enc"), read_key(plain)
    assert SomaClient.decrypt_weights(content, key) == PLAIN
    assert (ran.json["checksum"], ran.json["size"]) == (SomaClient.commitment(content), len(content))
    assert (ran.json["published"], ran.json["key"], ran.json["key_file"]) == (TO, None, "key")
    assert content != PLAIN
    assert names(plain) == ["data/CACHEDIR.TAG", "key", "plain.safetensors"]
    assert key not in ran.out + ran.err


def test_a_file_is_published_and_checked_where_validators_fetch_it(
    in_plain: InProcess, plain: Path, files: FileServer
) -> None:
    name = f"{plain.parent.name}.enc"
    url = f"{files.base_url}/{name}"
    closed = ("--allow-http", "--allow-private-addresses")
    ran = in_plain.run(*PUBLISH[:-1], f"file://{files.folder}/{name}", "--public-url", url, *closed)
    assert ran.code == 0, ran.err
    assert f"weights_url='{url}'" in ran.out
    key = next(line.split()[-1] for line in ran.out.splitlines() if line.startswith("key "))
    content = (files.folder / name).read_bytes()
    assert SomaClient.decrypt_weights(content, key) == PLAIN
    assert f"/{name}" in files.requests


@pytest.mark.slow
@pytest.mark.parametrize(("by", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_upload_goes_on_where_it_was(
    plain: Path, large: bytes, s3: S3Server, by: signal.Signals, code: int
) -> None:
    s3.allow_parts(3)
    command = (*PUBLISH, "--key-file", "key")
    process = start_command(plain, *command)
    s3.wait_for_parts(3)
    record_has(plain, 3)
    process.send_signal(by)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    key = read_key(plain)
    assert s3.keys() == []
    s3.allow_parts(None)
    ran = run_command(plain, *command, "--json")
    assert ran.code == 0, ran.err
    assert "goes on" in ran.err
    assert sorted(s3.parts) == list(range(1, NUM_PARTS + 1))
    content = s3.content("best.enc")
    assert read_key(plain) == key
    assert SomaClient.decrypt_weights(content, key) == large
    assert SomaClient.commitment(content) == ran.json["checksum"]
    (plain.parent / "arrived.enc").write_bytes(content)
    promised = ("--checksum", ran.json["checksum"], "--size", str(ran.json["size"]))
    checked = run_command(
        plain, "check", "../arrived.enc", "--small-model", "--key-file", "key", *promised, "--full"
    )
    assert checked.code == 0, checked.err
    assert names(plain) == ["data/CACHEDIR.TAG", "key", "plain.safetensors"]


def record_has(folder: Path, num_parts: int) -> None:
    """Wait until that many parts are in the record: the answer to a request comes after it."""
    end = time.monotonic() + 60
    while sum(path.read_text().count('\\"') for path in folder.glob("data/uploads/*.json")) < 2 * num_parts:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_file_goes_on_where_it_was_too(
    in_plain: InProcess, plain: Path, large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*PUBLISH[:-1], "file://best.enc", "--key-file", "key")
    ran = run_command(plain, *command, inherited=Inherited(max_file_bytes=20 << 20))
    assert (ran.code, ran.out) == (3, "")
    assert "File too large. Run the same command again" in ran.err
    assert not (plain / "best.enc").exists()
    put, written = FileStore.put, []

    def counting_put(store: FileStore, upload_id: str, part: Part) -> str:
        written.append(part.number)
        return put(store, upload_id, part)

    monkeypatch.setattr(FileStore, "put", counting_put)
    ran = in_plain.run(*command)
    assert ran.code == 0, ran.err
    assert sorted(written) == list(range(3, NUM_PARTS + 1))
    assert SomaClient.decrypt_weights((plain / "best.enc").read_bytes(), read_key(plain)) == large
    assert names(plain) == ["best.enc", "data/CACHEDIR.TAG", "key", "plain.safetensors"]
    checked = in_plain.run("check", "best.enc", "--small-model", "--key-file", "key", "--full")
    assert checked.code == 0, checked.err


def test_an_upload_that_fails_half_way_keeps_its_key(
    in_plain: InProcess, plain: Path, large: bytes, s3: S3Server
) -> None:
    s3.refuses = True
    s3.allow_parts(2)
    ran = in_plain.run("--debug", *PUBLISH)
    assert (ran.code, ran.out) == (3, "")
    assert "these credentials may not do that. Run the same command again" in ran.err
    assert SECRET not in ran.err
    (record,) = (plain / "data" / "uploads").glob("*.json")
    assert record.stat().st_mode & 0o777 == 0o600
    s3.allow_parts(None)
    ran = in_plain.run(*PUBLISH, "--json")
    assert SomaClient.decrypt_weights(s3.content("best.enc"), ran.json["key"]) == large
    assert ran.json["key"] not in ran.err


def test_a_key_that_nobody_saw_is_shown_again(plain: Path, in_plain: InProcess, s3: S3Server) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = run_command(plain, *PUBLISH, stdout=full)
    assert ran.code == 3
    assert "its key is kept. Run the same command again to see it" in ran.err
    ran = in_plain.run(*PUBLISH, "--json")
    assert SomaClient.decrypt_weights(s3.content("best.enc"), ran.json["key"]) == PLAIN
    assert s3.parts == [1]
    assert names(plain) == ["data/CACHEDIR.TAG", "plain.safetensors"]


def test_where_nobody_would_see_the_key_nothing_is_sent(plain: Path, s3: S3Server) -> None:
    ran = run_command(plain, *PUBLISH, stdout=None, inherited=Inherited(closed_descriptor=1))
    assert (ran.code, s3.keys(), names(plain)) == (3, [], ["plain.safetensors"])
    assert "nothing was uploaded" in ran.err


def test_nothing_is_overwritten(in_plain: InProcess, plain: Path, s3: S3Server) -> None:
    s3.client.put_object(Bucket=BUCKET, Key="best.enc", Body=b"mine")
    assert in_plain.run(*PUBLISH).code == 2
    assert s3.content("best.enc") == b"mine"
    (plain / "key").write_text("mine")
    ran = in_plain.run(*PUBLISH[:-1], f"s3://{BUCKET}/other", "--key-file", "key")
    assert (ran.code, (plain / "key").read_text(), s3.keys()) == (2, "mine", ["best.enc"])


def test_other_weights_get_another_key(in_plain: InProcess, plain: Path, large: bytes, s3: S3Server) -> None:
    s3.refuses = True
    s3.allow_parts(2)
    assert in_plain.run(*PUBLISH, "--key-file", "key").code == 3
    earlier = read_key(plain)
    s3.allow_parts(None)
    (plain / "plain.safetensors").write_bytes(PLAIN)
    ran = in_plain.run(*PUBLISH, "--key-file", "key")
    assert ran.code == 0, ran.err
    assert "begins anew, with a new key" in ran.err
    assert read_key(plain) != earlier
    assert SomaClient.decrypt_weights(s3.content("best.enc"), read_key(plain)) == PLAIN
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=BUCKET)


def test_what_arrived_otherwise_is_found(in_plain: InProcess, s3: S3Server) -> None:
    s3.corrupts = True
    ran = in_plain.run(*PUBLISH)
    assert (ran.code, ran.out) == (1, "")
    assert "do not commit it" in ran.err
    s3.corrupts = False
    s3.client.delete_object(Bucket=BUCKET, Key="best.enc")
    ran = in_plain.run(*PUBLISH, "--json")
    assert SomaClient.decrypt_weights(s3.content("best.enc"), ran.json["key"]) == PLAIN


def test_weights_that_are_not_fit_are_not_sent(in_plain: InProcess, plain: Path, s3: S3Server) -> None:
    (plain / "plain.safetensors").write_bytes(PLAIN[:-4])
    ran = in_plain.run(*PUBLISH, "--key-file", "key")
    assert (ran.code, s3.keys(), names(plain)) == (1, [], ["data/CACHEDIR.TAG", "plain.safetensors"])
    assert "nothing was uploaded" in ran.err


@pytest.mark.parametrize(
    ("to", "code", "said"),
    [
        ("s3://nobucket/k", 3, "there is no such bucket"),
        ("s3://bucket", 2, "s3://BUCKET/KEY or file://PATH"),
        ("gs://bucket/k", 2, "AWS_ENDPOINT_URL=https://storage.googleapis.com"),
        ("https://host/k", 2, "--public-url"),
        ("best.enc", 2, "s3://BUCKET/KEY or file://PATH"),
        ("file://nowhere/k", 3, "No such file or directory"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    in_plain: InProcess, plain: Path, s3: S3Server, to: str, code: int, said: str
) -> None:
    ran = in_plain.run(*PUBLISH[:-1], to, "--key-file", "key")
    assert (ran.code, said in ran.err) == (code, True), ran.err
    assert [name for name in names(plain) if name != "data/CACHEDIR.TAG"] == ["plain.safetensors"]


def test_a_store_that_does_not_answer_is_the_networks(in_plain: InProcess, s3: S3Server) -> None:
    ran = in_plain.run(*PUBLISH, AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert (ran.code, "no answer" in ran.err) == (3, True), ran.err


def test_without_the_extra_it_says_what_to_install(
    in_plain: InProcess, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "service.cli.publish.s3_store", raising=False)
    monkeypatch.setitem(sys.modules, "boto3", None)
    ran = in_plain.run(*PUBLISH)
    assert (ran.code, "pip install 'soma-eval[publish]'" in ran.err) == (2, True)
