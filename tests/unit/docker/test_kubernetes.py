"""The manifests: what they promise about safety, probes, draining and networks, and that names equal the code's."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpcclient
import yaml  # type: ignore[import-untyped]
from tritonclient.utils import InferenceServerException

from multsd_export.checkpoint import read_checkpoint
from multsd_export.networks import networks_of
from multsd_export.onnx_export import form_of
from multsd_export.profiles import CUDA_GRAPHS, PROFILES, Precision, ProfileName, Served
from multsd_gateway.app import PATHS
from multsd_gateway.settings import Settings
from tests.unit.docker.files import (
    DOCKER,
    PYPROJECT,
    ROOT,
    SETTINGS,
    check_command,
    documents,
    is_triton_flag,
    last,
    most_shared_memory,
    program,
    stages,
)
from tests.unit.docker.kustomize import KUBERNETES, OVERLAYS, Object, build, containers, find, pods
from tests.unit.docker.network import Peer, comes_in, goes_out

NEWEST, OLDEST = "1.37", "1.27"  # Kubernetes that the manifests are held to
IMAGES = ("triton", "gateway", "export")
TRITON, GATEWAY = "multsd-triton", "multsd-gateway"


@cache
def overlay(name: str) -> list[Object]:
    """The objects of one overlay; not to be changed."""
    return build(KUBERNETES / "overlays" / name)


KEDA = find(overlay("autoscaling"), "ScaledObject", TRITON)["spec"]
TASKS = ("prepare", "verify")  # kustomizations beside the overlays, each with a Job
VERIFY, GRAPHS = "multsd-verify", "multsd-triton-graphs"

each_overlay = pytest.mark.parametrize("name", OVERLAYS)
each_task = pytest.mark.parametrize("name", TASKS)


@cache
def task(name: str) -> list[Object]:
    """The objects of a task's kustomization; not to be changed."""
    return build(KUBERNETES / name)


def job_pod(name: str) -> Object:
    """The pod of a task's Job."""
    return pods(task(name))[f"multsd-{name}"]


def settings_of(name: str) -> dict[str, str]:
    """The gateway's environment in one overlay."""
    data: dict[str, str] = find(overlay(name), "ConfigMap", GATEWAY)["data"]
    return data


def triton_pod(name: str) -> Object:
    """Triton's pod in one overlay."""
    return pods(overlay(name))[TRITON]


def test_there_are_the_overlays_that_the_documentation_names() -> None:
    assert {"cpu-demo", "gpu-tensorrt", "autoscaling"} <= set(OVERLAYS)
    readme = (DOCKER / "README.md").read_text()
    assert [name for name in OVERLAYS if f"overlays/{name}" not in readme] == []


@pytest.mark.parametrize("path", sorted(KUBERNETES.rglob("kustomization.yaml")), ids=lambda path: path.parent.name)
def test_every_file_beside_a_kustomization_is_part_of_it(path: Path) -> None:
    (described,) = documents(path)
    listed = {*described["resources"], *(patch["path"] for patch in described.get("patchesJson6902", ()))}
    beside = {each.name for each in path.parent.iterdir()} - {"kustomization.yaml", "adapter-values.yaml"}
    assert beside == listed


