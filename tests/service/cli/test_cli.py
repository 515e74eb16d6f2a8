"""The commands as processes of their own, driven as a shell drives them: output, exit code, nothing left behind."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import base58
import numpy as np
import pytest
from soma_sdk import SomaClient

from service.cli import main as cli
from tests.file_server import FileServer
from tests.live_service import LiveService
from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    TEST_KEY,
    golden_cases,
    golden_competitions,
    make_data,
    small_weights_bytes,
    write_weights,
)

SMALL = ("--small-model", "--device", "cpu")
KEY = base58.b58encode(TEST_KEY).decode()
COMPETITION = golden_competitions()["competition-three"]


@dataclass(frozen=True)
class Ran:
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _hear_ctrl_c() -> None:
    """A test run in the background of a shell ignores it, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Shell:
    """A folder in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, stdin: bytes = b"", **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli.main", *arguments],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=self._environment() | environment,
            check=False,
        )
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "service.cli.main", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_hear_ctrl_c,
        )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_EVAL_")}
        return kept | {"PYTHONPATH": str(Path(__file__).parents[3]), "TERM": "dumb", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with the golden candidates, plain and encrypted, broken ones, data and a target."""
    folder = tmp_path_factory.mktemp("shell")
    for i, recipe in enumerate(COMPETITION.models):
        write_weights(folder / f"c{i}.safetensors", SMALL_CONFIG, recipe)
    write_weights(folder / "plain.safetensors", SMALL_CONFIG, SMALL_WEIGHTS)
    write_weights(folder / "sealed.enc", SMALL_CONFIG, SMALL_WEIGHTS, TEST_KEY)
    write_weights(folder / "leak.safetensors", SMALL_CONFIG, golden_cases()["leak-mixed"].weights)
    (folder / "broken.safetensors").write_bytes(b"<!doctype html>")
    (folder / "text").write_bytes(make_data(COMPETITION.data))
    (folder / "short").write_bytes(make_data(golden_cases()["small-short"].data))
    (folder / "folder" / ".git").mkdir(parents=True)
    (folder / "folder" / ".git" / "HEAD").write_bytes(b"hidden")
    (folder / "folder" / "one").write_bytes(make_data(golden_cases()["small-short"].data))
    (folder / "folder" / "two").write_bytes(make_data(golden_cases()["small-1024"].data))
    (folder / "nothing").write_bytes(b"")
    (folder / "key").write_text(f"{KEY}\n")
    (folder / "target.json").write_text(json.dumps(COMPETITION.target.tolist()))
    np.save(folder / "target.npy", COMPETITION.target)
    return Shell(folder)


def approx(loss: float) -> Any:
    return pytest.approx(loss, rel=1e-5)


# -- score


def test_score_gives_the_golden_numbers_of_a_competition(shell: Shell) -> None:
    ran = shell.run(
        *("score", *SMALL, "--weights", "c*.safetensors", "--data", "text", "--json"),
        *("--seed", str(COMPETITION.seed), "--target", "target.json"),
    )
    assert (ran.code, ran.err) == (0, "")
    models = ran.json["models"]
    assert ran.json["winner"] == COMPETITION.winner
    assert [model["loss"] for model in models] == [approx(loss) for loss in COMPETITION.losses]
    assert models[0]["distance"] == pytest.approx(COMPETITION.distance, abs=2e-5)
    assert np.abs(np.array(models[0]["embedding"]) - COMPETITION.embedding).max() < 2e-5
    assert [model["weights"] for model in models] == [f"c{i}.safetensors" for i in range(3)]
    assert ran.json["near_tie"]
    needed = {"weights", "loss", "cross_entropy", "sig_reg", "embedding", "distance", "error"}
    assert all(needed <= set(model) for model in models)


def test_plain_and_encrypted_score_the_same_and_one_bad_candidate_costs_nothing(shell: Shell) -> None:
    golden = golden_cases()["small-short"]
    names = ("plain.safetensors", "sealed.enc", "broken.safetensors")
    ran = shell.run(
        *(
            "score",
            *SMALL,
            *(flag for name in names for flag in ("--weights", name)),
            "--data",
            "-",
            "--json",
        ),
        *("--key", "none", "--key", KEY, "--key", KEY, "--seed", str(golden.seed)),
        stdin=make_data(golden.data),
    )
    plain, sealed, broken = ran.json["models"]
    assert (ran.code, ran.err) == (0, "")
    assert plain["loss"] == sealed["loss"] == approx(golden.loss)
    assert plain["cross_entropy"] == approx(golden.cross_entropy[0])
    assert plain["bits_per_byte"] == approx(golden.cross_entropy[0] * 1024 / 100 / np.log(2))
    assert plain["embedding"] == sealed["embedding"]
    assert (broken["loss"], broken["error"]["code"]) == (None, "decryption-failed")
    assert KEY not in ran.out


