"""Honest claims are told from forged ones, in every field, by the network's own rule."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.scoring.competition import cosine_distance, is_within_tolerance
from tests.file_server import FileServer
from tests.golden_requests import (
    GOLDEN_COMPETITION,
    absent,
    competition,
    manifest,
    weights_that_give_nan,
)
from tests.live_service import LiveService
from tests.recipe import make_data, small_weights_bytes
from tests.service.cli.command import InProcess
from workers.v1 import ModelConfig, ModelRunner

LOSS = GOLDEN_COMPETITION.losses[GOLDEN_COMPETITION.winner]
AUDIT = ("audit", "claims.json", "--json", "--small-model", "--allow-http", "--allow-private-addresses")
Claim = dict[str, Any]


@pytest.fixture(scope="module")
def tied(files: FileServer) -> Claim:
    """The golden competition with the Rust runner's own answer; its third model is 0.4 % behind the first."""
    golden = GOLDEN_COMPETITION
    claimed = {
        "winner": golden.winner,
        "loss_score": [LOSS],
        "distance": [golden.distance],
        "embedding": golden.embedding.tolist(),
    }
    return {**competition(files, golden), "claimed": claimed}


@pytest.fixture(scope="module")
def honest(tied: Claim) -> Claim:
    """The same without the third model."""
    return {**tied, "model_manifests": tied["model_manifests"][:2]}


def changed(claim: Claim, change: Callable[[Claim], object]) -> Claim:
    other = copy.deepcopy(claim)
    change(other)
    return other


def claimed(claim: Claim, **values: Any) -> Claim:
    return {**claim, "claimed": claim["claimed"] | values}


def without_embedding(claim: Claim) -> Claim:
    return changed(claim, lambda c: c["claimed"].pop("embedding"))


def off_by(numbers: list[float], index: int, amount: float) -> list[float]:
    return [number + amount * (i == index) for i, number in enumerate(numbers)]


def twenty_claims(honest: Claim, tied: Claim, files: FileServer) -> list[tuple[Claim, bool | None, set[str]]]:
    """Each with the verdict it deserves, and the fields that are wrong."""
    golden = GOLDEN_COMPETITION
    loss, distance, embedding = LOSS, golden.distance, golden.embedding.tolist()
    model = small_weights_bytes(golden.models[2])
    out = ModelRunner(ModelConfig.small()).eval(make_data(golden.data), model, seed=golden.seed)
    third = claimed(
        without_embedding(tied),
        winner=2,
        loss_score=[out.loss],
        distance=[cosine_distance(out.embedding, golden.target)],
    )
    other_data = manifest(files, "other.bin", b"other data")
    return [
        (honest, True, set()),
        (without_embedding(honest), True, set()),
        (claimed(honest, loss_score=loss, distance=distance), True, set()),  # numbers in place of lists
        (claimed(honest, loss_score=[loss * 1.009]), True, set()),
        (claimed(honest, distance=[distance - 0.009]), True, set()),
        (claimed(honest, embedding=off_by(embedding, 3, 0.009)), True, set()),
        (tied, True, set()),
        (claimed(honest, winner=1), False, {"winner"}),
        (claimed(honest, winner=99), False, {"winner"}),
        (claimed(honest, loss_score=[loss * 1.02]), False, {"loss_score"}),
        (claimed(honest, loss_score=[float("nan")]), False, {"loss_score"}),
        (claimed(honest, distance=[distance - 0.05]), False, {"distance"}),
        (claimed(honest, distance=[float("-inf")]), False, {"distance"}),
        (claimed(honest, embedding=off_by(embedding, 3, 0.1)), False, {"embedding"}),
        (claimed(honest, embedding=embedding[:-1]), False, {"embedding"}),
        (claimed(third, loss_score=[loss * 0.9]), False, {"loss_score"}),
        ({**honest, "data_url": other_data["url"]}, False, set()),  # and the checksum of the honest one
        (third, None, set()),
        (changed(honest, lambda c: c["model_manifests"].append(absent(files))), None, set()),
        (changed(honest, lambda c: c["model_manifests"].append(weights_that_give_nan(files))), None, set()),
    ]


