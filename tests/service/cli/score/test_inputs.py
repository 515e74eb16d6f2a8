"""What `score` reads: weights, data, keys and targets, from files and pipes; and what it refuses at once."""

import contextlib
import os
import threading
from pathlib import Path

import base58
import pytest

from service.cli.input_file import PipeLimits
from service.cli.keys import parse_keys
from service.cli.score.held_out import find_data
from service.cli.score.question import read_target
from service.cli.usage import BadUsage
from service.errors import EmptyData
from tests.recipe import TEST_KEY, golden_cases, make_data
from tests.service.cli.command import SMALL, InProcess

GOLDEN = golden_cases()["small-short"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["FIFO", "--data", "short"], "weights FIFO: this is a fifo: weights are read more than once"),
        (["/dev/zero", "--data", "short"], "weights /dev/zero: this is a device"),
        (["folder", "--data", "short"], "weights folder: this is a folder"),
        (["step-*", "--data", "short"], "weights step-*: no file has such a name"),
        (["plain.safetensors", "--data", "/dev/zero"], "--data /dev/zero: this is a device"),
        (["plain.safetensors", "--data", "short", "--target", "/dev/zero"], "it is a device"),
        (["plain.safetensors", "--data", "short", "--key-file", "/dev/zero"], "it is a device"),
        (
            ["plain.safetensors", "--data", "short", "--key-file", "plain.safetensors"],
            "a key file cannot be read",
        ),
        (["\x1b]2J", "--data", "short"], r"weights \x1b]2J: there is no such file"),
        (["plain.safetensors", "--data", "short", "--url", "http://127.0.0.1:99999"], "--url is not an http"),
        (["plain.safetensors", "--data", "short", "--url", "http://["], "--url is not an http"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_never_ends_or_makes_no_sense_is_refused_at_once(
    in_process: InProcess, fifo: str, arguments: list[str], reason: str
) -> None:
    ran = in_process.run("score", *(argument.replace("FIFO", fifo) for argument in arguments))
    assert (ran.code, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    assert reason.replace("FIFO", fifo) in ran.err


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


def test_data_may_come_out_of_a_command(in_process: InProcess) -> None:
    """As in `--data <(command)`, with the weights named as a shell names them."""
    reading, writing = os.pipe()
    os.write(writing, make_data(GOLDEN.data))
    os.close(writing)
    data = ("--data", f"/dev/fd/{reading}", "--seed", str(GOLDEN.seed))
    ran = in_process.run("score", *SMALL, "plain.safetensors", *data, "--json")
    os.close(reading)
    assert (ran.code, ran.complaints) == (0, "")
    assert ran.json["models"][0]["loss"] == pytest.approx(GOLDEN.loss, rel=1e-5)


def write_to(fifo: Path, content: bytes) -> threading.Thread:
    def write() -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever reads has had enough
            fifo.write_bytes(content)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_a_fifo_is_data_up_to_a_size(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    limits = PipeLimits(max_bytes=100_000, writer_wait_seconds=30)
    thread = write_to(fifo, b"x" * 100_000)
    with find_data(str(fifo), limits) as found:
        (data,) = found.files
        assert (data.name, data.size, data.read()) == (str(fifo), 100_000, b"x" * 100_000)
    thread.join()
    assert not data.path.exists()
    thread = write_to(fifo, b"x" * 100_001)
    with pytest.raises(BadUsage, match="more than 100,000 bytes"), find_data(str(fifo), limits):
        pass
    thread.join()


def test_a_fifo_that_nobody_writes_to_does_not_wait_for_ever(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    limits = PipeLimits(writer_wait_seconds=0.05)
    with (
        pytest.raises(BadUsage, match="nobody has opened this FIFO"),
        find_data(str(tmp_path / "fifo"), limits),
    ):
        pass


def test_a_writer_that_writes_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # so that opening to write does not wait
    writing = os.open(fifo, os.O_WRONLY)
    os.close(reading)

    def write() -> None:
        os.write(writing, b"late")
        os.close(writing)

    timer = threading.Timer(0.3, write)
    timer.start()
    with find_data(str(fifo), PipeLimits(writer_wait_seconds=0.05)) as found:
        assert found.files[0].read() == b"late"
    timer.join()


def test_of_a_folder_only_data_is_taken(tmp_path: Path) -> None:
    for name in ("a", "b/c.txt", "a~", "c.bak", "#d#", ".hidden", ".git/HEAD", "e.swp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    with find_data(str(tmp_path)) as found:
        assert [data.name for data in found.files] == [str(tmp_path / name) for name in ("a", "b/c.txt")]
        assert found.num_skipped == 8


def test_an_empty_folder_and_an_empty_file_are_reported(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="no file with data"), find_data(str(tmp_path)):
        pass
    (tmp_path / "empty").touch()
    with pytest.raises(EmptyData), find_data(str(tmp_path / "empty")):
        pass


def test_a_key_may_come_out_of_a_command(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    thread = write_to(tmp_path / "fifo", base58.b58encode(TEST_KEY) + b"\n")
    assert parse_keys([], [tmp_path / "fifo"]) == [TEST_KEY]
    thread.join()


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.json", b"[1e999]"), ("t.json", b"[" * 100_000), ("t.json", b"[1%s]" % (b"0" * 400)), ("t.npy", b"")],
)
def test_an_odd_target_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadUsage, match="--target"):
        read_target(tmp_path / name, None)
