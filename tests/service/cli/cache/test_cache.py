"""`cache` beside a service and without one: what somebody uses stays, and the service knows what is gone."""

import asyncio
import json
from pathlib import Path

import pytest

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache
from service.checksum import checksum_of
from service.cli.main import run
from service.config import Settings
from service.lifespan import open_cache
from tests.file_server import FileServer
from tests.service.cli.command import InProcess

FIRST, SECOND = b"the first file", b"and a second one"


@pytest.fixture
def settings(plain: Path) -> Settings:
    return Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings takes it, its stub does not show it
        data_dir=plain / "data",
        allow_http=True,
        allow_private_addresses=True,
    )


async def fetch(cache: BlobCache, files: FileServer, content: bytes) -> bool:
    """Whether it had to be downloaded."""
    blob = BlobRef(files.publish(checksum_of(content), content), checksum_of(content))
    async with cache.fetch(blob, kind="data", max_bytes=1000) as cached:
        return not cached.was_cached


async def fill(settings: Settings, files: FileServer) -> None:
    async with open_cache(settings) as cache:
        assert await fetch(cache, files, FIRST)
        assert await fetch(cache, files, SECOND)


def blobs(settings: Settings) -> set[str]:
    return {path.name for path in (settings.data_dir / "blobs").iterdir()}


async def test_without_a_service(in_plain: InProcess, settings: Settings, files: FileServer) -> None:
    await fill(settings, files)
    flags = ("--data-dir", "data")
    listed = in_plain.run("cache", "ls", "--json", *flags).json
    assert {(f["name"], f["size"] > 0, f["in_use"]) for f in listed["files"]} == {
        (checksum_of(content), True, False) for content in (FIRST, SECOND)
    }
    assert listed["served"] is False
    table = in_plain.run("cache", "ls", *flags).out.splitlines()
    assert max(map(len, table[:-1])) <= 80
    assert [line.split()[0] for line in table[3:5]] == [f["name"] for f in listed["files"]]
    assert "just now" in table[3]
    path = in_plain.run("cache", "path", checksum_of(FIRST)[:8], *flags).out.strip()
    assert path == str(settings.data_dir / "blobs" / checksum_of(FIRST))
    ran = in_plain.run("cache", "rm", checksum_of(FIRST)[:8], *flags)
    assert (ran.code, blobs(settings)) == (0, {checksum_of(SECOND)})
    assert "1 file removed" in ran.out
    assert in_plain.run("cache", "rm", "--all", *flags).code == 0
    assert in_plain.run("cache", "ls", *flags).out.startswith("0 files, 0 bytes, in data")
    async with open_cache(settings) as cache:
        assert await fetch(cache, files, FIRST)


async def test_beside_a_service_what_a_request_holds_stays(
    in_plain: InProcess, settings: Settings, files: FileServer, capfd: pytest.CaptureFixture[str]
) -> None:
    rm = ("cache", "rm", "--all", "--json", "--data-dir", str(settings.data_dir))
    async with open_cache(settings) as cache:
        await fetch(cache, files, SECOND)
        held = BlobRef(files.publish(checksum_of(FIRST), FIRST), checksum_of(FIRST))
        async with cache.fetch(held, kind="data", max_bytes=1000) as cached:  # and nobody has opened it
            assert await asyncio.to_thread(run, rm) == 3
            assert json.loads(capfd.readouterr().out)["kept"] == [checksum_of(FIRST)]
            assert cached.path.read_bytes() == FIRST
            assert blobs(settings) == {checksum_of(FIRST)}
            assert cache.bytes_used == len(FIRST)
        assert await asyncio.to_thread(run, rm) == 0
        assert (blobs(settings), cache.bytes_used) == (set(), 0)
        assert not list((settings.data_dir / "remove").iterdir())
        assert await fetch(cache, files, FIRST)


async def test_a_service_that_hangs_is_said_to(
    in_plain: InProcess, settings: Settings, files: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.removal._ANSWER_SECONDS", 0.0)
    async with open_cache(settings) as cache:
        await fetch(cache, files, FIRST)
        ran = in_plain.run("cache", "rm", "--all", "--data-dir", "data")  # blocks the loop of the service
    assert (ran.code, "does not respond" in ran.err) == (3, True)
    assert blobs(settings) == {checksum_of(FIRST)}


def test_a_foreign_folder_is_left_alone(in_plain: InProcess, plain: Path) -> None:
    blob = plain / "blobs" / checksum_of(FIRST)
    blob.parent.mkdir()
    blob.write_bytes(FIRST)
    assert in_plain.run("cache", "rm", "--all", "--data-dir", ".").code == 2
    assert blob.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rm",), "or --all"),
        (("rm", "xyz"), "no file in the cache"),
        (("ls", "xyz"), "ls takes no names"),
        (("ls", "--all"), "--all goes with rm alone"),
        (("mv",), "mv"),
    ],
)
def test_what_makes_no_sense_is_refused(in_plain: InProcess, arguments: tuple[str, ...], said: str) -> None:
    ran = in_plain.run("cache", *arguments, "--data-dir", "nowhere")
    assert (ran.code, said in ran.err) == (2, True), ran.err
