"""`encrypt` as the person who commits its output needs it: complete and told, or not there at all."""

import asyncio
import inspect
import json
import os
import re
import signal
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import base58
import numpy as np
import pytest
from soma_sdk import SomaClient

from service.checksum import checksum_of
from service.cli.embedding_file import EmbeddingFile, write_embedding_file
from tests.exec_prepared import Inherited
from tests.file_server import FileServer
from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    TEST_KEY,
    encrypt,
    make_weights,
    safetensors_bytes,
    safetensors_file,
    safetensors_parts,
    small_weights_bytes,
)
from tests.service.cli.command import InProcess, run_command, start_command

PLAIN = small_weights_bytes()
KEY = base58.b58encode(TEST_KEY).decode()
ENCRYPT = ("encrypt", "plain.safetensors", "--small-model")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("stdout", "flags"),
    [
        ("closed", ()),
        ("full", ()),
        ("broken-pipe", ()),
        ("full", ("--json",)),
        ("full", ("--key-file", "key")),
    ],
    ids=["closed", "full", "broken-pipe", "json", "key-file"],
)
def test_where_nobody_saw_the_key_nothing_is_left(plain: Path, stdout: str, flags: tuple[str, ...]) -> None:
    command = (*ENCRYPT, "-o", "out.enc", *flags)
    if stdout == "closed":
        ran = run_command(plain, *command, stdout=None, inherited=Inherited(closed_descriptor=1))
    elif stdout == "full":
        with Path("/dev/full").open("wb") as full:
            ran = run_command(plain, *command, stdout=full)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        ran = run_command(plain, *command, stdout=writer)
        os.close(writer)
    assert ran.code == 3
    assert ran.err.startswith("soma-eval: standard output cannot be written")
    assert "out.enc was not written" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert names(plain) == ["plain.safetensors"]


def test_a_full_disk_leaves_nothing(plain: Path) -> None:
    flags = ("-o", "out.enc", "--key-file", "key")
    ran = run_command(plain, *ENCRYPT, *flags, inherited=Inherited(max_file_bytes=20_000))
    assert (ran.code, ran.out, ran.err) == (3, "", "soma-eval: File too large.\n")
    assert names(plain) == ["plain.safetensors"]


def test_what_is_there_stays(in_plain: InProcess, plain: Path) -> None:
    for taken in ("out.enc", "key"):
        (plain / taken).write_text("mine")
        ran = in_plain.run(*ENCRYPT, "-o", "out.enc", "--key-file", "key")
        assert (ran.code, "nothing is overwritten" in ran.err) == (2, True)
        assert (plain / taken).read_text() == "mine"
        (plain / taken).unlink()
    assert names(plain) == ["plain.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(("by", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_midway_leaves_nothing(plain: Path, by: signal.Signals, code: int) -> None:
    write_large_weights(plain / "plain.safetensors", 400 << 20)
    process = start_command(plain, *ENCRYPT, "-o", "out.enc", "--key-file", "key")
    end = time.monotonic() + 60
    while not any(path.stat().st_size for path in plain.glob(".soma-eval-*")):
        assert time.monotonic() < end
        time.sleep(0.005)
    assert not (plain / "out.enc").exists()
    process.send_signal(by)
    out, _err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, b"")
    assert names(plain) == ["plain.safetensors"]


def write_large_weights(path: Path, num_bytes: int) -> None:
    """Sound weights of the small model, with a large tensor that nobody needs: a hole in the file."""
    header, bodies = safetensors_parts(make_weights(SMALL_CONFIG, SMALL_WEIGHTS))
    start = sum(map(len, bodies))
    header["extra"] = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [start, start + num_bytes]}
    path.write_bytes(safetensors_file(header, b"".join(bodies)))
    os.truncate(path, path.stat().st_size + num_bytes)


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
def test_what_is_no_file_is_said_to_be_none(
    in_plain: InProcess, plain: Path, command: str, weights: str, said: str
) -> None:
    (plain / "folder").mkdir()
    os.mkfifo(plain / "fifo")
    flags = ("-o", "out.enc") if command == "encrypt" else ()
    ran = in_plain.run(command, weights, "--small-model", *flags)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"soma-eval: {said}")


