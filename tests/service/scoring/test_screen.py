"""POST /screen on the real service: every number is that of /score, and what is wrong stays in its own place."""

import base64
import itertools
import json
from collections.abc import Container
from typing import Any

import httpx
import numpy as np
import pytest

from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION, KEY, absent, manifest, weights_that_give_nan
from tests.problems import assert_problem
from tests.recipe import encrypt, make_data, small_weights_bytes

SEED = 5
MODELS = [{"scheme": "scaled", "seed": seed} for seed in (7, 8, 9)]


def models(files: FileServer) -> list[dict[str, Any]]:
    return [
        {"id": f"m{i}", **manifest(files, f"screen-{i}.enc", encrypt(small_weights_bytes(recipe)), KEY)}
        for i, recipe in enumerate(MODELS)
    ]


def piece(size: int, seed: int) -> bytes:
    return make_data({"pattern": "hash", "size": size, "seed": seed})


def inline(content: bytes, **more: Any) -> dict[str, Any]:
    return {"data": base64.b64encode(content).decode(), **more}


def target(seed: int, threshold: float = 1.0, **more: Any) -> dict[str, Any]:
    embedding = np.random.default_rng(seed).normal(size=16)
    return {"embedding": embedding.tolist(), "distance_threshold": threshold, **more}


