"""The files that a node was sent: verified, least recently used out first, and never one that is in use."""

import os
from pathlib import Path

import pytest

from tests.workers.cluster.nodes import checksum_of
from workers.cluster.node_files import DiskFull, NodeFiles, NotAsPublished

KIB = 1 << 10


def keep(files: NodeFiles, content: bytes, used_at: float | None = None) -> str:
    """Send the content; `used_at` is when it was last used."""
    checksum = checksum_of(content)
    incoming = files.receive(checksum, len(content))
    incoming.write(content[:5])
    incoming.write(content[5:])
    incoming.publish()
    incoming.close()
    if used_at is not None:
        os.utime(files.path(checksum), (used_at, used_at))
    return checksum


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_is_there_once_its_bytes_were_verified(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path / "node", 10 * KIB)
    checksum = keep(files, b"some weights")
    assert files.hold(checksum, 12)
    assert files.path(checksum).read_bytes() == b"some weights"
    assert names(tmp_path / "node") == {checksum}


def test_other_bytes_than_the_checksum_says_leave_nothing(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, 10 * KIB)
    incoming = files.receive(checksum_of(b"right"), 5)
    incoming.write(b"wrong")
    with pytest.raises(NotAsPublished):
        incoming.publish()
    incoming.close()
    assert names(tmp_path) == set()


def test_more_bytes_than_promised_are_refused(tmp_path: Path) -> None:
    incoming = NodeFiles(tmp_path, 10 * KIB).receive(checksum_of(b"right"), 5)
    with pytest.raises(NotAsPublished):
        incoming.write(b"right and more")
    incoming.close()


@pytest.mark.parametrize("checksum", ["", "../../etc/passwd", "a/b", ".hidden", "0" * 43, "x" * 100])
def test_what_is_no_checksum_names_no_file(checksum: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checksum"):
        NodeFiles(tmp_path, KIB).path(checksum)
    assert not NodeFiles(tmp_path, KIB).hold(checksum, 1)


def test_a_file_of_another_size_is_not_held(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, 10 * KIB)
    checksum = keep(files, b"some weights")
    files.path(checksum).write_bytes(b"shorter")
    assert not files.hold(checksum, 12)


def test_the_least_recently_used_makes_room(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, 3 * KIB)
    old, older, new = (keep(files, bytes([n]) * KIB, used_at=at) for n, at in ((1, 200), (2, 100), (3, 300)))
    newest = keep(files, b"4" * KIB)
    assert names(tmp_path) == {old, new, newest}
    assert older not in names(tmp_path)


def test_a_file_that_another_actor_uses_stays(tmp_path: Path) -> None:
    ours, theirs = NodeFiles(tmp_path, 2 * KIB), NodeFiles(tmp_path, 2 * KIB)
    in_use = keep(theirs, b"1" * KIB, used_at=100)
    assert theirs.hold(in_use, KIB)
    os.utime(theirs.path(in_use), (100, 100))
    unused = keep(ours, b"2" * KIB, used_at=200)
    assert keep(ours, b"3" * KIB) in names(tmp_path)
    assert in_use in names(tmp_path)
    assert unused not in names(tmp_path)
    with pytest.raises(DiskFull):
        ours.receive(checksum_of(b"4"), 2 * KIB)
    theirs.close()  # as when it dies
    ours.receive(checksum_of(b"4"), 2 * KIB).close()


def test_a_file_larger_than_the_folder_is_refused_before_anything_is_evicted(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, 2 * KIB)
    kept = keep(files, b"1" * KIB)
    with pytest.raises(DiskFull):
        files.receive(checksum_of(b"2"), 3 * KIB)
    assert names(tmp_path) == {kept}


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, 1 << 62)
    with pytest.raises((DiskFull, OSError)):
        files.receive(checksum_of(b"1"), 1 << 50)
    assert names(tmp_path) == set()


def test_what_a_dead_actor_left_half_written_is_removed(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, 10 * KIB)
    left = tmp_path / f".{checksum_of(b'1')}.1"
    left.write_bytes(b"half")
    os.utime(left, (100, 100))
    kept = keep(files, b"some weights")
    assert names(tmp_path) == {kept}
