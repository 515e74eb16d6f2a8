"""`encrypt` as the person who commits its output needs it: complete and told, or not there at all."""

import inspect
import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from soma_sdk import SomaClient

from service.checksum import checksum_of
from service.cli.embedding_file import EmbeddingFile, write_embedding_file
from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    RawTensor,
    make_weights,
    safetensors_bytes,
    small_weights_bytes,
)

ROOT = Path(__file__).parents[3]
PLAIN = small_weights_bytes()
ENCRYPT = (sys.executable, "-m", "service.cli.main", "encrypt", "plain.safetensors", "--small-model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds plain.safetensors and nothing else."""
    (tmp_path / "plain.safetensors").write_bytes(PLAIN)
    return tmp_path


def run(folder: Path, *flags: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    options.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [*ENCRYPT, *flags], stderr=subprocess.PIPE, cwd=folder, env=environment(), check=False, **options
    )


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_EVAL_")}
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("flags", [(), ("--json",), ("--key-file", "key")], ids=["table", "json", "key-file"])
@pytest.mark.parametrize("stdout", ["closed", "full", "broken-pipe"])
def test_where_nobody_was_told_the_key_nothing_is_left(
    folder: Path, stdout: str, flags: tuple[str, ...]
) -> None:
    if stdout == "closed":
        ran = run(folder, "-o", "out.enc", *flags, stdout=None, preexec_fn=lambda: os.close(1))
    elif stdout == "full":
        with Path("/dev/full").open("wb") as full:
            ran = run(folder, "-o", "out.enc", *flags, stdout=full)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        ran = run(folder, "-o", "out.enc", *flags, stdout=writer)
        os.close(writer)
    assert ran.returncode == 3
    assert ran.stderr.startswith(b"soma-eval: standard output cannot be written")
    assert b"out.enc was not written" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert names(folder) == ["plain.safetensors"]


def test_a_full_disk_leaves_nothing(folder: Path) -> None:
    """A limit on the size of files stands for the disk: the write fails midway, as it does there."""
    code = (
        "import resource, signal, service.cli.main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); service.cli.main.main()"
    )
    flags = ("encrypt", "plain.safetensors", "--small-model", "-o", "out.enc", "--key-file", "key")
    ran = subprocess.run(
        [sys.executable, "-c", code, *flags], capture_output=True, cwd=folder, env=environment(), check=False
    )
    assert (ran.returncode, ran.stdout) == (3, b"")
    assert ran.stderr == b"soma-eval: File too large.\n"
    assert names(folder) == ["plain.safetensors"]


def test_what_is_there_stays(folder: Path) -> None:
    for taken in ("out.enc", "key"):
        (folder / taken).write_text("mine")
        ran = run(folder, "-o", "out.enc", "--key-file", "key")
        assert (ran.returncode, b"nothing is overwritten" in ran.stderr) == (2, True)
        assert (folder / taken).read_text() == "mine"
        (folder / taken).unlink()
    assert names(folder) == ["plain.safetensors"]


@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_midway_leaves_nothing(folder: Path, by: signal.Signals, code: int) -> None:
    with (folder / "plain.safetensors").open("wb") as large:
        large.write(large_weights(400 << 20))
    process = subprocess.Popen(
        [*ENCRYPT, "-o", "out.enc", "--key-file", "key"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in folder.glob(".soma-eval-*")):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert not (folder / "out.enc").exists()
    process.send_signal(by)
    out, _err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    assert names(folder) == ["plain.safetensors"]


def large_weights(num_bytes: int) -> bytes:
    """Sound weights of the small model, with a large tensor that nobody needs."""
    extra = RawTensor("U8", (num_bytes,), bytes(num_bytes))
    return safetensors_bytes({**make_weights(SMALL_CONFIG, SMALL_WEIGHTS), "extra": extra})


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("nowhere", "nowhere: there is no such file"),
        ("folder", "folder: this is a folder, not a weights file"),
        ("fifo", "fifo: this is not a regular file"),
        ("/dev/zero", "/dev/zero: this is not a regular file"),
    ],
)
@pytest.mark.parametrize("command", ["encrypt", "check"])
def test_what_is_no_file_is_said_to_be_none(folder: Path, command: str, weights: str, said: str) -> None:
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    flags = ("-o", "out.enc") if command == "encrypt" else ()
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli.main", command, weights, "--small-model", *flags],
        capture_output=True,
        cwd=folder,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert ran.stderr.startswith(f"soma-eval: {said}".encode())


def test_the_key_file_is_for_the_owner_alone(folder: Path) -> None:
    assert run(folder, "-o", "out.enc", "--key-file", "key").returncode == 0
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert names(folder) == ["key", "out.enc", "plain.safetensors"]


def test_names_that_are_no_text_and_names_with_spaces_can_be_copied(folder: Path) -> None:
    for weights in (b"caf\xe9 one.safetensors", b"it's [31m.safetensors"):
        (folder / os.fsdecode(weights)).write_bytes(PLAIN)
        published = weights.replace(b".safetensors", b".enc")
        ran = subprocess.run(
            [*ENCRYPT[:-2], weights, "--small-model", "-o", published, "--key-file", published + b".key"],
            capture_output=True,
            cwd=folder,
            env=environment() | {"PYTHONIOENCODING": "utf-8"},
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert (folder / os.fsdecode(published)).stat().st_size == len(PLAIN)
        ran.stdout.decode("utf-8")
        key_flag = next(line for line in ran.stdout.decode().splitlines() if "--key-file" in line)
        word = key_flag.partition("--key-file ")[2].rstrip("\\ ")
        echoed = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True).stdout
        assert echoed == published + b".key"


