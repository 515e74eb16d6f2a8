"""docker/kuberay.yaml against the code and the pinned Ray. Its form alone: it was applied to no cluster."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from service.config import ExplicitSettings, Settings
from service.environment import PREFIX

ROOT = Path(__file__).parents[1]
(CLUSTER,) = yaml.safe_load_all((ROOT / "docker" / "kuberay.yaml").read_text())
HEAD: dict[str, Any] = CLUSTER["spec"]["headGroupSpec"]
(WORKERS,) = CLUSTER["spec"]["workerGroupSpecs"]
HEAD_POD: dict[str, Any] = HEAD["template"]["spec"]
WORKER_POD: dict[str, Any] = WORKERS["template"]["spec"]
RAY_HEAD, SERVICE = HEAD_POD["containers"]
(WORKER,) = WORKER_POD["containers"]


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    """Its variables; what comes from a secret as its name and key."""
    values = {}
    for variable in container["env"]:
        secret = variable.get("valueFrom", {}).get("secretKeyRef")
        values[variable["name"]] = f"{secret['name']}/{secret['key']}" if secret else variable["value"]
    return values


@pytest.fixture
def settings() -> ExplicitSettings:
    """What the service makes of its variables."""
    own = {name: text for name, text in environment_of(SERVICE).items() if name.startswith(PREFIX)}
    del own["SOMA_EVAL_API_KEYS"]
    given: dict[str, Any] = {name.removeprefix(PREFIX).lower(): text for name, text in own.items()}
    return ExplicitSettings(**given)


def gibibytes(volume: dict[str, Any]) -> int:
    found = re.fullmatch(r"(\d+)Gi", volume["emptyDir"]["sizeLimit"])
    assert found
    return int(found[1]) << 30


def volume(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in pod["volumes"] if each["name"] == name)
    return dict(found)


def test_it_is_a_cluster_of_the_ray_that_is_allowed() -> None:
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("ray.io/v1", "RayCluster")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (ray,) = (Requirement(each) for each in extras["cluster"] if each.startswith("ray"))
    assert CLUSTER["spec"]["rayVersion"] in ray.specifier
    assert len({container["image"] for container in (RAY_HEAD, SERVICE, WORKER)}) == 1


def test_the_head_computes_nothing_and_a_node_asks_for_a_gpu() -> None:
    assert (HEAD["rayStartParams"]["num-cpus"], HEAD["rayStartParams"]["num-gpus"]) == ("0", "0")
    for kind in ("requests", "limits"):
        assert WORKER["resources"][kind]["nvidia.com/gpu"] == "1"
        assert "nvidia.com/gpu" not in {*RAY_HEAD["resources"][kind], *SERVICE["resources"][kind]}


def test_the_service_joins_the_head_beside_it(settings: ExplicitSettings) -> None:
    assert SERVICE["args"] == ["serve"]
    (gcs,) = RAY_HEAD["ports"]
    assert (settings.pool, settings.ray_address) == ("ray", f"127.0.0.1:{gcs['containerPort']}")
    assert settings.device == ("cuda",)
    assert settings.allow_open_cluster is False
    names = {name for name in environment_of(SERVICE) if name.startswith(PREFIX)}
    assert names <= {PREFIX + name.upper() for name in Settings.model_fields}
    shared = {"ray": "/tmp/ray", "shm": "/dev/shm"}
    for container in (RAY_HEAD, SERVICE):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert shared.items() <= mounts.items()


def test_all_have_the_token_and_from_a_secret() -> None:
    for container in (RAY_HEAD, SERVICE, WORKER):
        found = environment_of(container)
        assert (found["RAY_AUTH_MODE"], found["RAY_AUTH_TOKEN"]) == ("token", "soma-eval/ray-token")
    assert environment_of(SERVICE)["SOMA_EVAL_API_KEYS"] == "soma-eval/api-keys"


def test_ports_and_probes_are_those_of_the_service(settings: ExplicitSettings) -> None:
    ports = {port["name"]: port["containerPort"] for port in SERVICE["ports"]}
    assert ports == {"http": settings.port, "grpc": settings.grpc_port}
    probes = {name: SERVICE[f"{name}Probe"]["httpGet"] for name in ("liveness", "readiness")}
    assert probes == {
        "liveness": {"path": "/health", "port": settings.port},
        "readiness": {"path": "/ready", "port": settings.port},
    }


def test_the_service_ends_its_work_before_it_is_killed(settings: ExplicitSettings) -> None:
    assert HEAD_POD["terminationGracePeriodSeconds"] > settings.drain_timeout_seconds + 20


def test_volumes_hold_what_is_kept_in_them(settings: ExplicitSettings) -> None:
    assert gibibytes(volume(HEAD_POD, "data")) > settings.cache_max_bytes
    assert gibibytes(volume(WORKER_POD, "data")) > settings.node_cache_max_bytes
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    home = re.search(r"\bHOME=(\S+)", dockerfile)
    assert home
    kept = Path(str(settings.node_data_dir).replace("~", home[1]))
    mounts = {mount["name"]: mount["mountPath"] for mount in WORKER["volumeMounts"]}
    assert kept.is_relative_to(mounts["data"])


def test_no_variable_of_kubernetes_is_taken_for_a_setting() -> None:
    """A Service named soma-eval would set SOMA_EVAL_PORT."""
    assert HEAD_POD["enableServiceLinks"] is False
