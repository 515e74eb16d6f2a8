"""`score` as the person sees it who loses money by a wrong word: what is refused, what is written, what is said."""

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from service.checksum import checksum_of
from service.cli import main as cli
from service.cli.embedding_file import read_embedding_file
from service.cli.file_state import FileUnreadable
from service.cli.held_out import HeldOut, find_data
from service.cli.input_file import PipeLimits
from service.cli.question import Candidate, Question, parse_candidates, parse_keys, read_target
from service.cli.score.command import command_line, exit_code
from service.cli.score.remote import score_remotely
from service.cli.score.report import _MARKER
from service.cli.score.score_sheet import Outcome, Run, ScoreSheet
from service.cli.terminal import _fitting_table, print_sheet, remarks
from service.cli.usage import BadUsage
from service.config import ExplicitSettings
from service.errors import EmptyData, WeightsInvalid
from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, TEST_KEY, golden_cases, make_data, write_weights

GOLDEN = golden_cases()["small-short"]
SCORE = (sys.executable, "-m", "service.cli.main", "score")
SMALL = ("--small-model", "--device", "cpu")
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one set of weights, plain and encrypted, and golden data; a test must leave it as it was."""
    folder = tmp_path_factory.mktemp("score")
    write_weights(folder / "plain.safetensors", SMALL_CONFIG, SMALL_WEIGHTS)
    write_weights(folder / "sealed.enc", SMALL_CONFIG, SMALL_WEIGHTS, TEST_KEY)
    (folder / "data").write_bytes(make_data(GOLDEN.data))
    (folder / "many").mkdir()
    for name in "ab":
        (folder / "many" / name).write_bytes(b"text")
    os.mkfifo(folder / "fifo")
    return folder


def run(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_EVAL_")}
    options.setdefault("stdout", subprocess.PIPE)
    environment = kept | {"PYTHONPATH": str(ROOT), "TERM": "dumb"} | options.pop("env", {})
    command = [*SCORE, *SMALL, *arguments]
    return subprocess.run(
        command, stderr=subprocess.PIPE, cwd=folder, env=environment, check=False, timeout=120, **options
    )


def said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Exit code and the one line of a command that fails before anything is evaluated."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["soma-eval", "score", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert isinstance(ended.value.code, int)
    return ended.value.code, err


# -- the embedding to commit


def test_the_embedding_of_exactly_this_file_is_written(prepared: Path, tmp_path: Path) -> None:
    weights, out = (prepared / "plain.safetensors").read_bytes(), tmp_path / "embedding.json"
    seed = str(GOLDEN.seed)
    ran = run(
        prepared, "plain.safetensors", "--data", "data", "--seed", seed, "--embedding-out", str(out), "--json"
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    written = read_embedding_file(out)
    printed = json.loads(ran.stdout)["models"][0]["embedding"]
    assert written.embedding.tolist() == np.array(printed, dtype=np.float32).tolist()
    assert np.abs(written.embedding - GOLDEN.embedding).max() < 2e-5
    assert written.checksum == checksum_of(weights)
    assert written.data_checksum == checksum_of((prepared / "data").read_bytes())
    assert (written.weights, written.seed, written.small_model) == ("plain.safetensors", GOLDEN.seed, True)
    assert set(written.versions) >= {"soma-eval", "torch"}


def test_of_encrypted_weights_the_checksum_is_that_of_the_plain_ones(prepared: Path, tmp_path: Path) -> None:
    import base58

    (tmp_path / "key").write_text(base58.b58encode(TEST_KEY).decode())
    out, page = tmp_path / "embedding.json", tmp_path / "page.html"
    flags = ("--key-file", str(tmp_path / "key"), "--embedding-out", str(out), "--report", str(page))
    ran = run(prepared, "sealed.enc", "--data", "data", *flags)
    assert (ran.returncode, ran.stderr) == (0, b"")
    plain, sealed = (
        checksum_of((prepared / name).read_bytes()) for name in ("plain.safetensors", "sealed.enc")
    )
    assert read_embedding_file(out).checksum == plain
    text = page.read_text()
    assert plain in text
    assert sealed in text
    assert base58.b58encode(TEST_KEY).decode() not in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["plain.safetensors", "plain.safetensors", "--data", "data"], "there are 2 weights files"),
        (["plain.safetensors", "--data", "many"], "there are 2 files of data"),
        (["plain.safetensors", "--data", "data", "--seeds", "3"], "there are 3 seeds"),
        (["plain.safetensors", "--data", "data", "--url", "http://127.0.0.1:1"], "leave out --url"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_embedding_that_no_evaluation_gives_is_not_written(
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    code, err = said(prepared, monkeypatch, capfd, *arguments, "--embedding-out", "out.json")
    assert (code, reason in err) == (2, True)
    assert not (prepared / "out.json").exists()


# -- what may be written


@pytest.mark.parametrize("flag", ["--report", "--embedding-out"])
@pytest.mark.parametrize("output", ["plain.safetensors", "data", "sealed.enc", "many", "fifo", "no/such"])
def test_no_other_file_is_overwritten(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], flag: str, output: str
) -> None:
    before = (prepared / "plain.safetensors").read_bytes()
    code, err = said(prepared, monkeypatch, capfd, "plain.safetensors", "--data", "data", flag, output)
    assert code == 2
    assert err.startswith(f"soma-eval: {flag} {output}")
    assert (prepared / "plain.safetensors").read_bytes() == before


def test_a_full_disk_leaves_the_report_that_was_there(prepared: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html>{_MARKER}")
    before = page.read_bytes()
    ran = run(
        *(prepared, "plain.safetensors", "--data", "data", "--report", str(page)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert ran.returncode == 3
    assert ran.stderr.decode() == f"soma-eval: {page}: File too large.\n"
    assert page.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


# -- what may be read


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["fifo", "--data", "data"], "weights fifo: this is a fifo: weights are read more than once"),
        (["/dev/zero", "--data", "data"], "weights /dev/zero: this is a device"),
        (["many", "--data", "data"], "weights many: this is a folder"),
        (["step-*", "--data", "data"], "weights step-*: no file has such a name"),
        (["plain.safetensors", "--data", "/dev/zero"], "--data /dev/zero: this is a device"),
        (["plain.safetensors", "--data", "data", "--target", "/dev/zero"], "it is a device"),
        (["plain.safetensors", "--data", "data", "--key-file", "/dev/zero"], "it is a device"),
        (
            ["plain.safetensors", "--data", "data", "--key-file", "plain.safetensors"],
            "a key file cannot be read",
        ),
        (["\x1b]2J", "--data", "data"], r"weights \x1b]2J: there is no such file"),
        (["plain.safetensors", "--data", "data", "--url", "http://127.0.0.1:99999"], "--url is not an http"),
        (["plain.safetensors", "--data", "data", "--url", "http://["], "--url is not an http"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_never_ends_or_makes_no_sense_is_refused_at_once(
    prepared: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    code, err = said(prepared, monkeypatch, capfd, *arguments)
    assert (code, reason in err) == (2, True), err


def test_data_may_come_out_of_a_command(prepared: Path) -> None:
    """As in `--data <(command)`, with the weights named as a shell names them."""
    reading, writing = os.pipe()
    os.write(writing, make_data(GOLDEN.data))
    os.close(writing)
    seed = ("--seed", str(GOLDEN.seed))
    ran = run(
        prepared, "plain.safetensors", "--data", f"/dev/fd/{reading}", *seed, "--json", pass_fds=[reading]
    )
    os.close(reading)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout)["models"][0]["loss"] == pytest.approx(GOLDEN.loss, rel=1e-5)


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


def test_an_empty_folder_and_an_empty_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="no file with data"), find_data(str(tmp_path)):
        pass
    (tmp_path / "empty").touch()
    with pytest.raises(EmptyData), find_data(str(tmp_path / "empty")):
        pass


def test_a_key_may_come_out_of_a_command(tmp_path: Path) -> None:
    import base58

    os.mkfifo(tmp_path / "fifo")
    thread = write_to(tmp_path / "fifo", base58.b58encode(TEST_KEY) + b"\n")
    assert parse_keys([], [tmp_path / "fifo"]) == [TEST_KEY]
    thread.join()


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.json", b"[1e999]"), ("t.json", b"[" * 100_000), ("t.json", b"[1%s]" % (b"0" * 400)), ("t.npy", b"")],
)
def test_an_odd_target_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadUsage, match="--target"):
        read_target(tmp_path / name, None)


# -- what is said


def test_the_diagnosis_of_check_is_that_of_score(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04" + bytes(3000))
    whole = (prepared / "plain.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    names = [str(tmp_path / name) for name in ("x.pt", "cut.safetensors")]
    ran = run(prepared, *names, "plain.safetensors", "--data", "data", "--full-model")
    assert ran.returncode == 1
    pt, cut, cut_too, small = ran.stdout.decode().splitlines()
    assert "a zip archive, as torch.save writes it" in pt
    assert "the file is cut off" in cut
    assert "--small-model" in cut_too
    assert "--small-model" in small
    assert b"upload" not in ran.stdout


def test_a_precision_that_needs_a_gpu_is_refused_at_once(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("workers.processes.devices.count_gpus", lambda: 0)
    code, err = said(
        prepared, monkeypatch, capfd, "plain.safetensors", "--data", "data", "--precision", "bf16"
    )
    assert code == 3
    assert "precision bf16 needs a GPU" in err
    assert "--device cpu works" not in err


def test_a_terminal_without_unicode_is_enough(prepared: Path) -> None:
    ran = run(prepared, "sealed.enc", "--data", "data", env={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert (ran.returncode, ran.stderr) == (1, b"")
    assert ran.stdout.startswith(b"x sealed.enc: ")


def test_a_name_that_is_not_text_is_no_bug(prepared: Path) -> None:
    name = os.fsdecode(b"odd-\xff.safetensors")
    (prepared / name).write_bytes((prepared / "plain.safetensors").read_bytes())
    ran = run(prepared, name, "--data", "data", "--json")
    (prepared / name).unlink()
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert json.loads(ran.stdout)["models"][0]["weights"] == name


def test_where_nobody_can_see_the_result_nothing_is_evaluated(prepared: Path) -> None:
    ran = run(prepared, "plain.safetensors", "--data", "data", stdout=None, preexec_fn=lambda: os.close(1))
    assert ran.returncode == 2
    assert b"standard output is closed" in ran.stderr


def test_a_page_is_written_with_standard_output_closed(prepared: Path, tmp_path: Path) -> None:
    flags = ("--data", "data", "--report", str(tmp_path / "page.html"))
    ran = run(prepared, "plain.safetensors", *flags, stdout=None, preexec_fn=lambda: os.close(1))
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_full_standard_output_is_told(prepared: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ran = run(prepared, "plain.safetensors", "--data", "data", "--json", stdout=full)
    assert ran.returncode == 3
    assert ran.stderr == b"soma-eval: standard output cannot be written (No space left on device).\n"


def test_a_reader_that_leaves_is_not_the_weights_fault(prepared: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = run(prepared, "plain.safetensors", "--data", "data", stdout=writing)
    os.close(writing)
    assert ran.returncode == 3
    assert ran.stderr == b"soma-eval: standard output cannot be written (Broken pipe).\n"


def test_standard_error_may_be_closed(prepared: Path) -> None:
    ran = run(prepared, "plain.safetensors", "--data", "data", "--json", preexec_fn=lambda: os.close(2))
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["winner"] == 0


def sheet(*losses: float | None, names: str = "abcdef", num_skipped: int = 0) -> ScoreSheet:
    question = Question(
        candidates=tuple(Candidate(name) for name, _ in zip(names, losses, strict=False)),
        data=(HeldOut("data", Path("data"), 4),),
        seeds=(0,),
        num_skipped=num_skipped,
    )
    outcomes = (
        Outcome(candidate, error=WeightsInvalid("odd \x1b[2J words"))
        if loss is None
        else Outcome(candidate, (made_up_run(loss),))
        for candidate, loss in zip(question.candidates, losses, strict=True)
    )
    return ScoreSheet(question, tuple(outcomes))


def made_up_run(loss: float) -> Run:
    return Run(
        data="data",
        seed=0,
        loss=loss,
        cross_entropy=loss,
        sig_reg=0.0,
        embedding=np.ones(2, dtype=np.float32),
        distance=None,
        attends_to_future=False,
        num_predicted=3,
        num_tokens=1024,
        load_seconds=0.0,
        eval_seconds=0.0,
    )


def told(scored: ScoreSheet) -> str:
    return "\n".join(line.plain for line in remarks(scored))


def test_near_ties_are_named() -> None:
    assert sheet(5.0, 5.2, 5.3).near_ties() == []
    assert sheet(5.0, 5.04, 5.3, 5.01).near_ties() == [0, 3, 1]
    assert "A near tie: a, d and b. All 3 are within" in told(sheet(5.0, 5.04, 5.3, 5.01))
    assert "near tie" not in told(sheet(5.0))


def test_an_exact_tie_is_no_win() -> None:
    assert sheet(5.0, 5.0).num_wins == 0
    assert sheet(5.0, 5.5).num_wins == 1
    assert sheet(5.0, None).num_wins == 1


def test_a_best_that_does_not_always_win_says_so() -> None:
    def of_two_seeds(a: tuple[float, float], b: tuple[float, float]) -> str:
        question = replace(sheet(0.0, 0.0).question, seeds=(0, 1))
        runs = [tuple(map(made_up_run, losses)) for losses in (a, b)]
        outcomes = (Outcome(c, r) for c, r in zip(question.candidates, runs, strict=True))
        return told(ScoreSheet(question, tuple(outcomes)))

    assert "ahead of all others in 2 of 2 runs." in of_two_seeds((5.0, 5.0), (6.0, 6.0))
    assert "in 1 of 2 runs: who wins depends on the file or the seed" in of_two_seeds((5.0, 5.0), (4.5, 7.0))


def test_what_is_compared_with_nothing_says_so() -> None:
    assert "it is compared with nothing" in told(sheet(5.0, None))
    assert "compared with nothing" not in told(sheet(5.0))


def test_a_candidate_that_was_not_evaluated_leaves_the_comparison_incomplete() -> None:
    whole = sheet(5.0, 5.5)
    lost = replace(whole.outcomes[1], runs=(), error=FileUnreadable("the file could not be read"))
    scored = replace(whole, outcomes=(whole.outcomes[0], lost))
    assert (exit_code(scored), exit_code(sheet(5.0, None)), exit_code(sheet(None))) == (3, 0, 1)
    assert "The comparison is incomplete" in told(scored)


def test_nothing_of_what_others_say_is_obeyed_by_a_terminal() -> None:
    assert r"odd \x1b[2J words" in told(sheet(None))


def test_hidden_columns_are_named() -> None:
    scored = sheet(5.0, 5.5)
    table, line = _fitting_table(scored, Console(width=60))
    shown = {str(column.header) for column in table.columns}
    assert "loss" in shown
    assert line is not None
    needed = int(line.plain.partition("A terminal of ")[2].split()[0])
    assert line.plain.startswith("Not shown: ")
    assert not shown & set(line.plain.partition(". ")[0].removeprefix("Not shown: ").split(", "))
    assert _fitting_table(scored, Console(width=needed))[1] is None
    assert _fitting_table(scored, Console(width=needed - 1))[1] is not None


def test_a_row_without_a_distance_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    whole = sheet(5.0, 5.5)
    near = replace(whole.outcomes[1], runs=(replace(whole.outcomes[1].runs[0], distance=0.5),))
    print_sheet(replace(whole, outcomes=(whole.outcomes[0], near)))
    assert "distance" in capsys.readouterr().out


def test_the_command_of_a_report_holds_no_secret() -> None:
    settings = ExplicitSettings(small_model=True, device=("cpu",))
    weights = ["https://user:secret0@host/a?signature=secret1#secret2", "b c"]
    command = command_line(weights, "data", 1, 2, None, [Path("key")], settings)
    assert command == (
        "soma-eval score https://host/a 'b c' --data data --seed 1 --seeds 2 --key-file key "
        "--small-model --device cpu --precision float32"
    )


# -- a service elsewhere that is none


@contextmanager
def server_that_says(status: int, content: bytes) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


GOOD_ANSWER: dict[str, Any] = {
    "loss": 5.0,
    "cross_entropy": 5.0,
    "sig_reg": 0.0,
    "embedding": [1.0, 2.0],
    "distance": None,
    "attends_to_future": False,
    "provenance": {"precision": "float32", "device": "cpu", "versions": {"torch": "2"}},
    "timings": {"load_seconds": 0.0, "eval_seconds": 0.1},
}


ODD_MEMBERS: dict[str, Any] = {
    "loss": "5",
    "cross_entropy": None,
    "sig_reg": [1],
    "distance": {},
    "attends_to_future": 1,
    "embedding": [1.0, None],
    "timings": 3,
}


def ask(url: str, prepared: Path) -> ScoreSheet:
    with find_data(str(prepared / "data")) as found:
        question = Question(parse_candidates(["https://host/a"], []), found.files, seeds=(0,))
        return asyncio.run(score_remotely(question, url, None, lambda _: None))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"<!doctype html><title>Login</title>", "it sent an HTML page"),
        (b"", "it sent nothing"),
        (b"plain words", "it sent no JSON"),
        (b"\xff\xfe", "it sent no JSON"),
        (b"[" * 100_000, "it sent no JSON"),
        (b"[]", "an empty list"),
        (b"null", "missing or null"),
        (b"3", "a number"),
        (b"{}", "timings is missing or null"),
        *((json.dumps(GOOD_ANSWER | {name: value}).encode(), name) for name, value in ODD_MEMBERS.items()),
        (json.dumps(GOOD_ANSWER | {"loss": 10**400}).encode(), "loss is too large"),
        (json.dumps(GOOD_ANSWER | {"embedding": [1e300]}).encode(), "embedding holds a number too large"),
        (json.dumps(GOOD_ANSWER | {"embedding": []}).encode(), "embedding is an empty list"),
        (json.dumps(GOOD_ANSWER | {"loss": float("nan")}).encode(), "loss is too large or no number"),
    ],
)
def test_what_answers_and_is_no_service_is_told_as_what_it_is(
    prepared: Path, content: bytes, reason: str
) -> None:
    with server_that_says(200, content) as url:
        scored = ask(url, prepared)
    error = scored.outcomes[0].error
    assert error is not None
    assert error.full_code == "no-service"
    assert "is not soma-eval" in error.detail
    assert reason in error.detail
    assert exit_code(scored) == 3


def test_a_good_answer_is_taken(prepared: Path) -> None:
    with server_that_says(200, json.dumps(GOOD_ANSWER).encode()) as url:
        scored = ask(url, prepared)
    assert scored.outcomes[0].loss == 5.0
    assert scored.outcomes[0].runs[0].device == "cpu"


@pytest.mark.parametrize(
    "problem",
    [
        b"{}",
        b'{"code": 3, "detail": [], "fault": {}, "retryable": "yes"}',
        b'{"fault": "service", "code": null}',
    ],
)
def test_an_odd_error_is_the_machines(prepared: Path, problem: bytes) -> None:
    with server_that_says(500, problem) as url:
        assert exit_code(ask(url, prepared)) == 3


def test_who_does_not_answer_is_told_apart(prepared: Path) -> None:
    with server_that_says(200, b"{}") as url:
        pass
    refused = ask(url, prepared).outcomes[0].error
    with server_that_says(200, b"{}") as url:
        no_tls = ask(url.replace("http:", "https:"), prepared).outcomes[0].error
    assert refused is not None
    assert no_tls is not None
    assert refused.detail == "nothing listens there"
    assert "https" in no_tls.detail
