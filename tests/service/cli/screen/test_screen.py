"""`screen` gives the numbers of `score`, from every kind of source, here and at a service."""

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.file_server import FileServer
from tests.live_service import LiveService
from tests.recipe import (
    SMALL_WEIGHTS,
    TEST_KEY,
    encrypt,
    golden_competitions,
    make_data,
    small_weights_bytes,
    write_weights,
)
from tests.service.cli.command import SMALL, InProcess, Ran, environment, run_command
from tests.service.cli.screen.models_and_targets import KEY, write_json

COMPETITION = golden_competitions()["competition-three"]
SEED = ("--seed", str(COMPETITION.seed))


def lines_of(ran: Ran) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *lines, last = map(json.loads, ran.out.splitlines())
    return lines, last


@pytest.fixture
def flags(tmp_path: Path, prepared: Path) -> tuple[str, ...]:
    """The golden competition: its three models by path, one target within whose threshold its data is."""
    models = write_json(
        tmp_path / "models.json", [{"url": str(prepared / f"c{i}.safetensors")} for i in range(3)]
    )
    target = {"embedding": COMPETITION.target.tolist(), "distance_threshold": COMPETITION.distance + 1e-3}
    return ("--models", models, "--targets", write_json(tmp_path / "targets.json", [target]), *SEED)


def test_a_file_is_one_piece(in_process: InProcess, flags: tuple[str, ...]) -> None:
    ran = in_process.run("screen", *SMALL, *flags, "--data", "text")
    assert (ran.code, ran.complaints) == (0, "")
    (line,), last = lines_of(ran)
    assert line["piece"] == "text"
    assert [model["loss"] for model in line["models"]] == [
        pytest.approx(loss, rel=1e-5) for loss in COMPETITION.losses
    ]
    (target,) = line["targets"]
    assert (target["winner"], target["hit"]) == (COMPETITION.winner, True)
    assert target["distance"] == pytest.approx(COMPETITION.distance, abs=2e-5)
    assert (last["summary"]["pieces"], last["summary"]["hits"], last["error"]) == (1, 1, None)


def test_each_file_of_a_folder_is_a_piece(in_process: InProcess, flags: tuple[str, ...]) -> None:
    lines, last = lines_of(in_process.run("screen", *SMALL, *flags, "--data", "folder"))
    assert sorted(line["piece"] for line in lines) == ["one", "two"]
    assert last["summary"]["pieces"] == 2


def test_lines_of_json(in_process: InProcess, flags: tuple[str, ...], tmp_path: Path) -> None:
    golden = make_data(COMPETITION.data)
    rows = [
        json.dumps({"text": "some text"}),
        json.dumps({"id": "named", "data": base64.b64encode(golden).decode()}),
        "",
        "no JSON",
        json.dumps({"data": "%"}),
        json.dumps({"id": 77}),
        json.dumps({"data": "A" * 4_000_000}),
        json.dumps({"text": "last"}),
    ]
    (tmp_path / "pieces.jsonl").write_text("\n".join(rows))
    lines, last = lines_of(in_process.run("screen", *SMALL, *flags, "--data", str(tmp_path / "pieces.jsonl")))
    by_id = {line["piece"]: line for line in lines}
    assert set(by_id) == {0, "named", 3, 4, 77, 6, 7}
    assert by_id["named"]["models"][0]["loss"] == pytest.approx(COMPETITION.losses[0], rel=1e-5)
    codes = {name: line["error"]["code"] for name, line in by_id.items() if line["error"]}
    assert codes == {
        3: "invalid-request",
        4: "invalid-request",
        77: "invalid-request",
        6: "data-too-large",
    }
    assert (last["summary"]["pieces"], last["summary"]["failed"]) == (7, 4)


def test_a_command_for_every_hit(in_process: InProcess, flags: tuple[str, ...], tmp_path: Path) -> None:
    ran = in_process.run(
        *("screen", *SMALL, *flags, "--data", "text"),
        *("--on-hit", f"cat >> {tmp_path / 'hits'}; echo seen; exit 3"),
        SOMA_EVAL_KEY="canary",
    )
    (line,), _ = lines_of(ran)  # what the command prints is not among the lines
    assert json.loads((tmp_path / "hits").read_text()) == line
    assert "exit code 3" in ran.err
    assert ran.code == 0