def post(client: httpx.Client, body: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of the pieces, by the order of the request, and the last line."""
    response = client.post("/screen", json={"seed": SEED, **body})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    *lines, last = map(json.loads, response.text.splitlines())
    order = {each.get("id", i): i for i, each in enumerate(body["pieces"])}
    return sorted(lines, key=lambda line: order[line["piece"]]), last


def assert_same_as_score(
    client: httpx.Client,
    files: FileServer,
    pieces: list[bytes],
    targets: list[dict[str, Any]],
    scored_alone: Container[int],
) -> None:
    """The pieces `scored_alone` are scored too, each for another target; all distances follow from the embeddings."""
    manifests = models(files)
    lines, last = post(
        client, {"pieces": [inline(each) for each in pieces], "models": manifests, "targets": targets}
    )
    assert last["error"] is None
    assert last["summary"]["pieces"] == len(pieces)
    for i, (line, content) in enumerate(zip(lines, pieces, strict=True)):
        losses = [found["loss"] for found in line["models"]]
        winner = losses.index(min(losses))
        embedding = np.array(line["models"][winner]["embedding"])
        for found, wanted in zip(line["targets"], targets, strict=True):
            assert found["winner"] == f"m{winner}"
            distance = 1 - np.dot(unit(embedding), unit(wanted["embedding"]))
            assert found["distance"] == pytest.approx(distance, rel=1e-6, abs=1e-7)
            assert found["hit"] == (found["distance"] <= wanted["distance_threshold"])
        if i not in scored_alone:
            continue
        data = manifest(files, f"piece-{i}.bin", content)
        scored = client.post(
            "/score",
            json={
                **{f"data_{name}": data[name] for name in ("url", "checksum", "size")},
                "model_manifests": [{k: v for k, v in each.items() if k != "id"} for each in manifests],
                "target_embedding": targets[i % len(targets)]["embedding"],
                "seed": SEED,
            },
        ).json()
        for found, expected in zip(line["models"], scored["models"], strict=True):
            assert found["error"] is None
            for name in ("loss", "cross_entropy", "sig_reg"):
                assert found[name] == pytest.approx(expected[name], rel=1e-6)
        assert scored["winner"] == winner
        tolerance = 1e-6 * np.abs(embedding).max()
        np.testing.assert_allclose(embedding, scored["embedding"], rtol=0, atol=tolerance)
        assert line["targets"][i % len(targets)]["distance"] == pytest.approx(scored["distance"][0], rel=1e-6)


def unit(vector: Any) -> Any:
    return np.asarray(vector) / np.linalg.norm(vector)


def test_every_number_is_that_of_score(client: httpx.Client, files: FileServer) -> None:
    sizes = [1, 100, 1024, 1025, 3000, 16_384, 40_000, 100]
    assert_same_as_score(
        *(client, files, [piece(size, i) for i, size in enumerate(sizes)], [target(i) for i in range(5)]),
        scored_alone=range(len(sizes)),
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_500_pieces_3_models_100_targets(client: httpx.Client, files: FileServer) -> None:
    sizes = itertools.islice(itertools.cycle([100, 1024, 1500, 1, 700]), 500)
    assert_same_as_score(
        *(client, files, [piece(size, i) for i, size in enumerate(sizes)], [target(i) for i in range(100)]),
        scored_alone=range(0, 500, 13),  # all sizes among them
    )


def test_a_piece_has_the_same_numbers_in_any_company(client: httpx.Client, files: FileServer) -> None:
    alone, _ = post(client, {"pieces": [inline(piece(100, 0))], "models": models(files), "targets": []})
    among, _ = post(
        client,
        {"pieces": [inline(piece(100, i)) for i in range(20)], "models": models(files), "targets": []},
    )
    for found, expected in zip(among[0]["models"], alone[0]["models"], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_each_target_has_a_winner_among_its_own_models(client: httpx.Client, files: FileServer) -> None:
    targets = [
        target(0, 2.0),
        target(0, 2.0, id="only-2", model_ids=["m2"]),
        target(0, -1.0, id="never", model_ids=["m1", "m0"]),
    ]
    (line,), last = post(
        client, {"pieces": [inline(b"some text", id="p")], "models": models(files), "targets": targets}
    )
    losses = {model["id"]: model["loss"] for model in line["models"]}
    first, only, never = line["targets"]
    assert line["piece"] == "p"
    assert (first["id"], first["winner"], first["hit"]) == (0, min(losses, key=losses.__getitem__), True)
    assert (only["id"], only["winner"]) == ("only-2", "m2")
    assert (never["winner"], never["hit"]) == (min(("m1", "m0"), key=losses.__getitem__), False)
    assert last["summary"] | {"seconds": 0} == {
        "pieces": 1,
        "failed": 0,
        "hits": 2,
        "pieces_with_hits": 1,
        "seconds": 0,
    }


def test_data_by_url(client: httpx.Client, files: FileServer) -> None:
    contents = [piece(300, 1), piece(50_000, 2)]
    published = [manifest(files, f"by-url-{i}.bin", each) for i, each in enumerate(contents)]
    by_url = [{"data_url": each["url"], "data_checksum": each["checksum"]} for each in published]
    by_url.append({"data_url": published[0]["url"], "data_checksum": published[1]["checksum"]})
    lines, _ = post(client, {"pieces": by_url, "models": models(files), "targets": []})
    inlined, _ = post(
        client, {"pieces": [inline(each) for each in contents], "models": models(files), "targets": []}
    )
    for found, expected in zip(lines[:2], inlined, strict=True):
        assert [m["loss"] for m in found["models"]] == pytest.approx(
            [m["loss"] for m in expected["models"]], rel=1e-6
        )
    assert lines[2]["error"]["code"] == "data-checksum-mismatch"
    assert lines[2]["models"] == lines[2]["targets"] == []


def test_what_is_wrong_costs_the_others_nothing(client: httpx.Client, files: FileServer) -> None:
    good = models(files)[0]
    bad = [
        weights_that_give_nan(files),
        absent(files),
        {**good, "id": None, "decryption_key": "1" * 32},
        {**good, "id": None, "decryption_key": "short"},
        manifest(files, "no-weights", b"no weights"),
    ]
    pieces = [
        inline(b"good"),
        {"data": "%"},
        inline(b""),
        {},
        {"data_url": f"{files.base_url}/absent"},
        inline(bytes((1 << 20) + 1)),
        inline(b"good too"),
    ]
    lines, last = post(client, {"pieces": pieces, "models": [*bad, good], "targets": [target(0, 2.0)]})
    codes = [line["error"] and line["error"]["code"] for line in lines]
    assert codes == [
        *(None, "invalid-request", "empty-data", "invalid-request"),
        *("data-unavailable", "data-too-large", None),
    ]
    for line in (lines[0], lines[-1]):
        assert [model["error"] and model["error"]["code"] for model in line["models"]] == [
            *("non-finite-result", "model-unavailable", "decryption-failed", "invalid-key"),
            *("weights-invalid", None),
        ]
        assert [model["error"]["model_index"] for model in line["models"][:5]] == [0, 1, 2, 3, 4]
        assert line["targets"][0]["winner"] == "m0"
    assert last["error"] is None
    assert (last["summary"]["pieces"], last["summary"]["failed"]) == (7, 5)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"pieces": []}, "pieces"),
        ({"pieces": [inline(b"a", id="x"), inline(b"b", id="x")]}, "two of the pieces"),
        ({"targets": [target(0, id=1), target(1)]}, "two of the targets"),
        ({"targets": [{"embedding": [1.0], "distance_threshold": 1.0}]}, "16 finite numbers"),
        ({"targets": [{"embedding": [0.0] * 16, "distance_threshold": 1.0}]}, "zero vector"),
        ({"targets": [target(0, model_ids=["m7"])]}, "not among the models"),
        ({"targets": [target(0, model_ids=[])]}, "no models"),
        ({"seed": -1}, "seed"),
        ({"unknown": 1}, "unknown"),
        ({"pieces": [{**inline(b"some"), "id": 0.5}]}, "pieces.0.id: Input should be a valid integer, or: "),
        ({"Their own name": 1, "Another one": 1}, "?: Extra inputs are not permitted"),
    ],
)
def test_a_request_that_makes_no_sense(
    client: httpx.Client, files: FileServer, change: dict[str, Any], detail: str
) -> None:
    body = {"pieces": [inline(b"some")], "models": models(files)[:1], "targets": [target(0)], **change}
    problem = assert_problem(client.post("/screen", json=body), "invalid-request")
    assert detail in problem["detail"]


def test_golden_competition(client: httpx.Client, files: FileServer) -> None:
    golden = GOLDEN_COMPETITION
    body = {
        "pieces": [inline(make_data(golden.data))],
        "models": [
            manifest(files, f"golden-screen-{i}.enc", encrypt(small_weights_bytes(recipe)), KEY)
            for i, recipe in enumerate(golden.models)
        ],
        "targets": [{"embedding": golden.target.tolist(), "distance_threshold": 2.0}],
        "seed": golden.seed,
    }
    (line,), _ = post(client, body)
    assert [model["loss"] for model in line["models"]] == pytest.approx(golden.losses, rel=1e-5)
    assert line["targets"][0]["winner"] == golden.winner
    assert line["targets"][0]["distance"] == pytest.approx(golden.distance, rel=1e-5)