def test_several_files_and_seeds_are_averaged_and_shown(shell: Shell) -> None:
    flags = ("--weights", "plain.safetensors", "--weights", "leak.safetensors", "--data", "folder")
    page = ("--report", "page.html")
    ran = shell.run("score", *SMALL, *flags, "--seed", "1", "--seeds", "2", "--target", "target.npy", *page)
    assert (ran.code, ran.err) == (0, "")
    assert "2 files, seeds 1 to 2" in ran.out
    assert "± spread" in ran.out
    assert "leak.safetensors sees the bytes it predicts" in ran.out
    assert "of 4 runs" in ran.out
    assert "Where they differ" in (shell.folder / "page.html").read_text()
    ran = shell.run("score", *SMALL, *flags[:2], *flags[4:], "--seed", "1", "--json")
    model = ran.json["models"][0]
    losses = [golden_cases()[name].loss for name in ("small-short", "small-1024")]
    assert [run["loss"] for run in model["runs"]] == [approx(loss) for loss in losses]
    assert model["loss"] == approx(sum(losses) / 2)


def test_the_same_weights_twice_are_a_tie_and_the_first_wins(shell: Shell) -> None:
    ran = shell.run("score", *SMALL, *("--weights", "plain.safetensors") * 2, "--data", "text", "--json")
    assert (ran.code, ran.json["winner"], ran.json["margin"], ran.json["near_tie"]) == (0, 0, 0.0, True)


def test_no_winner_is_the_weights_fault(shell: Shell) -> None:
    ran = shell.run("score", *SMALL, "--weights", "sealed.enc", "--data", "text")
    assert ran.code == 1
    assert ran.out.startswith("✗ sealed.enc: there is no unencrypted safetensors header")
    assert len(ran.out.splitlines()) == 1


def test_a_running_service_can_do_it(shell: Shell, service: LiveService, files: FileServer) -> None:
    golden = golden_cases()["small-short"]
    url = files.publish("by-url.safetensors", small_weights_bytes()) + "?signature=secret0"
    ran = shell.run(
        *("score", "--url", service.http_url, "--weights", "sealed.enc", "--weights", url, "--data", "short"),
        *("--key-file", "key", "--seed", str(golden.seed), "--json"),
    )
    sealed, wrong = ran.json["models"]
    assert ran.code == 0
    assert sealed["loss"] == approx(golden.loss)
    assert wrong["weights"].endswith("/by-url.safetensors")
    assert "secret0" not in ran.out + ran.err
    assert wrong["error"]["code"] == "decryption-failed"  # one key for all, and this one is in the clear
    ran = shell.run(
        "score", "--url", "http://127.0.0.1:9", "--weights", "plain.safetensors", "--data", "short"
    )
    assert (ran.code, "Is `soma-eval serve` running" in ran.out) == (3, True)