def test_the_key_file_is_for_the_owner_alone(in_plain: InProcess, plain: Path) -> None:
    assert in_plain.run(*ENCRYPT, "-o", "out.enc", "--key-file", "key").code == 0
    assert stat.S_IMODE((plain / "key").stat().st_mode) == 0o600
    assert names(plain) == ["key", "out.enc", "plain.safetensors"]


def test_names_that_are_no_text_and_names_with_spaces_can_be_copied(plain: Path) -> None:
    for weights in (b"caf\xe9 one.safetensors", b"it's [31m.safetensors"):
        (plain / os.fsdecode(weights)).write_bytes(PLAIN)
        published = weights.replace(b".safetensors", b".enc")
        flags = ("-o", published, "--key-file", published + b".key")
        utf_8 = {"PYTHONIOENCODING": "utf-8"}
        ran = run_command(plain, "encrypt", weights, "--small-model", *flags, variables=utf_8)
        assert (ran.code, ran.err) == (0, "")
        assert (plain / os.fsdecode(published)).stat().st_size == len(PLAIN)
        ran.out.encode("utf-8")  # has no surrogates
        key_flag = next(line for line in ran.out.splitlines() if "--key-file" in line)
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
        architecture="small" if dim == 16 else "network",
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
    """The lines of Python in the steps: what follows the words of each, which end with a colon."""
    steps = re.split(r"^\d\. ", text[text.index("Commit it with") :], flags=re.MULTILINE)
    return "\n".join(step.partition(":\n")[2].rstrip("\n") for step in steps)


