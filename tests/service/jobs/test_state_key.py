"""The key of stored requests: its file, what it seals, what it hashes."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.jobs.state_key import BadStateKey, StateKey, WrongKey, load_state_key, random_state_key

SECRET = b"a canary"


def test_the_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "state.key"
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(load_state_key, [path] * 8))
    assert len({key.hash("x", SECRET) for key in keys}) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["state.key"]


def test_any_file_that_is_long_enough_will_do(tmp_path: Path) -> None:
    path = tmp_path / "state.key"
    path.write_bytes(bytes(range(32)))
    assert load_state_key(path).open(StateKey(bytes(range(32))).seal(SECRET, "1"), "1") == SECRET


@pytest.mark.parametrize("content", [b"", b"short", bytes(31)])
def test_a_short_file_is_no_key(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.key"
    path.write_bytes(content)
    with pytest.raises(BadStateKey):
        load_state_key(path)


def test_what_is_sealed_opens_for_its_job_alone() -> None:
    key = random_state_key()
    sealed = key.seal(SECRET, "job 1")
    assert SECRET not in sealed
    assert key.seal(SECRET, "job 1") != sealed
    assert key.open(sealed, "job 1") == SECRET
    changed = bytes([*sealed[:-1], sealed[-1] ^ 1])
    for other_key, content, job_id in (
        (random_state_key(), sealed, "job 1"),
        (key, sealed, "job 2"),
        (key, changed, "job 1"),
        (key, sealed[:20], "job 1"),
        (key, b"", "job 1"),
    ):
        with pytest.raises(WrongKey):
            other_key.open(content, job_id)


def test_a_hash_is_of_its_key_and_kind() -> None:
    key, other = StateKey(bytes(32)), StateKey(bytes(33))
    assert key.hash("owner", SECRET) == StateKey(bytes(32)).hash("owner", SECRET)
    assert len({key.hash("owner", SECRET), key.hash("body", SECRET), other.hash("owner", SECRET)}) == 3
