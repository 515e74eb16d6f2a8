"""docker/monitoring: every expression of its alerts and its board gives a series, shown with a real Prometheus."""

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml  # type: ignore[import-untyped]

from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_COMPETITION, competition
from tests.live_service import LiveService, live_service
from tests.prometheus import Prometheus, is_installed, prometheus_over

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "docker" / "monitoring"
ALERTS: list[dict[str, Any]] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"][0]["rules"]
BOARD: dict[str, Any] = json.loads((MONITORING / "grafana" / "soma-eval.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

needs_prometheus = pytest.mark.skipif(not is_installed(), reason="there is no prometheus with promtool here")


def compared(expression: str) -> str:
    """An alert's expression without its limit: what gives a number also while nothing is wrong."""
    number = re.fullmatch(r"(.*\S)\s+[<>]\s+[\d.]+\s*", expression, re.DOTALL)
    assert number, f"not a number compared with a limit: {expression}"
    return number[1]


def board_expression(text: str) -> str:
    """A panel's expression with Grafana's variables filled in."""
    expression = text.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in expression
    return expression


EXPRESSIONS = {
    **{rule["alert"]: compared(rule["expr"]) for rule in ALERTS},
    **{
        f"{panel['title']} {target['refId']}": board_expression(target["expr"])
        for panel in PANELS
        for target in panel["targets"]
    },
}


# -- the files, as they are


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_means_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["annotations"].keys() == {"summary", "meaning", "action"}
    assert all(text.rstrip().endswith(".") for name, text in rule["annotations"].items() if name != "summary")
    assert rule["labels"]["severity"] in ("critical", "warning")


def test_panels_have_names_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in BOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))


def test_what_compose_mounts_is_there() -> None:
    services = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())["services"]
    mounted = [
        volume.split(":")[0]
        for name in ("prometheus", "grafana")
        for volume in services[name]["volumes"]
        if volume.startswith(".")
    ]
    assert {Path(path).name for path in mounted} == {
        path.name for path in MONITORING.rglob("*") if path.is_file()
    }
    assert all((ROOT / "docker" / path).is_file() for path in mounted)


@needs_prometheus
def test_promtool_finds_nothing_wrong() -> None:
    for command in (["check", "rules", "alerts.yaml"], ["check", "config", "prometheus.yaml"]):
        done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
@pytest.mark.parametrize(
    ("alert", "series", "fires"),
    [
        ("SomaEvalDown", {'up{job="soma-eval", instance="a"}': "1x5 0x20"}, True),
        ("SomaEvalNoWorker", {'soma_eval_worker_up{instance="a", device="cpu"}': "0x25"}, True),
        (
            "SomaEvalNoWorker",
            {
                'soma_eval_worker_up{instance="a", device="cuda:0"}': "0x25",
                'soma_eval_worker_up{instance="a", device="cuda:1"}': "1x25",
            },
            False,
        ),
        (
            "SomaEvalNodeLeft",
            {
                'soma_eval_node_up{instance="a", node="gpu-1"}': "1x25",
                'soma_eval_node_up{instance="a", node="gpu-2"}': "1x5 0x20",
            },
            True,
        ),
        ("SomaEvalNodeLeft", {'soma_eval_node_up{instance="a"}': "1x25"}, False),
        (
            "SomaEvalInternalError",
            {
                'soma_eval_request_failures_total{instance="a", fault="service", code="internal-error"}': (
                    "0x15 1x10"
                )
            },
            True,
        ),
        (
            "SomaEvalServiceFaults",
            {
                'soma_eval_request_failures_total{instance="a", fault="service", code="queue-full"}': "0+9x25",
                'soma_eval_request_failures_total{instance="a", fault="client", code="not-found"}': "0+9x25",
                'soma_eval_request_failures_total{instance="a", fault="service", code="out-of-memory"}': "0x25",
                'soma_eval_requests_total{instance="a", method="POST /eval", outcome="ok"}': "0+9x25",
            },
            False,
        ),
        (
            "SomaEvalServiceFaults",
            {
                'soma_eval_request_failures_total{instance="a", fault="service", code="out-of-memory"}': "0+1x25",
                'soma_eval_requests_total{instance="a", method="Score", outcome="ok"}': "0+9x25",
            },
            True,
        ),
        (
            "SomaEvalWorkerRestarts",
            {'soma_eval_worker_restarts_total{instance="a", device="cpu", reason="killed"}': "0+1x25"},
            True,
        ),
    ],
)
def test_when_an_alert_fires(alert: str, series: dict[str, str], fires: bool, tmp_path: Path) -> None:
    shutil.copy(MONITORING / "alerts.yaml", tmp_path)
    rules = yaml.safe_load((tmp_path / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["annotations"] = {}  # or the test must repeat them
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump(
            {
                "rule_files": ["alerts.yaml"],
                "tests": [
                    {
                        "interval": "1m",
                        "input_series": [{"series": name, "values": text} for name, text in series.items()],
                        "promql_expr_test": [
                            {
                                "expr": f'count(ALERTS{{alertname="{alert}", alertstate="firing"}}) or vector(0)',
                                "eval_time": "24m",
                                "exp_samples": [{"labels": "{}", "value": int(fires)}],
                            }
                        ],
                    }
                ],
            }
        )
    )
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- with a real service and a real Prometheus


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, files: FileServer) -> Iterator[LiveService]:
    """A service that has had good requests, errors of every fault, a job, and a worker that was killed."""
    with live_service(tmp_path_factory.mktemp("monitored"), "--queue-size", "1") as service:
        with service.client() as client:
            load(client, files)
        yield service