def test_bad_models_cost_the_good_one_nothing(in_process: InProcess, prepared: Path, tmp_path: Path) -> None:
    sealed = str(prepared / "sealed.enc")
    models = [
        {"id": "broken", "url": str(prepared / "broken.safetensors")},
        {"id": "other key", "url": sealed, "decryption_key": "1" * 32},
        {"id": "short key", "url": sealed, "decryption_key": "canary"},
        {"id": "promised", "url": sealed, "checksum": "1" * 32},
        {"id": "size", "url": sealed, "size": 7},
        {"id": "good", "url": sealed, "decryption_key": KEY},
    ]
    path = write_json(tmp_path / "models.json", models)
    ran = in_process.run("screen", *SMALL, "--models", path, "--data", "short")
    (line,), last = lines_of(ran)
    assert {model["id"]: model["error"] and model["error"]["code"] for model in line["models"]} == {
        "broken": "weights-invalid",
        "other key": "decryption-failed",
        "short key": "invalid-key",
        "promised": "model-checksum-mismatch",
        "size": "model-size-mismatch",
        "good": None,
    }
    assert line["models"][5]["loss"] is not None
    assert last["error"] is None
    assert "canary" not in ran.out + ran.err


def test_no_good_model_is_exit_code_1(in_process: InProcess, prepared: Path, tmp_path: Path) -> None:
    path = write_json(tmp_path / "models.json", [{"url": str(prepared / "broken.safetensors")}])
    assert in_process.run("screen", *SMALL, "--models", path, "--data", "short").code == 1


@pytest.mark.parametrize(
    ("models", "targets", "more", "reason"),
    [
        ({}, [], (), "not a JSON list"),
        ([], [], (), "no model"),
        ([{"url": 7}], [], (), "entry 0: url must be a text"),
        ([{"url": "absent"}], [], (), "there is no such file"),
        ([{"url": "c0.safetensors", "id": True}], [], (), "id must be"),
        ([{"url": "c0.safetensors", "id": 1}, {"url": "c1.safetensors"}], [], (), "the same id"),
        ([{"url": "c0.safetensors"}], [{"embedding": [1.0]}], (), "distance_threshold must be"),
        ([{"url": "c0.safetensors"}], [{"embedding": []}], (), "embedding must be"),
        (
            [{"url": "c0.safetensors"}],
            [{"embedding": [1.0], "distance_threshold": 1}],
            (),
            "16 finite numbers",
        ),
        ([{"url": "c0.safetensors"}], [], ("--seed", "-1"), "--seed"),
        ([{"url": "c0.safetensors"}], [], ("--data", "absent"), "no such file or folder"),
        ([{"url": "c0.safetensors"}], [], ("--url", "http://127.0.0.1:9"), "leave out their flags"),
    ],
)
def test_usage(
    in_process: InProcess, tmp_path: Path, models: Any, targets: Any, more: tuple[str, ...], reason: str
) -> None:
    ran = in_process.run(
        *("screen", *SMALL, "--models", write_json(tmp_path / "models.json", models)),
        *("--targets", write_json(tmp_path / "targets.json", targets), "--data", "text", *more),
    )
    assert ran.code == 2, ran.err
    assert reason in ran.err
    assert ran.out == ""


def test_a_service_gives_the_same_lines(
    service: LiveService, files: FileServer, in_process: InProcess, tmp_path: Path
) -> None:
    weights = encrypt(small_weights_bytes(), TEST_KEY)
    (tmp_path / "w.enc").write_bytes(weights)
    target = {"embedding": np.ones(16).tolist(), "distance_threshold": 1.0}
    targets = write_json(tmp_path / "targets.json", [target])
    (tmp_path / "pieces.jsonl").write_text('{"text": "one"}\n{"id": "b", "text": "two"}\nno JSON\n')

    def screen(where: str, *flags: str) -> dict[Any, Any]:
        models = write_json(tmp_path / "models.json", [{"url": where, "decryption_key": KEY}])
        ran = in_process.run(
            *("screen", *flags, "--models", models, "--targets", targets),
            *("--data", str(tmp_path / "pieces.jsonl")),
        )
        assert ran.code == 0, ran.err
        lines, last = lines_of(ran)
        assert last["summary"]["pieces"] == 3
        return {line["piece"]: line for line in lines}

    here = screen(str(tmp_path / "w.enc"), *SMALL)
    there = screen(files.publish("screened.enc", weights), "--url", service.http_url)
    assert here.keys() == there.keys()
    for name, line in here.items():
        assert line.keys() == there[name].keys()
        assert line["error"] == there[name]["error"]
        for found, expected in zip(there[name]["models"], line["models"], strict=True):
            assert found.keys() == expected.keys()
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
        for found, expected in zip(there[name]["targets"], line["targets"], strict=True):
            assert found == {**expected, "distance": pytest.approx(expected["distance"], rel=1e-6)}