@pytest.mark.slow
def test_twenty_claims(
    in_process: InProcess, honest: Claim, tied: Claim, files: FileServer, tmp_path: Path
) -> None:
    cases = twenty_claims(honest, tied, files)
    path = tmp_path / "claims.json"
    path.write_text("\n".join(json.dumps(claim) for claim, _, _ in cases))
    ran = in_process.run(
        AUDIT[0],
        str(path),
        *AUDIT[2:],
        "--data-dir",
        str(tmp_path / "data"),
        SOMA_EVAL_MAX_DOWNLOAD_ATTEMPTS="1",
    )
    assert ran.code == 1, ran.err
    verdicts = [json.loads(line) for line in ran.out.splitlines()]
    assert [v["agrees"] for v in verdicts] == [agrees for _, agrees, _ in cases]
    wrong = [{n for n, f in v["fields"].items() if f["within_tolerance"] is False} for v in verdicts]
    assert wrong == [fields for _, _, fields in cases]
    assert [i for i, v in enumerate(verdicts) if v["flippable"]] == [6, 15, 17]
    assert set(verdicts[0]["fields"]) == {"winner", "loss_score", "distance", "embedding"}


@pytest.mark.parametrize(("index", "code"), [(0, 0), (7, 1), (17, 3)])
def test_the_exit_code_and_a_service_agree(
    in_process: InProcess,
    honest: Claim,
    tied: Claim,
    files: FileServer,
    service: LiveService,
    tmp_path: Path,
    index: int,
    code: int,
) -> None:
    claim, agrees, _ = twenty_claims(honest, tied, files)[index]
    path = tmp_path / "claim.json"
    path.write_text(json.dumps(claim))
    here = in_process.run("audit", str(path), *AUDIT[2:], "--data-dir", str(tmp_path / "data"))
    there = in_process.run("audit", str(path), "--json", "--url", service.http_url)
    assert (here.code, there.code) == (code, code), here.err + there.err
    assert here.json["agrees"] is there.json["agrees"] is agrees
    assert there.json["verdict"] == here.json["verdict"]
    assert there.json["fields"]["loss_score"]["ours"] == pytest.approx(
        here.json["fields"]["loss_score"]["ours"]
    )


def test_a_sample_of_many_for_people(in_process: InProcess, honest: Claim, tmp_path: Path) -> None:
    path = tmp_path / "claims.json"
    path.write_text(json.dumps([{**honest, "id": f"claim {i}"} for i in range(5)]))
    ran = in_process.run(
        *("audit", str(path), "--sample", "2", *AUDIT[3:], "--data-dir", str(tmp_path / "data"))
    )
    assert ran.code == 0, ran.err
    assert ran.out.count("Agrees: every number") == 2
    assert ran.out.endswith("2 claims: 2 agree, 0 do not, 0 could not be told.\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("claimed"), "claimed is missing"),
        (lambda c: c["claimed"].pop("distance"), "distance is missing"),
        (lambda c: c["claimed"].update(winner=-1), "winner is not"),
        (lambda c: c["claimed"].update(loss_score=[1, 2]), "loss_score is not"),
        (lambda c: c.update(seed=1 << 64), "seed is not"),
        (lambda c: c.update(model_manifests=[]), "model_manifests is not"),
        (lambda c: c.update(target_embedding=["x"]), "target_embedding is not"),
        (lambda c: c.pop("data_url"), "data_url is missing"),
        (lambda c: [m.update(decryption_key="secret") for m in c["model_manifests"]], "not 32 bytes"),
    ],
)
def test_what_is_no_claim_is_refused(
    in_process: InProcess, honest: Claim, tmp_path: Path, change: Callable[[Claim], object], said: str
) -> None:
    (tmp_path / "c").write_text(json.dumps(changed(honest, change)))
    ran = in_process.run("audit", str(tmp_path / "c"), *AUDIT[2:])
    assert (ran.code, f"claim 1: {said}" in ran.err or said in ran.err) == (2, True), ran.err
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("ours", "theirs", "within"),
    [(0.5, 0.504, True), (0.5, 0.52, False), (0.001, 0.008, True), (5.0, 5.05, True), (5.0, 5.06, False)],
)
def test_the_tolerance_is_that_of_the_networks_own_tests(ours: float, theirs: float, within: bool) -> None:
    assert is_within_tolerance(ours, theirs) is is_within_tolerance(theirs, ours) is within