def embedding_file(path: Path, weights: bytes, dim: int = 16, **changes: Any) -> None:
    """What `score --embedding-out` writes of these weights."""
    content = EmbeddingFile(
        weights="plain.safetensors",
        checksum=checksum_of(weights),
        embedding=np.linspace(-1, 1, dim, dtype=np.float32),
        data_checksum=checksum_of(b"data"),
        data_size=4,
        seed=0,
        loss=5.5,
        architecture_version="1",
        small_model=dim == 16,
        precision="float32",
        device="cpu",
        versions={},
        computed_at="2026-01-01T00:00:00Z",
    )
    write_embedding_file(path, replace(content, **changes))


class Chain:
    """Stands for the network's client: keeps what a commit and a reveal were called with."""

    commitment = SomaClient.commitment

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        async def call(**arguments: Any) -> None:
            self.calls[name] = arguments

        return call


def printed_code(text: str) -> str:
    """The lines of Python in the steps."""
    lines = text.partition("Commit it with")[2].splitlines()[1:]
    prose = ("   revealed then", "   The timeout")
    return "\n".join(line for line in lines if line.startswith("   ") and not line.startswith(prose))


async def run_printed_code(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Chain:
    chain = Chain()
    monkeypatch.chdir(folder)
    known = {"client": chain, "SomaClient": SomaClient, "keypair": 0, "MODEL_ID": "0x1", "URL": "https://h/x"}
    scope: dict[str, Any] = {}
    body = f"async def steps():\n{printed_code(text)}\n"
    exec(compile(body, "steps", "exec"), known | {"json": json, "Path": Path}, scope)
    await scope["steps"]()
    return chain


async def test_the_printed_code_commits_the_embedding_of_these_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding_file(folder / "e.json", PLAIN)
    ran = run(folder, "-o", "out.enc", "--embedding", "e.json")
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert b"16 numbers in e.json, computed from these very weights" in ran.stdout
    chain = await run_printed_code(folder, ran.stdout.decode(), monkeypatch)
    for name in ("commit_model", "reveal_model"):
        inspect.signature(getattr(SomaClient, name)).bind(chain, **chain.calls[name])
        assert chain.calls[name]["embedding"] == json.loads((folder / "e.json").read_text())["embedding"]
        key = chain.calls[name]["decryption_key"]
    published = chain.calls["commit_model"]["encrypted_weights"]
    assert SomaClient.decrypt_weights(published, key) == PLAIN


async def test_without_an_embedding_the_first_step_makes_it_of_exactly_this_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(folder, "-o", "out.enc")
    text = ran.stdout.decode()
    assert "1. Make the embedding to commit" in text
    command = "score plain.safetensors --small-model --data HELD_OUT_FILE --seed 0"
    assert f"soma-eval {command} --embedding-out out.embedding.json\n" in text
    embedding_file(folder / "out.embedding.json", b"of other weights")
    with pytest.raises(AssertionError):
        await run_printed_code(folder, text, monkeypatch)
    embedding_file(folder / "out.embedding.json", PLAIN)
    await run_printed_code(folder, text, monkeypatch)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checksum": checksum_of(b"")}, "embedding of other weights, then named plain.safetensors"),
        ({"dim": 2048}, "it has 2,048 numbers, an embedding of this model 16"),
        ({"precision": "bf16"}, "it was computed in bf16"),
        ({"architecture_version": "2"}, "architecture version 2"),
    ],
    ids=["other-weights", "other-model", "bf16", "version"],
)
def test_an_embedding_that_is_not_to_be_committed_is_refused(
    folder: Path, changes: dict[str, Any], said: str
) -> None:
    embedding_file(folder / "e.json", PLAIN, **changes)
    ran = run(folder, "-o", "out.enc", "--key-file", "key", "--embedding", "e.json")
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert said in ran.stderr.decode()
    assert names(folder) == ["e.json", "plain.safetensors"]


def test_what_score_prints_is_no_embedding_file(folder: Path) -> None:
    (folder / "e.json").write_text('{"winner": 0, "models": [{"embedding": [1.0]}]}')
    ran = run(folder, "-o", "out.enc", "--embedding", "e.json")
    assert (ran.returncode, b"is not a file that `soma-eval score --embedding-out` wrote" in ran.stderr) == (
        *(2, True),
    )


def test_weights_with_nan_are_refused_unless_that_is_asked_for(folder: Path) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors["predictor.bias"][[3, 5, 7]] = np.nan, np.nan, np.inf
    (folder / "plain.safetensors").write_bytes(safetensors_bytes(tensors))
    ran = run(folder, "-o", "out.enc", "--key-file", "key")
    assert (ran.returncode, ran.stdout) == (1, b"")
    assert "✗ predictor.bias: 2 NaN and 1 infinite of 264 values → take" in ran.stderr.decode()
    assert b"--allow-non-finite" in ran.stderr
    assert names(folder) == ["plain.safetensors"]
    ran = run(folder, "-o", "out.enc", "--key-file", "key", "--allow-non-finite")
    assert ran.returncode == 0
    assert b"soma-eval check URL --small-model --allow-non-finite --key-file key" in ran.stdout


def test_json_is_json(folder: Path) -> None:
    answer = json.loads(run(folder, "-o", "out.enc", "--json").stdout)
    assert answer["size"] == (folder / "out.enc").stat().st_size
    assert answer["path"] == "out.enc"
