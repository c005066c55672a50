"""The method's own counters, among Triton's, through the gateway."""

import re

import httpx
import tritonclient.grpc as grpcclient

from tests.integration.requests_and_pictures import picture, request_body
from tests.integration.test_isolation import wait_for
from tests.unit.docker.promql import labels_used
from tests.unit.docker.test_observability import CLUSTER, EXPRESSIONS, RECORDS, sample_labels, target_labels

NAMES = ("unet_rows", "unet_rows_reference", "embedding_cache_hits", "embedding_cache_misses")


def counters(gateway: httpx.Client) -> dict[str, float]:
    text = gateway.get("/metrics").text
    found = {name: re.findall(rf"^multsd_{name}_total(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name in NAMES}
    return {name: float(values[0]) for name, values in found.items()}


def test_rows_are_counted_as_the_replies_tell_them(gateway: httpx.Client) -> None:
    before = counters(gateway)
    replies = [gateway.post("/multsd", json=request_body(regions=regions)).json() for regions in (0, 2)]
    after = counters(gateway)
    for name in ("unet_rows", "unet_rows_reference"):
        assert after[name] - before[name] == sum(reply[name] for reply in replies)


def test_prompts_seen_before_are_not_encoded_again(gateway: httpx.Client) -> None:
    body = request_body(bg_prompt="orange dots background", fg_prompt=["a pink cross"])
    first = gateway.post("/multsd", json=body).json()
    before = counters(gateway)
    second = gateway.post("/multsd", json=body).json()
    after = counters(gateway)
    assert after["embedding_cache_misses"] == before["embedding_cache_misses"]
    assert after["embedding_cache_hits"] - before["embedding_cache_hits"] == 3  # two prompts and ""
    assert first["image"] == second["image"]


def test_picture_larger_than_a_vae_tile_is_painted_whole(gateway: httpx.Client) -> None:
    image = picture(gateway.post("/multsd", json=request_body(1100, 512, ddim_steps=1, bootstrapping=0)).json())
    assert image.shape == (512, 1100, 3)
    assert min(float(image[:, left : left + 50].std()) for left in range(0, 1100, 50)) > 5


def sample(gateway: httpx.Client, name: str) -> float:
    """The sum of the samples of one name."""
    text = gateway.get("/metrics").text
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_rows_of_a_request_that_is_cancelled_midway_are_counted(gateway: httpx.Client, triton_grpc: str) -> None:
    """As many as Triton says that the UNet was asked for, and what the published method takes for the same steps."""
    with grpcclient.InferenceServerClient(triton_grpc) as client:

        def asked() -> int:
            return int(client.get_inference_statistics("unet").model_stats[0].inference_count)

        asked_before, before = asked(), counters(gateway)
        cancelled = sample(gateway, "multsd_requests_cancelled_total")
        with gateway.stream("POST", "/multsd/stream", json=request_body(ddim_steps=150)) as response:
            next(line for line in response.iter_lines() if re.search(r'"step": ?3\b', line))
        wait_for(lambda: sample(gateway, "multsd_requests_cancelled_total") > cancelled, "the request to be cancelled")
        wait_for(lambda: sample(gateway, "multsd_running_requests") == 0, "it to end")
        after = counters(gateway)
        rows = after["unet_rows"] - before["unet_rows"]
        assert rows == asked() - asked_before
        steps = (after["unet_rows_reference"] - before["unet_rows_reference"]) / 4  # [uncond; cond] of two regions
        assert steps >= 3
        assert 2 * steps <= rows <= 4 * (steps + 1)


def test_steps_and_pictures_are_timed(gateway: httpx.Client) -> None:
    names = ("multsd_step_seconds", "multsd_first_step_seconds", "multsd_picture_seconds")
    before = [sample(gateway, f"{name}_count") for name in names]
    reply = gateway.post("/multsd", json=request_body(ddim_steps=5))
    assert reply.status_code == 200
    after = [sample(gateway, f"{name}_count") for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [5, 1, 1]
    sums = [sample(gateway, f"{name}_sum") for name in names]
    assert 0 < sums[1] < sums[2]


def test_calls_of_the_unet_are_observed_with_their_rows(gateway: httpx.Client, triton_grpc: str) -> None:
    with grpcclient.InferenceServerClient(triton_grpc) as client:

        def counts() -> list[float]:
            asked = client.get_inference_statistics("unet").model_stats[0]
            observed = [sample(gateway, f"multsd_unet_call_rows_{part}") for part in ("count", "sum")]
            return [asked.execution_count, asked.inference_count, *observed]

        before = counts()
        assert gateway.post("/multsd", json=request_body(ddim_steps=5)).status_code == 200
        calls, rows, *observed = [after - earlier for earlier, after in zip(before, counts(), strict=True)]
    assert observed == [calls, rows]
    assert calls >= 5


def test_tasks_of_both_event_loops_are_told_and_do_not_stay(gateway: httpx.Client) -> None:
    """Probes and pings come and go meanwhile; what stays behind is there after every request."""

    def told() -> list[float]:
        assert gateway.post("/multsd", json=request_body(ddim_steps=1)).status_code == 200
        return [sample(gateway, name) for name in ("multsd_gateway_tasks", "multsd_tasks")]

    first = [min(values) for values in zip(*(told() for _ in range(3)), strict=True)]
    assert all(value > 0 for value in first)
    wait_for(lambda: all(now <= least for now, least in zip(told(), first, strict=True)), "as few tasks as before")


def test_a_deadline_that_is_not_met_is_counted(gateway: httpx.Client) -> None:
    expired = sample(gateway, "multsd_requests_expired_total")
    assert gateway.post("/multsd", json=request_body(ddim_steps=190, deadline_s=0.5)).status_code == 504
    wait_for(lambda: sample(gateway, "multsd_requests_expired_total") == expired + 1, "it to be counted")


def test_every_metric_of_the_rules_and_the_dashboard_is_there_with_the_labels_that_they_use(
    gateway: httpx.Client,
) -> None:
    """But those of GPUs and of the cluster, and those that Prometheus itself makes, labels of targets among them."""
    assert gateway.post("/multsd", json=request_body()).status_code == 200
    told = sample_labels(gateway.get("/metrics").text)
    added = target_labels("multsd-gateway") | target_labels("multsd-triton")
    for expression in EXPRESSIONS:
        for name, used in labels_used(expression).items():
            if name in RECORDS | set(CLUSTER) | {"up"} or name.startswith("nv_gpu_"):
                continue
            assert name in told, expression
            assert used - added <= told[name], (name, expression)
