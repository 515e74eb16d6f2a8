"""docker/kubernetes against the code: ports, probes, names of settings, limits that depend on each other."""

import copy
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.config import ExplicitSettings, Settings
from service.environment import PREFIX
from service.http_api.api_keys import OPEN_PATHS

ROOT = Path(__file__).parents[1]
MANIFESTS: list[dict[str, Any]] = [
    manifest
    for path in sorted((ROOT / "docker" / "kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(path.read_text())
]
LABELS = {"app.kubernetes.io/name": "soma-eval"}


def of_kind(kind: str) -> dict[str, Any]:
    (manifest,) = (each for each in MANIFESTS if each["kind"] == kind)
    return manifest


def of_ray() -> Iterator[dict[str, Any]]:
    """The pods of docker/kuberay.yaml: what they stand in is KubeRay's, whose schema is not at hand."""
    cluster = yaml.safe_load((ROOT / "docker" / "kuberay.yaml").read_text())["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}


SPEC: dict[str, Any] = of_kind("StatefulSet")["spec"]
POD: dict[str, Any] = SPEC["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]


@pytest.fixture
def settings() -> ExplicitSettings:
    """What the service makes of the ConfigMap."""
    given = {name.removeprefix(PREFIX).lower(): text for name, text in of_kind("ConfigMap")["data"].items()}
    return ExplicitSettings(**given)


@pytest.fixture(params=["1.29", "1.37"])
def check(request: pytest.FixtureRequest) -> Callable[[dict[str, Any]], None]:
    """Raises for a manifest that this version of Kubernetes would refuse, or of which it would drop a field."""
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    return functools.partial(schemas.validate, desired_version=request.param, strict=True)


@pytest.mark.parametrize("manifest", [*MANIFESTS, *of_ray()], ids=lambda manifest: str(manifest["kind"]))
def test_kubernetes_knows_every_field(
    check: Callable[[dict[str, Any]], None], manifest: dict[str, Any]
) -> None:
    check(manifest)


@pytest.mark.parametrize(
    "wrong", [{"readinesProbe": {}}, {"ports": [{"containerPort": "8000"}]}], ids=["name", "type"]
)
def test_a_wrong_field_would_be_found(check: Callable[[dict[str, Any]], None], wrong: dict[str, Any]) -> None:
    manifest = copy.deepcopy(of_kind("StatefulSet"))
    manifest["spec"]["template"]["spec"]["containers"][0] |= wrong
    with pytest.raises(Exception, match=next(iter(wrong))):
        check(manifest)


def test_what_is_set_is_a_setting() -> None:
    names = {*of_kind("ConfigMap")["data"], *(variable["name"] for variable in CONTAINER["env"])}
    assert names <= {PREFIX + name.upper() for name in Settings.model_fields}
    assert all(isinstance(text, str) for text in of_kind("ConfigMap")["data"].values())


def test_ports_are_those_of_the_service(settings: ExplicitSettings) -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"http": settings.port, "grpc": settings.grpc_port}
    assert {port["targetPort"]: port["port"] for port in of_kind("Service")["spec"]["ports"]} == ports
    assert SPEC["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(settings.port)
    rules = of_kind("NetworkPolicy")["spec"]["ingress"]
    assert {port["port"] for rule in rules for port in rule["ports"]} == set(ports)
    assert (settings.host, settings.grpc_host) == ("0.0.0.0", "0.0.0.0")


def test_probes_ask_what_needs_no_key() -> None:
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in paths.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert {probe["path"] for probe in paths.values()} < OPEN_PATHS
    assert {probe["port"] for probe in paths.values()} == {"http"}
    assert SPEC["template"]["metadata"]["annotations"]["prometheus.io/path"] in OPEN_PATHS


def test_every_selector_finds_the_pods() -> None:
    assert SPEC["template"]["metadata"]["labels"] == LABELS
    assert SPEC["selector"] == {"matchLabels": LABELS}
    assert of_kind("Service")["spec"]["selector"] == LABELS
    assert of_kind("NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": LABELS}
    assert SPEC["serviceName"] == of_kind("Service")["metadata"]["name"]


def test_the_service_ends_its_work_before_it_is_killed(settings: ExplicitSettings) -> None:
    assert POD["terminationGracePeriodSeconds"] > settings.drain_timeout_seconds + 20


def test_the_volume_holds_the_cache(settings: ExplicitSettings) -> None:
    (claim,) = SPEC["volumeClaimTemplates"]
    gibibytes = re.fullmatch(r"(\d+)Gi", claim["spec"]["resources"]["requests"]["storage"])
    assert gibibytes
    assert int(gibibytes[1]) << 30 > settings.cache_max_bytes
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert mounts == {"data": str(settings.data_dir), "tmp": "/tmp"}


def test_no_variable_of_kubernetes_is_taken_for_a_setting() -> None:
    """A Service named soma-eval would set SOMA_EVAL_PORT."""
    assert POD["enableServiceLinks"] is False


def test_the_pod_is_as_confined_as_the_image_allows() -> None:
    user = re.search(r"USER (\d+):(\d+)", (ROOT / "docker" / "Dockerfile").read_text())
    assert user
    security = POD["securityContext"]
    assert [str(security[name]) for name in ("runAsUser", "runAsGroup")] == [user[1], user[2]]
    assert security["runAsNonRoot"] is True
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["automountServiceAccountToken"] is False


def test_a_cuda_service_asks_for_a_gpu(settings: ExplicitSettings) -> None:
    assert settings.device == ("cuda",)
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_nothing_private_may_be_reached() -> None:
    def ranges() -> Iterator[str]:
        for rule in of_kind("NetworkPolicy")["spec"]["egress"]:
            for target in rule["to"]:
                yield from target.get("ipBlock", {}).get("except", ())

    assert {"10.0.0.0/8", "169.254.0.0/16", "fc00::/7"} < set(ranges())
