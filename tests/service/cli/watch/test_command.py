"""`soma-eval watch` as a command: what it prints, whom it calls, how it ends."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.live_service import LiveService
from tests.recipe import golden_cases, make_data
from tests.service.cli.command import SECONDS, SMALL, InProcess, start_command
from tests.service.cli.watch.watching_folder import BAD, GOOD, NEAR

FIELDS = ["weights", "loss", "loss_spread", "cross_entropy", "sig_reg", "rank", "result_cached", "error"]
HOSTILE = "a'; touch injected; $(touch injected) `touch injected` \n.safetensors"


@pytest.fixture
def folder(plain: Path) -> Path:
    """checkpoints/ with a good and a bad one, and data beside it."""
    (plain / "checkpoints").mkdir()
    (plain / "checkpoints" / "bad.safetensors").write_bytes(BAD)
    (plain / "checkpoints" / HOSTILE).write_bytes(GOOD)
    (plain / "data").write_bytes(make_data(golden_cases()["small-short"].data))
    return plain


ONCE = ("watch", "checkpoints", "--data", "data", "--once")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.usefixtures("no_processes")
def test_once_prints_a_line_for_each_best_first_and_computes_nothing_twice(
    folder: Path, in_plain: InProcess
) -> None:
    (folder / "checkpoints" / "half.safetensors").write_bytes(GOOD[:1000])
    ran = in_plain.run(*ONCE, *SMALL, "--json", "--seeds", "2")
    rows = lines(ran.out)
    assert [list(row) for row in rows] == [FIELDS] * 3
    assert [row["rank"] for row in rows] == [1, 2, None]
    assert [row["result_cached"] for row in rows] == [False] * 3
    assert rows[0]["weights"] == f"checkpoints/{HOSTILE}"
    assert rows[0]["loss"] < rows[1]["loss"]
    assert rows[0]["loss_spread"] > 0
    assert rows[2]["error"]["code"] == "file-incomplete"
    assert (ran.code, ran.complaints) == (3, "")

    (folder / "checkpoints" / "half.safetensors").unlink()
    (folder / "checkpoints" / "bad.safetensors").rename(folder / "checkpoints" / "renamed.safetensors")
    again = in_plain.run(*ONCE, *SMALL, "--json", "--seeds", "2")
    assert again.code == 0
    assert [row["result_cached"] for row in lines(again.out)] == [True, True]
    assert [row["loss"] for row in lines(again.out)] == [row["loss"] for row in rows[:2]]


@pytest.mark.usefixtures("no_processes")
def test_once_for_people_and_a_report_with_the_loss_along_training(folder: Path, in_plain: InProcess) -> None:
    for step, content in [(9, BAD), (10, GOOD), (100, GOOD)]:
        path = folder / "checkpoints" / f"step-{step}.safetensors"
        path.write_bytes(content)
        os.utime(path, (1e9 + step, 1e9 + step))
    (folder / "checkpoints" / HOSTILE).unlink()
    (folder / "checkpoints" / "bad.safetensors").unlink()
    ran = in_plain.run(*ONCE, *SMALL, "--report", "report.html")
    assert ran.code == 0, ran.err
    assert "  1   step-100.safetensors" in ran.out
    assert ran.out.endswith("The report is in report.html.\n")
    page = (folder / "report.html").read_text()
    assert "Along training" in page
    assert "the number in the file&#x27;s name" in page or "the number in the file's name" in page
    assert "soma-eval watch checkpoints --data data --seed 0 --seeds 1 --once --small-model" in page


@pytest.mark.usefixtures("no_processes")
def test_a_new_best_is_piped_into_a_command_and_its_name_is_never_part_of_one(
    folder: Path, in_plain: InProcess
) -> None:
    ran = in_plain.run(*ONCE, *SMALL, "--json", "--on-best", "cat > best.json; echo said; exit 4")
    assert ran.code == 0
    assert json.loads((folder / "best.json").read_text()) == lines(ran.out)[0]
    assert ran.complaints == "said\nsoma-eval: --on-best ended with exit code 4\n"
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.json",
        "checkpoints",
        "data",
        "plain.safetensors",
    ]
    (folder / "best.json").unlink()
    assert in_plain.run(*ONCE, *SMALL, "--json", "--on-best", "cat > best.json").code == 0
    assert not (folder / "best.json").exists()


@pytest.mark.usefixtures("no_processes")
def test_an_empty_folder(folder: Path, in_plain: InProcess) -> None:
    (folder / "empty").mkdir()
    ran = in_plain.run("watch", "empty", "--data", "data", "--once", *SMALL)
    assert (ran.code, ran.out) == (1, "There is no checkpoint (*.safetensors) in empty.\n")
    assert in_plain.run("watch", "empty", "--data", "data", "--once", "--json", *SMALL).out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing", "--data", "data"), "there is no such folder"),
        (("data", "--data", "data"), "this is no folder"),
        (("checkpoints", "--data", "missing"), "there is no such file or folder"),
        (("checkpoints", "--data", "data", "--url", "http://127.0.0.1:1", *SMALL), "leave out their flags"),
        (
            ("checkpoints", "--data", "data", "--url", "https://far.example"),
            "watch the folder on that machine",
        ),
        (("checkpoints", "--data", "data", "--report", "plain.safetensors"), "it is not overwritten"),
        (("checkpoints", "--data", "data", "--seed", "-1"), "--seed lies in"),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, in_plain: InProcess, arguments: tuple[str, ...], message: str
) -> None:
    ran = in_plain.run("watch", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert ran.out == ""


def test_a_service_does_the_work(folder: Path, in_plain: InProcess, service: LiveService) -> None:
    ran = in_plain.run(*ONCE, "--json", "--url", service.http_url)
    assert ran.code == 0, ran.err
    by_service = lines(ran.out)
    assert [row["rank"] for row in by_service] == [1, 2]
    again = lines(in_plain.run(*ONCE, "--json", "--url", service.http_url).out)
    assert [row["result_cached"] for row in again] == [True, True]
    assert [row["loss"] for row in again] == [row["loss"] for row in by_service]


@pytest.mark.slow
def test_with_a_service_too_a_watch_that_was_killed_repeats_nothing(
    folder: Path, service: LiveService
) -> None:
    asked = ("checkpoints", "--data", "data", "--seeds", "2", "--json", "--url", service.http_url)
    found: list[list[dict[str, Any]]] = []
    for names in [(HOSTILE, "bad.safetensors"), ("last.safetensors", "renamed.safetensors", HOSTILE)]:
        watch = start_command(folder, "watch", *asked)
        try:
            assert watch.stdout is not None
            found.append([json.loads(watch.stdout.readline()) for _ in names])
        finally:
            watch.kill()
            watch.communicate(timeout=SECONDS)
        assert sorted(row["weights"] for row in found[-1]) == sorted(f"checkpoints/{name}" for name in names)
        if len(found) == 1:
            (folder / "checkpoints" / "bad.safetensors").rename(
                folder / "checkpoints" / "renamed.safetensors"
            )
            (folder / "checkpoints" / "last.safetensors").write_bytes(NEAR)
    again = {row["weights"]: row for row in found[1]}
    assert {name: row["result_cached"] for name, row in again.items()} == {
        "checkpoints/last.safetensors": False,
        "checkpoints/renamed.safetensors": True,
        f"checkpoints/{HOSTILE}": True,
    }
    first = {row["weights"]: row["loss"] for row in found[0]}
    assert again["checkpoints/renamed.safetensors"]["loss"] == first["checkpoints/bad.safetensors"]


def test_a_service_that_is_not_there_is_trouble(folder: Path, in_plain: InProcess) -> None:
    ran = in_plain.run(*ONCE, "--json", "--url", "http://127.0.0.1:9")
    assert ran.code == 3
    assert [row["error"]["code"] for row in lines(ran.out)] == ["no-service"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_goes_on_until_it_is_interrupted_and_leaves_nothing(folder: Path, number: signal.Signals) -> None:
    hook = "echo $$ > hook.pid; cat > /dev/null; sleep 1000"
    process = start_command(
        folder, "watch", "checkpoints", "--data", "data", *SMALL, "--json", "--on-best", hook
    )
    try:
        assert process.stdout is not None
        for _ in range(2):
            assert list(json.loads(process.stdout.readline())) == FIELDS
        while not (folder / "hook.pid").exists() or not (folder / "hook.pid").read_text():
            assert process.poll() is None
        started = psutil.Process(process.pid).children(recursive=True)
        assert any(child.pid == int((folder / "hook.pid").read_text()) for child in started)
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    assert (process.returncode, out) == (128 + number, b"")
    word = b"interrupted" if number == signal.SIGINT else b"terminated"
    assert err == (
        b"soma-eval: watching checkpoints for *.safetensors; Ctrl-C ends it\n"
        b"soma-eval: starting a worker for cpu, which tests itself first.\n"
        b"soma-eval: " + word + b"; nothing is left running.\n"
    )
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