def test_a_service_is_asked_before_all_pieces_are_there(
    prepared: Path, files: FileServer, service: LiveService, tmp_path: Path
) -> None:
    """Standard input stays open, as that of a generator of pieces does."""
    url = files.publish("screened.enc", (prepared / "sealed.enc").read_bytes())
    models = write_json(tmp_path / "models.json", [{"url": url, "decryption_key": KEY}])
    command = [sys.executable, "-m", "service.cli.main", "screen", "--models", models, "--data", "-"]
    with subprocess.Popen(
        [*command, "--url", service.http_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(prepared),
    ) as screening:
        assert screening.stdin is not None
        assert screening.stdout is not None
        for text in "one", "two":
            screening.stdin.write(b'{"text": "%s"}\n' % text.encode())
            screening.stdin.flush()
            assert json.loads(screening.stdout.readline())["models"][0]["loss"] is not None
        screening.stdin.close()
        assert json.loads(screening.stdout.readline())["summary"]["pieces"] == 2
        assert screening.wait(60) == 0


def test_weights_of_this_machine_are_nothing_for_a_service(in_process: InProcess, tmp_path: Path) -> None:
    models = write_json(tmp_path / "models.json", [{"url": "c0.safetensors"}])
    ran = in_process.run("screen", "--models", models, "--data", "text", "--url", "http://127.0.0.1:9")
    assert (ran.code, ran.out) == (2, "")
    assert "cannot read c0.safetensors: give every model an http(s) URL" in ran.err


def test_no_service_is_exit_code_3(in_process: InProcess, tmp_path: Path) -> None:
    models = write_json(tmp_path / "models.json", [{"url": "http://127.0.0.1:9/w"}])
    ran = in_process.run(
        *("screen", "--models", models, "--data", "text", "--url", "http://127.0.0.1:9"),
    )
    assert ran.code == 3
    assert "did not answer" in ran.err


@pytest.mark.slow
def test_pieces_from_stdin_through_real_workers(
    prepared: Path, flags: tuple[str, ...], tmp_path: Path
) -> None:
    with (tmp_path / "pieces.jsonl").open("w+b") as pieces:
        pieces.write(b'{"text": "one"}\n{"text": "two"}')
        pieces.seek(0)
        ran = run_command(prepared, "screen", *SMALL, *flags, "--data", "-", stdin=pieces)
    assert (ran.code, ran.complaints) == (0, "")
    lines, _ = lines_of(ran)
    assert sorted(line["piece"] for line in lines) == [0, 1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_10_000_pieces(prepared: Path, tmp_path: Path) -> None:
    """Of the command itself, its workers apart: no more than a few MB for a hundred times the pieces.

    The model is as small as one can be, for what the workers compute is not the point.
    """
    model = {"embedding_dim": 8, "pwff_hidden_dim": 8, "num_layers": 1, "num_heads": 1, "vocab_size": 264}
    weights = write_weights(tmp_path / "tiny.safetensors", model, SMALL_WEIGHTS)
    short = {"sig_reg_slices": 1, "max_seq_len": 256}
    architecture = write_json(tmp_path / "architecture.json", {**model, **short})

    def peak_kib(num_pieces: int) -> int:
        models = write_json(tmp_path / "models.json", [{"url": str(weights)}])
        with (tmp_path / "pieces.jsonl").open("w") as pieces:
            pieces.writelines(f'{{"text": "{i} {"x" * 240}"}}\n' for i in range(num_pieces))
        code = (
            "import sys; from service.cli.main import run; code = run(sys.argv[1:]); "
            "import resource; peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
            "sys.stderr.write(f'{peak}'); sys.exit(code)"
        )
        flags = ("--architecture", architecture, "--device", "cpu", "--models", models)
        ran = subprocess.run(
            [sys.executable, "-c", code, "screen", *flags, "--data", str(tmp_path / "pieces.jsonl")],
            cwd=prepared,
            env=environment(prepared),
            capture_output=True,
            text=True,
            check=True,
        )
        assert len(ran.stdout.splitlines()) == num_pieces + 1
        return int(ran.stderr.splitlines()[-1])

    assert peak_kib(10_000) < peak_kib(100) + 16 * 1024