@pytest.mark.parametrize("folder", [*(f"overlays/{name}" for name in OVERLAYS), *TASKS])
def test_kubectl_builds_what_this_projects_reader_builds(folder: str) -> None:
    kubectl = program("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    command = [kubectl, "kustomize", str(KUBERNETES / folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    text = re.sub(rf"(name: {GATEWAY})-[a-z0-9]{{10}}$", r"\1", ended.stdout, flags=re.MULTILINE)
    built = list(yaml.safe_load_all(text))
    for each in built:
        for empty in ("annotations", "labels"):  # which kubectl before 1.21 gives to generated ConfigMaps
            if not each["metadata"].get(empty, True):
                del each["metadata"][empty]

    def key(each: Object) -> tuple[str, str]:
        return each["kind"], each["metadata"]["name"]

    assert sorted(built, key=key) == sorted(build(KUBERNETES / folder), key=key)


@each_overlay
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_fits_kubernetes_schemas(name: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    checked = [each for each in overlay(name) if "keda.sh" not in each["apiVersion"]]  # not Kubernetes' own
    assert len(checked) >= 10
    for each in checked:
        kubernetes_validate.validate(each, version, strict=True)
    wrong = {**find(checked, "StatefulSet", TRITON), "specification": {}}
    with pytest.raises(Exception, match="specification"):
        kubernetes_validate.validate(wrong, version, strict=True)


@each_task
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_of_a_task_fits_kubernetes_schemas(name: str, version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for each in task(name):
        kubernetes_validate.validate(each, version, strict=True)
        with pytest.raises(Exception, match="specification"):
            kubernetes_validate.validate({**each, "specification": {}}, version, strict=True)


@each_overlay
def test_every_pod_is_restricted(name: str) -> None:
    described = pods(overlay(name))
    assert set(described) == {TRITON, GATEWAY}
    check_restricted(described)
    labels = find(overlay(name), "Namespace", "multsd")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@each_task
def test_every_pod_of_a_task_is_restricted_and_mounts_what_it_has(name: str) -> None:
    described = pods(task(name))
    assert set(described) == ({VERIFY, GRAPHS} if name == "verify" else {"multsd-prepare"})
    check_restricted(described)
    for pod in described.values():
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def check_restricted(described: dict[str, Object]) -> None:
    """What the namespace demands of every pod, and more."""
    for pod in described.values():
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service's variables would begin as the settings do"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert "cpu" in container["resources"]["requests"]


@each_overlay
def test_every_mounted_volume_exists_and_every_volume_is_mounted(name: str) -> None:
    for pod in pods(overlay(name)).values():
        mounted = {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    claims = {
        v["persistentVolumeClaim"]["claimName"] for v in triton_pod(name)["volumes"] if "persistentVolumeClaim" in v
    }
    assert claims == {each["metadata"]["name"] for each in overlay(name) if each["kind"] == "PersistentVolumeClaim"}


@each_overlay
def test_images_are_those_that_are_built(name: str) -> None:
    version = PYPROJECT["project"]["version"]
    (export_targets,) = ({stage[0].value.split()[-1] for stage in stages(DOCKER / "export.Dockerfile")},)
    tags = {f"multsd-{image}:{version}" for image in IMAGES if image != "export"}
    tags |= {f"multsd-export:{version}-{target}" for target in export_targets}
    used = {container["image"] for pod in pods(overlay(name)).values() for container in containers(pod)}
    assert used <= tags
    assert all((DOCKER / f"{image}.Dockerfile").is_file() for image in IMAGES)


@each_overlay
def test_every_variable_of_the_gateway_is_a_setting_and_a_value_it_takes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = settings_of(name)
    assert set(environment) <= SETTINGS
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = Settings()
    assert settings.triton_metrics_url == ""
    (container,) = pods(overlay(name))[GATEWAY]["containers"]
    assert container["envFrom"] == [{"configMapRef": {"name": GATEWAY}}]
    assert settings.token_file is not None
    assert "env" not in container
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["tokens"] == {"name": "tokens", "mountPath": str(settings.token_file.parent), "readOnly": True}


@each_overlay
def test_the_gateway_knows_every_triton_that_there_may_be(name: str) -> None:
    objects = overlay(name)
    triton = find(objects, "StatefulSet", TRITON)
    scalers = [each["spec"] for each in objects if each["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")]
    most = triton["spec"].get("replicas")
    if scalers:
        assert most is None, "an apply would set the autoscaler's number back"
        most = scalers[0].get("maxReplicaCount") or scalers[0].get("maxReplicas")
        assert scalers[0]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": TRITON}
    service = find(objects, "Service", triton["spec"]["serviceName"])
    (port,) = (each["port"] for each in service["spec"]["ports"] if each["name"] == "grpc")
    expected = [f"{TRITON}-{number}.{service['metadata']['name']}:{port}" for number in range(most)]
    assert settings_of(name)["MULTSD_TRITON_URL"].split(",") == expected


@each_overlay
def test_the_service_of_triton_is_headless_and_names_pods_before_they_are_ready(name: str) -> None:
    service = find(overlay(name), "Service", TRITON)["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


@each_overlay
def test_requests_wait_in_triton_where_their_rows_are_counted(name: str) -> None:
    objects = overlay(name)
    config = (ROOT / "model_repository" / "multidiffusion" / "config.pbtxt").read_text()
    running = int(re.search(r'"max_running" value \{ string_value: "(\d+)"', config)[1])  # type: ignore[index]
    gateways = find(objects, "Deployment", GATEWAY)["spec"]["replicas"]
    tritons = len(settings_of(name)["MULTSD_TRITON_URL"].split(","))
    assert gateways * int(settings_of(name)["MULTSD_MAX_RUNNING"]) > tritons * running


@each_overlay
def test_the_gateways_memory_holds_all_requests_that_it_may_run(name: str) -> None:
    most = int(settings_of(name)["MULTSD_MAX_RUNNING"]) * Settings().max_mask_pixels + Settings().max_uploaded_bytes
    (container,) = pods(overlay(name))[GATEWAY]["containers"]
    assert most < int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30


@each_overlay
def test_pods_drain_longer_than_the_longest_request(name: str) -> None:
    request = float(settings_of(name)["MULTSD_REQUEST_SECONDS"])
    grace = float(settings_of(name)["MULTSD_GRACE_SECONDS"])
    gateway = pods(overlay(name))[GATEWAY]
    before = float(gateway["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert request < grace
    assert before + grace < gateway["terminationGracePeriodSeconds"]
    exit_seconds = float(triton_flag(name, "--exit-timeout-secs"))
    assert request < exit_seconds < triton_pod(name)["terminationGracePeriodSeconds"]


def triton_flag(name: str, flag: str) -> str:
    """The value of one of Triton's flags in an overlay."""
    (value,) = (word.partition("=")[2] for word in triton_pod(name)["containers"][0]["args"] if word.startswith(flag))
    return str(value)


@each_overlay
def test_triton_starts_as_in_the_image_and_with_flags_that_exist(name: str, triton_help: str) -> None:
    words = triton_pod(name)["containers"][0]["args"]
    command = last(stages(DOCKER / "triton.Dockerfile")[0], "CMD")
    assert command is not None
    own = [word for word in command.words() if not word.startswith("--model-repository")]
    assert set(own) <= set(words), "what the image sets for everybody"
    for word in words[1:]:
        assert is_triton_flag(word, triton_help), word
    assert "command" not in triton_pod(name)["containers"][0], "the image's entry point checks the driver"


@each_overlay
def test_nobody_changes_triton_while_it_runs(name: str) -> None:
    protocols, _, key = triton_flag(name, "--grpc-restricted-protocol").partition(":")
    assert {"shared-memory", "model-repository", "trace", "logging"} <= set(protocols.split(","))
    assert not {"inference", "health", "metadata", "model-config"} & set(protocols.split(",")), "the gateway's own"
    variable = re.fullmatch(r"administration=\$\((\w+)\)", key)
    assert variable is not None
    names = {each["name"]: each for each in triton_pod(name)["containers"][0]["env"]}
    assert names[variable[1]]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.uid"}}


@each_overlay
def test_probes_tell_loading_from_broken(name: str) -> None:
    (container,) = triton_pod(name)["containers"]
    probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")}
    asked = {kind: probe["exec"]["command"] for kind, probe in probes.items()}
    script = ["python3", "/opt/multsd/probe.py"]
    assert asked == {"startup": [*script, "start"], "readiness": [*script, "ready"], "liveness": [*script, "live"]}
    assert probes["startup"]["periodSeconds"] * probes["startup"]["failureThreshold"] >= 600, "engines take their time"
    assert all(probe["timeoutSeconds"] > 3 for probe in probes.values()), "than the script's own"
    graces = {probes[kind]["terminationGracePeriodSeconds"] for kind in ("startup", "liveness")}
    assert max(graces) <= 10, "not the time that requests have"
    assert triton_flag(name, "--exit-on-error") == "true"


@each_overlay
def test_the_gateways_probes_ask_paths_that_are_served_and_need_no_token(name: str) -> None:
    (container,) = pods(overlay(name))[GATEWAY]["containers"]
    for kind in ("startup", "readiness", "liveness"):
        asked = container[f"{kind}Probe"]["httpGet"]
        assert asked["path"] in PATHS
        assert asked["path"] in Settings().open_paths
        assert asked["port"] == "http"
    assert container["ports"] == [{"name": "http", "containerPort": Settings().port}]


@each_overlay
def test_ports_of_services_and_policies_are_ports_of_containers(name: str) -> None:
    ports = {
        workload: {port["name"] for container in pod["containers"] for port in container["ports"]}
        for workload, pod in pods(overlay(name)).items()
    }
    for each in overlay(name):
        if each["kind"] == "Service":
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= ports[each["metadata"]["name"]]
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] in ports:
            used = {port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]}
            assert used <= ports[each["metadata"]["name"]]


NAME, PART = "app.kubernetes.io/name", "app.kubernetes.io/part-of"
(PROMETHEUS_NAMESPACE,) = {
    trigger["metadata"]["serverAddress"].removeprefix("http://").split(".")[1] for trigger in KEDA["triggers"]
}
OUTSIDE = Peer("", address="203.0.113.7")
# Who tells names, and at which port: CoreDNS, a node's cache by its address and by its pod, Google's and OpenShift's.
NAME_SERVERS = [
    (Peer("kube-system", {"k8s-app": "kube-dns"}), 53),
    (Peer("", address="169.254.20.10"), 53),
    (Peer("kube-system", {"k8s-app": "node-local-dns"}), 53),
    (Peer("", address="169.254.169.254"), 53),
    (Peer("openshift-dns", {"dns.operator.openshift.io/daemonset-dns": "default"}), 5353),
]
STRANGERS = [
    OUTSIDE,
    *(server for server, _ in NAME_SERVERS),
    *(
        Peer(namespace, {key: value for key, value in ((NAME, own), (PART, part)) if value})
        for namespace in ("multsd", PROMETHEUS_NAMESPACE, "kube-system", "default")
        for own in ("", TRITON, GATEWAY, VERIFY, GRAPHS, "prometheus", "other")
        for part in ("", "multsd")
    ),
]
PORTS = [(port, protocol) for port in (53, 80, 443, 5000, 8000, 8001, 8002, 9090) for protocol in ("TCP", "UDP")]


def policies_of(objects: list[Object]) -> list[Object]:
    """All NetworkPolicies."""
    return [each for each in objects if each["kind"] == "NetworkPolicy"]


def own_pod(objects: list[Object], workload: str) -> Peer:
    """A pod of a workload, with its labels and ports."""
    (template,) = (
        each["spec"]["template"]
        for each in objects
        if "template" in each.get("spec", {}) and each["metadata"]["name"] == workload
    )
    ports = {
        port["name"]: port["containerPort"] for each in template["spec"]["containers"] for port in each.get("ports", ())
    }
    return Peer("multsd", template["metadata"]["labels"], ports=ports)


def who_reaches(objects: list[Object], workload: str) -> set[tuple[str, str, int, str]]:
    """Namespace (else address) and name of whomever a workload's pods let in, with port and protocol.

    Whatever the others' own policies say: those of other namespaces are not ours.
    """
    target = own_pod(objects, workload)
    return {
        (source.namespace or source.address, source.labels.get(NAME, ""), port, protocol)
        for source in STRANGERS
        for port, protocol in PORTS
        if comes_in(policies_of(objects), source, target, port, protocol)
    }


def what_it_reaches(objects: list[Object], workload: str) -> set[tuple[str, str, int, str]]:
    """Namespace (else address) and name of what a workload's pods may ask, with port and protocol; but for names."""
    source = own_pod(objects, workload)
    targets = [*STRANGERS, *(own_pod(objects, each) for each in pods(objects))]
    return {
        (target.namespace or target.address, next(iter(target.labels.values()), ""), port, protocol)
        for target in targets
        for port, protocol in PORTS
        if port != 53 and goes_out(policies_of(objects), source, target, port, protocol)
    }


def hears_names(objects: list[Object], workload: str) -> set[bool]:
    """Whether a workload's pods may ask those that tell names, of whatever cluster."""
    source, policies = own_pod(objects, workload), policies_of(objects)
    return {
        goes_out(policies, source, server, port, protocol)
        for server, port in NAME_SERVERS
        for protocol in ("TCP", "UDP")
    }


TRITONS_CALLERS = {("multsd", GATEWAY, 8001, "TCP"), (PROMETHEUS_NAMESPACE, "prometheus", 8002, "TCP")}


@each_overlay
def test_only_the_gateway_reaches_triton_and_prometheus_its_metrics(name: str) -> None:
    assert who_reaches(overlay(name), TRITON) == TRITONS_CALLERS


@each_overlay
def test_the_gateway_reaches_triton_and_names_and_nothing_else(name: str) -> None:
    assert what_it_reaches(overlay(name), GATEWAY) == {("multsd", TRITON, 8001, "TCP")}
    assert hears_names(overlay(name), GATEWAY) == {True}


@pytest.mark.parametrize("name", ["autoscaling", "autoscaling-hpa"])
def test_images_are_named_once_for_an_overlay_and_those_upon_it(name: str, tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    below = tmp_path / "kubernetes" / "overlays" / "gpu-tensorrt" / "kustomization.yaml"
    below.write_text(below.read_text().replace("newTag: 0.1.0", "newTag: 0.2.0"))
    images = {
        container["image"].partition(":")[2]
        for pod in pods(build(tmp_path / "kubernetes" / "overlays" / name)).values()
        for container in containers(pod)
    }
    assert images == {"0.2.0", "0.2.0-tensorrt"}


@each_overlay
def test_triton_reaches_nothing_but_its_bucket(name: str) -> None:
    reached = what_it_reaches(overlay(name), TRITON)
    if name != "gpu-object-storage":
        assert reached == set()
        assert hears_names(overlay(name), TRITON) == {False}
        return
    assert {(port, protocol) for *_, port, protocol in reached} == {(443, "TCP")}
    assert hears_names(overlay(name), TRITON) == {True}


@each_overlay
def test_everybody_who_reaches_the_cluster_reaches_the_gateway_at_one_port(name: str) -> None:
    assert {(port, protocol) for *_, port, protocol in who_reaches(overlay(name), GATEWAY)} == {(5000, "TCP")}
    assert (OUTSIDE.address, "", 5000, "TCP") in who_reaches(overlay(name), GATEWAY), "an address outside, too"


@each_overlay
def test_a_pod_that_no_policy_names_is_closed(name: str) -> None:
    stranger = Peer("multsd", {"a": "b"})
    assert not any(comes_in(policies_of(overlay(name)), OUTSIDE, stranger, *port) for port in PORTS)
    assert not any(goes_out(policies_of(overlay(name)), stranger, OUTSIDE, *port) for port in PORTS)


def policy(selector: Object, **rules: list[Object]) -> Object:
    """A NetworkPolicy of the namespace."""
    return {
        "kind": "NetworkPolicy",
        "metadata": {"name": "another", "namespace": "multsd"},
        "spec": {"podSelector": selector, "policyTypes": [each.title() for each in rules], **rules},
    }


@pytest.mark.parametrize(
    "opening",
    [
        policy({"matchLabels": {PART: "multsd"}}, ingress=[{}]),
        policy({}, ingress=[{"from": [{"podSelector": {}}]}]),
        policy({}, ingress=[{"from": [{"namespaceSelector": {}}], "ports": [{"port": 8000, "endPort": 8002}]}]),
        policy({"matchExpressions": [{"key": NAME, "operator": "In", "values": [TRITON]}]}, ingress=[{"from": []}]),
        policy(
            {"matchExpressions": [{"key": NAME, "operator": "NotIn", "values": [GATEWAY]}]},
            ingress=[{"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}], "ports": [{"port": "grpc"}]}],
        ),
        policy({"matchExpressions": [{"key": PART, "operator": "Exists"}]}, ingress=[{"ports": [{"port": "metrics"}]}]),
    ],
)
def test_a_policy_that_opens_triton_is_noticed_however_it_selects(opening: Object) -> None:
    """Policies add up, and one never takes away what another gives."""
    assert who_reaches([*overlay("cpu-demo"), opening], TRITON) > TRITONS_CALLERS


def test_a_policy_that_opens_the_gateways_way_out_is_noticed() -> None:
    opened = [*overlay("cpu-demo"), policy({"matchLabels": {NAME: GATEWAY}}, egress=[{}])]
    assert (OUTSIDE.address, "", 443, "TCP") in what_it_reaches(opened, GATEWAY)


def test_a_policy_that_selects_nothing_here_changes_nothing() -> None:
    elsewhere = policy({"matchExpressions": [{"key": NAME, "operator": "DoesNotExist"}]}, ingress=[{}], egress=[{}])
    assert who_reaches([*overlay("cpu-demo"), elsewhere], TRITON) == TRITONS_CALLERS


VERIFIED = ("gpu-tensorrt", "autoscaling", "autoscaling-hpa")  # whose repository lies on a volume


@pytest.mark.parametrize("name", VERIFIED)
def test_a_verification_reaches_both_tritons_and_opens_them_to_nobody_else(name: str) -> None:
    objects = [*overlay(name), *task("verify")]
    own = ("multsd", VERIFY, 8001, "TCP")
    assert who_reaches(objects, TRITON) == TRITONS_CALLERS | {own}
    assert who_reaches(objects, GRAPHS) == {own}
    assert who_reaches(objects, VERIFY) == set()
    assert what_it_reaches(objects, VERIFY) == {("multsd", each, 8001, "TCP") for each in (TRITON, GRAPHS)}
    assert hears_names(objects, VERIFY) == {True}
    assert what_it_reaches(objects, GATEWAY) == what_it_reaches(overlay(name), GATEWAY)
    assert what_it_reaches(objects, TRITON) == what_it_reaches(objects, GRAPHS) == set()
    for source, port in ((own_pod(objects, VERIFY), 8001), (own_pod(objects, VERIFY), 8002)):
        for target in (own_pod(objects, TRITON), own_pod(objects, GRAPHS)):
            through = comes_in(policies_of(objects), source, target, port)
            assert (through and goes_out(policies_of(objects), source, target, port)) is (port == 8001)


def test_preparing_reaches_nothing_and_nobody_reaches_it() -> None:
    objects = [*overlay("gpu-tensorrt"), *task("prepare")]
    assert who_reaches(objects, "multsd-prepare") == what_it_reaches(objects, "multsd-prepare") == set()


@each_overlay
def test_the_gateway_is_spread_and_stays_there(name: str) -> None:
    objects = overlay(name)
    deployment = find(objects, "Deployment", GATEWAY)["spec"]
    assert deployment["replicas"] >= 2
    keys = {each["topologyKey"] for each in deployment["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    for workload in (TRITON, GATEWAY):
        budget = find(objects, "PodDisruptionBudget", workload)["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == {"matchLabels": {"app.kubernetes.io/name": workload}}


@each_overlay
def test_every_selector_finds_its_pods(name: str) -> None:
    objects = overlay(name)
    workloads = [each["spec"] for each in objects if "template" in each.get("spec", {})]
    labels = [each["template"]["metadata"]["labels"] for each in workloads]
    assert all(
        each["selector"]["matchLabels"].items() <= own.items() for each, own in zip(workloads, labels, strict=True)
    )
    for each in objects:
        selector: Any = each.get("spec", {}).get("selector") if each["kind"] == "Service" else None
        if selector:
            assert any(selector.items() <= own.items() for own in labels)


@each_overlay
def test_triton_has_shared_memory_for_all_requests_and_within_its_limit(name: str) -> None:
    pod = triton_pod(name)
    (volume,) = (each["emptyDir"] for each in pod["volumes"] if each["name"] == "shared-memory")
    assert volume["medium"] == "Memory"
    size = int(volume["sizeLimit"].removesuffix("Gi"))
    gateways = find(overlay(name), "Deployment", GATEWAY)["spec"]["replicas"]
    assert most_shared_memory(gateways * int(settings_of(name)["MULTSD_MAX_RUNNING"])) < size * 2**30
    assert 2 * size < int(pod["containers"][0]["resources"]["limits"]["memory"].removesuffix("Gi"))
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts["shared-memory"] == "/dev/shm"  # noqa: S108 - in the container


@pytest.mark.parametrize("name", [name for name in OVERLAYS if name != "gpu-object-storage"])
def test_an_init_container_composes_what_triton_serves(name: str) -> None:
    (export,) = triton_pod(name)["initContainers"]
    words = dict(word.removeprefix("--").split("=", 1) for word in export["args"])
    assert words["output"] == triton_flag(name, "--model-repository")
    assert words["work-dir"].rpartition("/")[0] == words["output"].rpartition("/")[0], "one lock for one repository"
    check_command("multsd-export", export["args"])


GPU = [name for name in OVERLAYS if name != "cpu-demo"]


def arguments_of_release(container: Object, release: str) -> list[str]:
    """A container's arguments, filled in as Kubernetes does, were its RELEASE another. The rest stays as it is."""
    values = {each["name"]: each.get("value", "") for each in container["env"]} | {"RELEASE": release}
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in container["args"]]


@pytest.mark.parametrize("name", [name for name in GPU if name != "gpu-object-storage"])
def test_a_release_shares_neither_checkpoint_nor_engines_with_another(name: str) -> None:
    """Else `kubectl rollout undo` would build the old release again, from the new weights."""
    pod = triton_pod(name)
    (export,) = pod["initContainers"]
    (triton,) = pod["containers"]
    old, new = (dict(word[2:].split("=") for word in arguments_of_release(export, each)) for each in ("1", "2"))
    for option in ("checkpoint", "output", "work-dir"):
        assert not Path(old[option]).is_relative_to(new[option]), option
        assert not Path(new[option]).is_relative_to(old[option]), option
    for release, words in (("1", old), ("2", new)):
        assert f"--model-repository={words['output']}" in arguments_of_release(triton, release)
        assert words["checkpoint"] == f"/checkpoint/{release}"
    assert "/checkpoint" in {mount["mountPath"] for mount in export["volumeMounts"]}
    releases = {each["value"] for part in (export, triton) for each in part["env"] if each["name"] == "RELEASE"}
    assert len(releases) == 1, "what is built is what is served"


@pytest.mark.parametrize("name", GPU)
def test_tritons_run_on_gpu_nodes_of_one_kind_with_a_cache_of_its_own(name: str) -> None:
    pod = triton_pod(name)
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    (rule,) = term["matchExpressions"]
    assert (rule["key"], rule["operator"]) == ("nvidia.com/gpu.product", "In")
    (kind,) = rule["values"]
    for container in containers(pod):
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert variables.get("GPU_KIND", kind) == kind
    assert f"/{kind}/" in triton_flag(name, "--model-repository").replace("$(GPU_KIND)", kind)


@pytest.mark.parametrize("name", GPU)
def test_every_variable_in_arguments_is_defined_before(name: str) -> None:
    for container in containers(triton_pod(name)):
        names = [each["name"] for each in container["env"]]
        assert len(set(names)) == len(names)
        used = {found for word in container["args"] for found in re.findall(r"\$\((\w+)\)", word)}
        assert used <= set(names)
        values = {each["name"]: each.get("value") for each in container["env"]}
        assert all(values[each] for each in used - {"ADMINISTRATION_KEY"})


@pytest.mark.parametrize("name", VERIFIED)
def test_the_second_triton_differs_from_the_first_in_its_cuda_graphs_alone(name: str, triton_help: str) -> None:
    first, second = triton_pod(name), pods(task("verify"))[GRAPHS]
    (one,), (other,) = first["containers"], second["containers"]
    assert set(other["args"]) == {*one["args"], f"--model-config-name={CUDA_GRAPHS}"}
    assert "--model-config-name <" in triton_help
    assert {**other, "args": one["args"]} == one
    apart = {"initContainers", "containers", "volumes", "topologySpreadConstraints"}
    assert {key: value for key, value in first.items() if key not in apart} == {
        key: value for key, value in second.items() if key not in apart
    }
    assert second["volumes"] == [each for each in first["volumes"] if each["name"] != "checkpoint"]
    (policy,) = (each for each in task("verify") if each["metadata"]["name"] == "multsd-triton-verify")
    labels = find(task("verify"), "Deployment", GRAPHS)["spec"]["template"]["metadata"]["labels"]
    assert not find(overlay(name), "Service", TRITON)["spec"]["selector"].items() <= labels.items(), "no gateway's"
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


@pytest.mark.parametrize("name", VERIFIED)
def test_a_verification_looks_at_what_the_overlay_serves(name: str) -> None:
    (export,) = triton_pod(name)["initContainers"]
    (verify,) = job_pod("verify")["containers"]
    check_command("multsd-export", verify["args"])
    for release in ("1", "2"):
        made = dict(word[2:].split("=") for word in arguments_of_release(export, release))
        command, repository, *options = arguments_of_release(verify, release)
        words = dict(word[2:].split("=") for word in options)
        assert (command, repository) == ("verify", made["output"])
        assert words["checkpoint"] == made["checkpoint"]
    assert verify["env"] == [find_variable(export, each) for each in ("GPU_KIND", "RELEASE")]
    service = find(task("verify"), "Service", GRAPHS)["spec"]
    assert words["url"] == settings_of(name)["MULTSD_TRITON_URL"].split(",")[0]
    assert words["graphs-url"] == f"{GRAPHS}:{service['ports'][0]['port']}"
    assert not service.get("publishNotReadyAddresses")
    (report,) = (each for each in verify["volumeMounts"] if not each.get("readOnly") and each["name"] != "temporary")
    assert report == {"name": "models", "mountPath": "/reports", "subPathExpr": "$(GPU_KIND)/$(RELEASE)"}
    assert Path(words["report"]).parent == Path(report["mountPath"])
    assert f"/models/{report['subPathExpr']}/" in verify["args"][1]
    for field in ("tolerations", "affinity"):
        assert job_pod("verify")[field] == triton_pod(name)[field], "a GPU of the same kind"
    assert verify["resources"]["limits"]["nvidia.com/gpu"] == "1"
    check_claims("verify", name)


def test_a_verification_waits_for_both_tritons(monkeypatch: pytest.MonkeyPatch) -> None:
    (wait,) = job_pod("verify")["initContainers"]
    (verify,) = job_pod("verify")["containers"]
    urls = [word.partition("=")[2] for word in verify["args"] if word.startswith(("--url=", "--graphs-url="))]
    assert wait["args"] == urls
    *start, script = wait["command"]
    assert start == ["python3", "-c"]
    answers = iter([InferenceServerException("away"), False, True, InferenceServerException("away"), True])
    asked: list[str] = []

    class Client:
        def __init__(self, url: str) -> None:
            asked.append(url)

        def is_server_ready(self, *, client_timeout: float) -> bool:
            assert client_timeout > 0
            answer = next(answers)
            if isinstance(answer, InferenceServerException):
                raise answer
            return bool(answer)

    assert "client_timeout" in inspect.signature(grpcclient.InferenceServerClient.is_server_ready).parameters
    monkeypatch.setattr(grpcclient, "InferenceServerClient", Client)
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["-c", *wait["args"]])
    exec(script, {})  # noqa: S102 - the manifest's own
    assert asked == [urls[0]] * 3 + [urls[1]] * 2
    assert next(answers, None) is None


@pytest.mark.parametrize("name", VERIFIED)
def test_preparing_makes_what_the_overlays_exporter_then_finds(name: str) -> None:
    (export,) = triton_pod(name)["initContainers"]
    (prepare,) = job_pod("prepare")["containers"]
    check_command("multsd-export", prepare["args"])
    assert prepare["image"] == export["image"], "versions of packages are part of what an ONNX file is made from"
    for release in ("1", "2"):
        made, found = (
            dict(word[2:].split("=") for word in arguments_of_release(e, release)) for e in (prepare, export)
        )
        assert made.pop("output") != found.pop("output")
        assert PROFILES[ProfileName(made.pop("profile"))].served is Served.ONNX
        assert made.pop("precision") == PROFILES[ProfileName(found.pop("profile"))].precision
        assert made == found, "checkpoint and work folder"
    checkpoint = read_checkpoint(ROOT / "export" / "demo_checkpoint" / "checkpoint")
    same = {
        each.name for each in networks_of(checkpoint, Precision.FP16) if len({form_of(each, s) for s in SERVED}) == 1
    }
    assert same == {"text_encoder", "unet"}, "a VAE has a form of its own for engines"
    assert "nvidia.com/gpu" not in prepare["resources"]["limits"]
    assert {
        "requests": prepare["resources"]["requests"]["memory"],
        "limits": prepare["resources"]["limits"]["memory"],
    } == {key: value["memory"] for key, value in export["resources"].items()}
    check_claims("prepare", name)


SERVED = (Served.ONNX, Served.ENGINE)


def find_variable(container: Object, name: str) -> Object:
    """A container's variable."""
    (found,) = (each for each in container["env"] if each["name"] == name)
    return dict(found)


def check_claims(task_name: str, overlay_name: str) -> None:
    """A task's claims are volumes of the overlay."""
    claims = {each["metadata"]["name"] for each in overlay(overlay_name) if each["kind"] == "PersistentVolumeClaim"}
    for pod in pods(task(task_name)).values():
        used = claims_of(pod)
        assert {each["claimName"] for each in used} <= claims
        assert all(each in claims_of(triton_pod(overlay_name)) for each in used)


def claims_of(pod: Object) -> list[Object]:
    """The claims that a pod mounts, with how."""
    return [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]


def test_the_engines_of_all_replicas_are_shared() -> None:
    (models,) = (
        each["spec"]
        for each in overlay("gpu-tensorrt")
        if each["kind"] == "PersistentVolumeClaim" and each["metadata"]["name"] == "multsd-models"
    )
    assert models["accessModes"] == ["ReadWriteMany"]


def test_no_manifest_holds_a_secret() -> None:
    objects = [*(overlay(name) for name in OVERLAYS), *(task(name) for name in TASKS)]
    assert not any(each["kind"] == "Secret" for some in objects for each in some)


def test_no_manifest_names_the_wheels_triton() -> None:
    assert [path for path in DOCKER.rglob("*.yaml") if "pytriton" in path.read_text()] == []