def load(client: httpx.Client, files: FileServer) -> None:
    body = competition(files, GOLDEN_COMPETITION)
    for _ in range(2):
        assert client.post("/score", json=body).status_code == 200
    faults = {
        client.post("/eval", json={}).json()["fault"],
        client.post("/score", json={**body, "data_url": f"{files.base_url}/absent"}).json()["fault"],
        client.post("/eval", json=eval_of(f"{files.base_url}/absent")).json()["fault"],
    }
    with socket.create_server(("127.0.0.1", 0)) as silent:  # a publisher that never answers
        slow = eval_of(f"http://127.0.0.1:{silent.getsockname()[1]}/weights")
        job = client.post("/eval", json=slow, headers={"Prefer": "respond-async"})
        assert job.status_code == 202
        faults.add(client.post("/score", json=body).json()["fault"])  # the queue has one place
        client.delete(job.headers["location"])
    assert faults == {"client", "data_submitter", "model_owner", "service"}


def eval_of(url: str) -> dict[str, Any]:
    return {"data": "AA==", "weights_url": url}


@pytest.fixture(scope="module")
def prometheus(loaded: LiveService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has scraped the service before and after the load."""
    config = MONITORING / "prometheus.yaml"
    with prometheus_over(loaded.http_url, config, tmp_path_factory.mktemp("prometheus")) as running:
        running.wait_for_scrapes(3)
        yield running


@needs_prometheus
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_gives_a_series(name: str, prometheus: Prometheus) -> None:
    assert prometheus.query(EXPRESSIONS[name]) != []


@needs_prometheus
@pytest.mark.slow
def test_the_alerts_are_evaluated_and_a_lost_worker_is_seen(
    prometheus: Prometheus, loaded: LiveService
) -> None:
    assert {rule["name"]: rule["health"] for rule in prometheus.rules()} == {
        rule["alert"]: "ok" for rule in ALERTS
    }
    with loaded.client() as client:
        (device,) = client.get("/ready").json()["devices"]
        assert device["restarts"] == 0
        (worker,) = psutil.Process(loaded.process.pid).children()
        worker.kill()
        while client.get("/ready").json()["devices"][0]["restarts"] == 0:
            time.sleep(0.05)
    prometheus.wait_for_scrapes(2)
    (killed,) = prometheus.query('soma_eval_worker_restarts_total{reason="killed"}')
    assert killed["value"][1] == "1"


@needs_prometheus
@pytest.mark.slow
def test_promtool_finds_nothing_wrong_in_what_is_exposed(loaded: LiveService) -> None:
    with loaded.client() as client:
        page = client.get("/metrics").content
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
