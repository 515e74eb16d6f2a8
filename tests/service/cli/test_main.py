"""What every command does: errors in one line with a code, the help, the version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.cli.main import COMMANDS
from tests.service.cli.command import ROOT, InProcess, environment, run_command


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["score", "--data", "text"], 2, "no weights are given: name them, as in"),
        (["score", "--weights", "nowhere", "--data", "text"], 2, "weights nowhere: there is no such file"),
        (
            ["score", "--weights", "c*", "--data", "nowhere"],
            2,
            "--data nowhere: there is no such file or folder",
        ),
        (["score", "--weights", "c*", "--data", "text", "--seed", "-1"], 2, "--seed lies in 0 .. 2^64 - 1"),
        (["score", "--weights", "c*", "--data", "text", "--seeds", "0"], 2, "Invalid value for '--seeds'"),
        (["score", "--weights", "c*", "--data", "nothing"], 1, "the data is empty: nothing"),
        (
            ["score", "--weights", "c*", "--data", "text", "--key", "secret0"],
            2,
            "the decryption key is not 32",
        ),
        (
            ["score", "--weights", "c*", "--data", "text", "--target", "key"],
            2,
            "--target key: it is neither a JSON list",
        ),
        (
            ["score", "--weights", "c*", "--data", "text", "--device", "tpu"],
            2,
            "--device (SOMA_EVAL_DEVICE): 'tpu' is not a device",
        ),
        (["score", "--weights", "c*", "--data", "text", "--device", "cuda"], 3, "device cuda was asked for"),
        (
            ["score", "--weights", "c*", "--data", "text", "--url", "http://x", "--device", "cpu"],
            2,
            "--url leaves device",
        ),
        (["score", "--weights", "c*", "--data", "text", "--url", "https://far.example"], 2, "give URLs as"),
        (["check", "nowhere"], 2, "nowhere: there is no such file, and it is not an http(s) URL"),
        (["check", "text", "--checksum", "x"], 2, "--checksum is not a Blake2b-256 digest"),
        (["check", "http://127.0.0.1:9/x"], 1, "Publish on https at a public address"),
        (["check", "http://127.0.0.1:9/x", "--allow-http", "--allow-private-addresses"], 3, "Open the URL"),
        (["encrypt", "nowhere", "-o", "x"], 2, "nowhere: there is no such file"),
        (["encrypt", "text", "-o", "no-such-folder/x"], 2, "no-such-folder: there is no such folder"),
        (["serve", "--data-dir", "text"], 2, "text is a file: give --data-dir a folder"),
        (["serve", "--data-dir", "."], 2, ". holds files that are not soma-eval's"),
        (["serve", "--api-key", ""], 2, "--api-key (SOMA_EVAL_API_KEYS): one of them is empty"),
        (["serve", "--host", ""], 2, "--host (SOMA_EVAL_HOST): give an address or a name"),
        (
            ["serve", "--queue-size", "1000000000"],
            2,
            "--queue-size (SOMA_EVAL_QUEUE_SIZE): must be from 1 to 10,000",
        ),
        (
            ["serve", "--request-timeout-seconds", "nan"],
            2,
            "--request-timeout-seconds (SOMA_EVAL_REQUEST_TIMEOUT",
        ),
        (["serve", "--grpc-port", "70000"], 2, "--grpc-port (SOMA_EVAL_GRPC_PORT): must be from 0 to 65,535"),
        (["demo", "--device", "tpu"], 2, "soma-eval: --device: 'tpu' is not a device"),
        (["nonsense"], 2, "No such command 'nonsense'. See `soma-eval --help`."),
    ],
    ids=lambda value: " ".join(value[:6]) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_with_a_code(
    in_process: InProcess, arguments: list[str], code: int, said: str
) -> None:
    if "cuda" in arguments and any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    ran = in_process.run(*arguments)
    assert (ran.code, ran.out) == (code, "")
    assert said in ran.err
    assert ran.err.startswith("soma-eval: ")
    # What is waited for is said before.
    awaited = ("soma-eval: starting a worker", "soma-eval: asking the service at")
    lines = [line for line in ran.err.splitlines() if not line.startswith(awaited)]
    assert len(lines) == 1
    assert "secret0" not in ran.err


def test_no_arguments_print_the_help(in_process: InProcess) -> None:
    ran = in_process.run()
    assert (ran.code, ran.err) == (2, "")
    assert ran.out == in_process.run("--help").out


def test_the_version(in_process: InProcess) -> None:
    ran = in_process.run("--version")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("soma-eval 0")


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_has_its_help(in_process: InProcess, command: str) -> None:
    (summary,) = (known.summary for known in COMMANDS if known.name == command)
    assert summary in in_process.run("--help").out
    ran = in_process.run(command, "-h")
    assert (ran.code, ran.err) == (0, "")
    assert f"Usage: soma-eval {command} " in ran.out
    assert f"\n  {summary}\n" in ran.out


LOADED = """
import sys
from service.cli.main import run
run(sys.argv[1:])
heavy = ("torch", "numpy", "fastapi", "httpx", "sqlalchemy", "rich", "cryptography", "pydantic")
print(*(name for name in heavy if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [(["--help"], ""), (["--version"], ""), (["score", "--help"], "pydantic"), (["serve", "-h"], "pydantic")],
    ids=" ".join,
)
def test_a_help_loads_nothing_heavy(arguments: list[str], loaded: str) -> None:
    command = [sys.executable, "-c", LOADED, *arguments]
    ran = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment(ROOT), check=True, text=True)
    assert ran.stderr == f"{loaded}\n"


def test_the_console_script_ends_with_the_exit_code(prepared: Path) -> None:
    ran = run_command(prepared, "check", "nowhere")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("soma-eval: nowhere: there is no such file")


def test_a_broken_pipe_is_not_the_weights_fault(prepared: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = run_command(prepared, "--help", stdout=writing)
    os.close(writing)
    assert (ran.code, ran.err) == (3, "soma-eval: Broken pipe.\n")


@pytest.mark.parametrize("flags", [(), ("--full",)])
def test_a_file_is_checked_without_what_downloads(plain: Path, flags: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", LOADED, "check", "plain.safetensors", "--small-model", *flags]
    ran = subprocess.run(
        command, capture_output=True, cwd=plain, env=environment(plain), check=True, text=True
    )
    assert not {"torch", "fastapi", "httpx", "sqlalchemy"} & set(ran.stderr.splitlines()[-1].split())