def test_weights_of_a_url_are_fetched(shell: Shell, files: FileServer) -> None:
    url = files.publish("fetched.safetensors", small_weights_bytes())
    flags = ("--allow-http", "--allow-private-addresses", "--data-dir", "blobs", "--seed", "1", "--json")
    ran = shell.run("score", *SMALL, "--weights", url, "--data", "short", *flags)
    assert ran.code == 0
    assert ran.json["models"][0]["loss"] == approx(golden_cases()["small-short"].loss)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_ends_at_once_and_leaves_no_worker(shell: Shell) -> None:
    (shell.folder / "long").write_bytes(make_data({"pattern": "text", "size": 4 << 20}))
    process = shell.start("score", *SMALL, "--weights", "plain.safetensors", "--data", "long")
    workers = wait_for_workers(process.pid)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 5
    assert process.returncode == 130
    assert (out, err) == (b"", b"soma-eval: interrupted; nothing is left running.\n")
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def wait_for_workers(pid: int) -> list[str]:
    """Their process ids, some time after they have come."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if workers := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            time.sleep(0.5)
            return workers
        time.sleep(0.02)
    raise TimeoutError("no worker came")


# -- encrypt and check


def test_encrypt_then_check_then_the_sdk(shell: Shell, files: FileServer) -> None:
    plain = (shell.folder / "plain.safetensors").read_bytes()
    flags = ("--small-model", "-o", "published.enc", "--key-file", "published.key")
    ran = shell.run("encrypt", "plain.safetensors", *flags, "--json")
    assert (ran.code, ran.err) == (0, "")
    key_file = shell.folder / "published.key"
    key, published = key_file.read_text().strip(), (shell.folder / "published.enc").read_bytes()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert key not in ran.out
    assert SomaClient.decrypt_weights(published, key) == plain
    assert (ran.json["checksum"], ran.json["size"]) == (SomaClient.commitment(published), len(published))
    promise = (
        "--key-file",
        "published.key",
        "--checksum",
        ran.json["checksum"],
        "--size",
        str(ran.json["size"]),
    )
    url = files.publish("published.enc", published)
    local = ("--small-model", "--allow-http", "--allow-private-addresses", "--data-dir", "blobs2")
    checked = shell.run("check", url, *local, *promise, "--full")
    assert (checked.code, "every byte read" in checked.out) == (0, True)
    again = shell.run("encrypt", "plain.safetensors", *flags)
    assert again.code == 2
    assert again.err.startswith("soma-eval: published.enc exists, and nothing is overwritten")
    assert (shell.folder / "published.enc").read_bytes() == published


def test_encrypt_prints_the_next_step(shell: Shell) -> None:
    ran = shell.run(
        "encrypt", "plain.safetensors", *SMALL, "--data-dir", "d", "-o", "given.enc", "--key", KEY
    )
    published = (shell.folder / "given.enc").read_bytes()
    assert published == (shell.folder / "sealed.enc").read_bytes()
    assert f"key        {KEY}\n" in ran.out
    assert f"checksum   {SomaClient.commitment(published)}\n" in ran.out
    assert f"size       {len(published)}\n" in ran.out
    assert "client.commit_model(signer=keypair" in ran.out


@pytest.mark.parametrize("weights", ["sealed.enc", "broken.safetensors", "nothing"])
def test_encrypt_refuses_what_the_network_would(shell: Shell, weights: str) -> None:
    ran = shell.run("encrypt", weights, "--small-model", "-o", "refused.enc", "--key-file", "refused.key")
    assert ran.code == 1
    assert f"{weights} is not fit to commit: nothing was written" in ran.err
    assert not (shell.folder / "refused.enc").exists()
    assert not (shell.folder / "refused.key").exists()


def test_check_says_what_to_do(shell: Shell) -> None:
    ran = shell.run("check", "sealed.enc", *SMALL, "--key", base58.b58encode(bytes(32)).decode())
    assert ran.code == 1
    assert ran.out.startswith("✗ the key does not fit: decrypting gives no safetensors header → give the key")
    assert ran.out.endswith("Refused: 1 finding. Do not commit this.\n")
    ran = shell.run("check", "sealed.enc", "--small-model", "--json", SOMA_EVAL_KEY=KEY)
    assert (ran.code, ran.json["accepted"], ran.json["findings"]) == (0, True, [])
    ran = shell.run("check", "sealed.enc", "--small-model", "--key-file", "key")
    assert "Accepted" not in ran.out  # by the header alone
    assert "add --full before you commit" in ran.out


# -- what is said


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
            ["score", "--weights", "c*", "--data", "text", "--url", "x", "--device", "cpu"],
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
        (["demo", "--device", "tpu"], 2, "device: 'tpu' is not a device"),
        (["what"], 2, "No such command 'what'. See `soma-eval --help`."),
    ],
    ids=lambda value: " ".join(value[:6]) if isinstance(value, list) else "",
)
def test_an_error_is_one_line_with_a_code(
    shell: Shell,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    if "cuda" in arguments and any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    monkeypatch.chdir(shell.folder)
    monkeypatch.setattr(sys, "argv", ["soma-eval", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (code, "")
    assert said in err
    assert err.startswith("soma-eval: ")
    assert len(err.splitlines()) == 1
    assert "secret0" not in err


def test_the_demo_works(shell: Shell) -> None:
    ran = shell.run("demo", "--seconds", "0.5", *SMALL, "--precision", "float32", "--data-dir", "of-the-demo")
    assert (ran.code, ran.err) == (0, "")
    assert "winner" in ran.out


def test_no_arguments_print_the_help(shell: Shell) -> None:
    ran = shell.run()
    assert (ran.code, ran.err) == (2, "")
    assert ran.out == shell.run("--help").out


def test_version_and_help_load_nothing_heavy(shell: Shell) -> None:
    assert shell.run("--version").out.startswith("soma-eval 0")
    ran = shell.run("--help")
    assert ran.code == 0
    assert all(command in ran.out for command in ("score", "encrypt", "check", "serve", "demo"))
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, service.cli.main; print('torch' in sys.modules, 'httpx' in sys.modules)",
        ],
        capture_output=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert loaded.stdout == b"False False\n"
