"""What we encrypt, the network's own client decrypts, and the other way round; nothing is left half-done."""

import stat
from pathlib import Path

import base58
import pytest
from soma_sdk import SomaClient

from service.cli import encryption
from service.cli.encryption import commitment_of, commitment_of_plain, decrypt_start, encrypt_file, new_key
from tests.recipe import small_weights_bytes

KEY = bytes(range(32))


@pytest.fixture(params=[b"", b"a", bytes(range(256)) * 300, small_weights_bytes()], ids=len)
def plain(request: pytest.FixtureRequest) -> bytes:
    content: bytes = request.param
    return content


def test_the_sdk_decrypts_what_we_encrypt(tmp_path: Path, plain: bytes) -> None:
    (tmp_path / "plain").write_bytes(plain)
    commitment = encrypt_file(tmp_path / "plain", tmp_path / "cipher", KEY)
    published = (tmp_path / "cipher").read_bytes()
    assert SomaClient.decrypt_weights(published, KEY) == plain
    assert SomaClient.commitment(published) == commitment.checksum
    assert len(published) == commitment.size


def test_we_read_what_the_sdk_encrypts(tmp_path: Path, plain: bytes) -> None:
    published, key = SomaClient.encrypt_weights(plain)
    (tmp_path / "cipher").write_bytes(published)
    (tmp_path / "plain").write_bytes(plain)
    secret = base58.b58decode(key)
    assert decrypt_start(published[:1000], secret) == plain[:1000]
    assert commitment_of(tmp_path / "cipher").checksum == SomaClient.commitment(published)
    assert commitment_of_plain(tmp_path / "cipher", secret) == commitment_of(tmp_path / "plain")


def test_many_chunks_are_one_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encryption, "_CHUNK_BYTES", 1000)  # no multiple of the cipher's block
    plain, seen = small_weights_bytes(), list[int]()
    (tmp_path / "plain").write_bytes(plain)
    commitment = encrypt_file(tmp_path / "plain", tmp_path / "cipher", KEY, seen.append)
    published = SomaClient.encrypt_weights(plain, KEY)[0]
    assert (tmp_path / "cipher").read_bytes() == published
    assert commitment.checksum == SomaClient.commitment(published)
    assert seen == [*range(1000, len(plain), 1000), len(plain)]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"weights")
    (tmp_path / "there").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        encrypt_file(tmp_path / "plain", tmp_path / "there", KEY)
    assert (tmp_path / "there").read_bytes() == b"precious"


def test_nothing_half_done_is_left(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"weights")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encrypt_file(tmp_path / "plain", tmp_path / "cipher", KEY, interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain"]


def test_the_source_keeps_its_mode_and_bytes(tmp_path: Path) -> None:
    source = tmp_path / "plain"
    source.write_bytes(b"weights")
    source.chmod(0o400)
    encrypt_file(source, tmp_path / "cipher", KEY)
    assert (source.read_bytes(), stat.S_IMODE(source.stat().st_mode)) == (b"weights", 0o400)


def test_keys_are_new_each_time() -> None:
    assert len({new_key() for _ in range(100)}) == 100
    assert len(new_key()) == 32
