"""Triton and the gateway as the manifests start them: flags, settings, and which address answers what.

Three addresses of loopback stand for those of a pod: 127.0.0.1 for its own, 127.0.0.2 where the manifest says 0.0.0.0.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from multsd_gateway.stack.processes import start_child
from multsd_gateway.stack.triton import assemble_backends, find_wheel, triton_environment
from multsd_gateway.stack.waiting import wait_until_ready
from tests.integration.conftest import REPOSITORY, ROOT, free_ports
from tests.integration.requests_and_pictures import request_body
from tests.unit.docker.files import NEWER_FLAGS
from tests.unit.docker.kustomize import KUBERNETES, build, find, pods

POD, OUTSIDE = "127.0.0.1", "127.0.0.2"
EVERYWHERE = "0.0.0.0"  # noqa: S104  # what the manifest says, and what no test listens on
OVERLAY = "cpu-demo"
TOKEN = "reader:" + "r" * 32
ADMINISTRATION_KEY = "a-uid-of-a-pod"


@dataclass(frozen=True)
class Deployed:
    """Ports of a Triton, and a client of the gateway before it."""

    http_port: int
    grpc_port: int
    metrics_port: int
    gateway: httpx.Client


def flags_of_the_manifest() -> dict[str, str]:
    """What Triton is started with in a pod, by flag, but for what the development wheel's does not know yet."""
    pod = pods(build(KUBERNETES / "overlays" / OVERLAY))["multsd-triton"]
    (container,) = pod["containers"]
    words = [word.replace("$(ADMINISTRATION_KEY)", ADMINISTRATION_KEY) for word in container["args"][1:]]
    flags = {flag: value for flag, _, value in (word.partition("=") for word in words)}
    return {flag: value for flag, value in flags.items() if flag not in NEWER_FLAGS}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    http, grpc, metrics, port = free_ports(4)
    flags = flags_of_the_manifest()
    assert flags["--grpc-address"] == flags["--metrics-address"] == EVERYWHERE
    wheel, own = find_wheel(), f"multsd_deployed_{grpc}_"
    flags |= {
        "--model-repository": str(REPOSITORY),
        "--backend-directory": str(assemble_backends(wheel, ROOT / "build" / "backends")),
        "--backend-config": f"python,shm-region-prefix-name={own}",
        **{f"--{name}-port": str(each) for name, each in (("http", http), ("grpc", grpc), ("metrics", metrics))},
        **{f"--{name}-address": OUTSIDE for name in ("grpc", "metrics")},
    }
    triton = start_child(
        "triton",
        [str(wheel.server), *(f"{flag}={value}" if value else flag for flag, value in flags.items())],
        environment=triton_environment(wheel),
        log=folder / "triton.log",
        leftovers=own,
    )
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    settings = find(build(KUBERNETES / "overlays" / OVERLAY), "ConfigMap", "multsd-gateway")["data"]
    assert settings.keys() >= {"MULTSD_TRITON_URL", "MULTSD_TOKEN_FILE", "MULTSD_TRITON_METRICS_URL"}
    settings |= {
        "MULTSD_PORT": str(port),
        "MULTSD_TRITON_URL": f"{OUTSIDE}:{grpc}",
        "MULTSD_TRITON_METRICS_URL": f"http://{OUTSIDE}:{metrics}/metrics",  # as compose.yaml has it
        "MULTSD_TOKEN_FILE": str(tokens),
    }
    try:
        wait_until_ready(triton, f"http://{POD}:{http}/v2/health/ready", seconds=180)
        gateway = start_child(
            "gateway",
            [sys.executable, "-m", "multsd_gateway", "run"],
            environment=settings,
            log=folder / "gateway.log",
        )
        try:
            wait_until_ready(gateway, f"http://127.0.0.1:{port}/readyz", seconds=60)
            headers = {"Authorization": f"Bearer {TOKEN.partition(':')[2]}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, headers=headers) as client:
                yield Deployed(http, grpc, metrics, client)
        finally:
            gateway.stop(0)
    finally:
        triton.stop(0)


def test_the_gateway_paints(deployed: Deployed) -> None:
    response = deployed.gateway.post("/multsd", json=request_body(), headers={"Accept": "image/png"})
    assert response.status_code == 200, response.text
    assert response.content.startswith(b"\x89PNG")


def test_prometheus_reads_tritons_metrics_from_outside_the_pod(deployed: Deployed) -> None:
    response = httpx.get(f"http://{OUTSIDE}:{deployed.metrics_port}/metrics", trust_env=False)
    assert response.status_code == 200
    assert "\nmultsd_waiting_rows" in response.text, "what the autoscaler asks for"


def test_the_gateways_metrics_have_tritons(deployed: Deployed) -> None:
    text = deployed.gateway.get("/metrics").text
    assert "\nmultsd_gateway_" in text
    assert "\nnv_inference_request_success" in text


def test_http_is_for_the_pods_own_probes(deployed: Deployed) -> None:
    assert httpx.get(f"http://{POD}:{deployed.http_port}/v2/health/live", trust_env=False).is_success
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{OUTSIDE}:{deployed.http_port}/v2/health/live", trust_env=False)


def test_what_changes_triton_wants_the_key(deployed: Deployed) -> None:
    with tritonclient.grpc.InferenceServerClient(f"{OUTSIDE}:{deployed.grpc_port}") as client:
        assert client.is_model_ready("unet")
        with pytest.raises(InferenceServerException, match="expecting header"):
            client.get_model_repository_index()
        key = {"triton-grpc-protocol-administration": ADMINISTRATION_KEY}
        assert client.get_model_repository_index(headers=key).models