def run_printed_code(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> Chain:
    chain = Chain()
    monkeypatch.chdir(folder)
    known = {"client": chain, "SomaClient": SomaClient, "keypair": 0, "MODEL_ID": "0x1", "URL": "https://h/x"}
    scope: dict[str, Any] = {}
    body = f"async def steps():\n{printed_code(text)}\n"
    exec(compile(body, "steps", "exec"), known | {"json": json, "Path": Path}, scope)
    asyncio.run(scope["steps"]())
    return chain


def test_the_printed_code_commits_the_embedding_of_these_weights(
    in_plain: InProcess, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding_file(plain / "e.json", PLAIN)
    ran = in_plain.run(*ENCRYPT, "-o", "out.enc", "--embedding", "e.json")
    assert (ran.code, ran.err) == (0, "")
    assert "16 numbers in e.json, computed from these very weights" in ran.out
    chain = run_printed_code(plain, ran.out, monkeypatch)
    for name in ("commit_model", "reveal_model"):
        inspect.signature(getattr(SomaClient, name)).bind(chain, **chain.calls[name])
        assert chain.calls[name]["embedding"] == json.loads((plain / "e.json").read_text())["embedding"]
        key = chain.calls[name]["decryption_key"]
    published = chain.calls["commit_model"]["encrypted_weights"]
    assert SomaClient.decrypt_weights(published, key) == PLAIN


def test_without_an_embedding_the_first_step_makes_it_of_exactly_this_file(
    in_plain: InProcess, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = in_plain.run(*ENCRYPT, "-o", "out.enc")
    text = ran.out
    assert "1. Make the embedding to commit" in text
    command = "score plain.safetensors --small-model --data HELD_OUT_FILE --seed 0"
    assert f"soma-eval {command} --embedding-out out.embedding.json\n" in text
    embedding_file(plain / "out.embedding.json", b"of other weights")
    with pytest.raises(AssertionError):
        run_printed_code(plain, text, monkeypatch)
    embedding_file(plain / "out.embedding.json", PLAIN)
    run_printed_code(plain, text, monkeypatch)


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
    in_plain: InProcess, plain: Path, changes: dict[str, Any], said: str
) -> None:
    embedding_file(plain / "e.json", PLAIN, **changes)
    ran = in_plain.run(*ENCRYPT, "-o", "out.enc", "--key-file", "key", "--embedding", "e.json")
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert names(plain) == ["e.json", "plain.safetensors"]


def test_what_score_prints_is_no_embedding_file(in_plain: InProcess, plain: Path) -> None:
    (plain / "e.json").write_text('{"winner": 0, "models": [{"embedding": [1.0]}]}')
    ran = in_plain.run(*ENCRYPT, "-o", "out.enc", "--embedding", "e.json")
    assert (ran.code, "is not a file that `soma-eval score --embedding-out` wrote" in ran.err) == (
        *(2, True),
    )


def test_weights_with_nan_are_refused_unless_that_is_asked_for(in_plain: InProcess, plain: Path) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors["predictor.bias"][[3, 5, 7]] = np.nan, np.nan, np.inf
    (plain / "plain.safetensors").write_bytes(safetensors_bytes(tensors))
    ran = in_plain.run(*ENCRYPT, "-o", "out.enc", "--key-file", "key")
    assert (ran.code, ran.out) == (1, "")
    assert "✗ predictor.bias: 2 NaN and 1 infinite of 264 values → take" in ran.err
    assert "--allow-non-finite" in ran.err
    assert names(plain) == ["plain.safetensors"]
    ran = in_plain.run(*ENCRYPT, "-o", "out.enc", "--key-file", "key", "--allow-non-finite")
    assert ran.code == 0
    assert "soma-eval check URL --small-model --allow-non-finite --key-file key" in ran.out


def test_json_is_json(in_plain: InProcess, plain: Path) -> None:
    answer = json.loads(in_plain.run(*ENCRYPT, "-o", "out.enc", "--json").out)
    assert answer["size"] == (plain / "out.enc").stat().st_size
    assert answer["path"] == "out.enc"


def test_encrypt_then_check_then_the_sdk(in_plain: InProcess, plain: Path, files: FileServer) -> None:
    flags = ("-o", "out.enc", "--key-file", "key")
    ran = in_plain.run(*ENCRYPT, *flags, "--json")
    assert (ran.code, ran.err) == (0, "")
    key, published = (plain / "key").read_text().strip(), (plain / "out.enc").read_bytes()
    assert key not in ran.out
    assert SomaClient.decrypt_weights(published, key) == PLAIN
    assert (ran.json["checksum"], ran.json["size"]) == (SomaClient.commitment(published), len(published))
    expected = ("--checksum", ran.json["checksum"], "--size", str(ran.json["size"]))
    url = files.publish("published.enc", published)
    local = ("--small-model", "--allow-http", "--allow-private-addresses", "--data-dir", "blobs")
    checked = in_plain.run("check", url, *local, *expected, "--key-file", "key", "--full")
    assert (checked.code, "every byte read" in checked.out) == (0, True)


def test_encrypt_prints_the_next_step(in_plain: InProcess, plain: Path) -> None:
    ran = in_plain.run(*ENCRYPT, "--device", "cpu", "--data-dir", "d", "-o", "given.enc", "--key", KEY)
    published = (plain / "given.enc").read_bytes()
    assert published == encrypt(PLAIN)
    assert f"key        {KEY}\n" in ran.out
    assert f"checksum   {SomaClient.commitment(published)}\n" in ran.out
    assert f"size       {len(published)}\n" in ran.out
    assert "client.commit_model(signer=keypair" in ran.out


@pytest.mark.parametrize("weights", ["sealed.enc", "broken.safetensors", "nothing"])
def test_encrypt_refuses_what_the_network_would(in_process: InProcess, tmp_path: Path, weights: str) -> None:
    out, key = str(tmp_path / "refused.enc"), str(tmp_path / "refused.key")
    ran = in_process.run("encrypt", weights, "--small-model", "-o", out, "--key-file", key)
    assert ran.code == 1
    assert f"{weights} is not fit to commit: nothing was written" in ran.err
    assert list(tmp_path.iterdir()) == []
