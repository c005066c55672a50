"""What the gateway counts."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from multsd_gateway.app import create_app
from multsd_gateway.errors import DeadlineExceededError, ModelFullError, ModelUnavailableError
from multsd_gateway.inference import ModelDescription
from multsd_gateway.limits import TIMEOUT
from multsd_gateway.metrics import triton_metrics
from tests.unit.gateway.fakes import FakePainter, ask, seed_request, settings

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(app: FastAPI) -> Samples:
    return _parsed(ask(app, "GET", "/metrics").text)


def _parsed(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _of(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"multsd_gateway_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def app() -> FastAPI:
    return create_app(settings(triton_metrics_url="", max_body_bytes=10_000), FakePainter())


def test_requests_are_counted_by_path_and_status(app: FastAPI) -> None:
    for body in (seed_request(), seed_request(), seed_request(width=1), "x" * 20_000):
        ask(app, "POST", "/multsd", content=json.dumps(body))
    for path in ("/nowhere", "/elsewhere"):
        ask(app, "GET", path)

    samples = _samples(app)
    assert [_of(samples, "requests_total", path="/multsd", status=status) for status in ("200", "400", "413")] == [
        2,
        1,
        1,
    ]
    assert _of(samples, "requests_total", path="other", status="404") == 2
    assert _of(samples, "request_seconds_count", path="/multsd") == 4
    assert _of(samples, "requests_in_flight", path="/multsd") == 0


def test_bytes_are_counted_both_ways(app: FastAPI) -> None:
    body = json.dumps(seed_request())
    reply = ask(app, "POST", "/multsd", content=body)

    samples = _samples(app)
    assert _of(samples, "received_bytes_total", path="/multsd") == len(body)
    assert _of(samples, "sent_bytes_total", path="/multsd") == len(reply.content)


def test_the_parts_of_a_picture_are_counted_and_told(app: FastAPI) -> None:
    reply = ask(app, "POST", "/multsd", json=seed_request())
    stages = [part.split(";")[0] for part in reply.headers["Server-Timing"].split(", ")]

    assert stages == ["read", "masks", "model", "encode"]
    samples = _samples(app)
    assert [_of(samples, "stage_seconds_count", stage=stage) for stage in stages] == [1] * 4


def test_an_internal_error_is_counted_as_a_500() -> None:
    app = create_app(settings(triton_metrics_url=""), FakePainter(error=RuntimeError("x")))
    ask(app, "POST", "/multsd", json=seed_request())

    assert _of(_samples(app), "requests_total", path="/multsd", status="500") == 1


@pytest.mark.parametrize(
    ("error", "status"), [(DeadlineExceededError("late"), "504"), (RuntimeError("x"), "500"), (None, "200")]
)
def test_a_stream_is_counted_by_how_it_ended(error: Exception | None, status: str) -> None:
    app = create_app(settings(triton_metrics_url=""), FakePainter(error=error))
    reply = ask(app, "POST", "/multsd/stream", json=seed_request())

    assert reply.status_code == 200
    counted = {labels: n for (name, labels), n in _samples(app).items() if name == "multsd_gateway_requests_total"}
    assert counted == {(("path", "/multsd/stream"), ("status", status)): 1}


def test_a_stream_that_is_cut_off_is_no_success() -> None:
    async def scenario() -> Samples:
        painter = FakePainter(forever=True)
        app = create_app(settings(triton_metrics_url=""), painter)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            asked = asyncio.ensure_future(client.post("/multsd/stream", json=seed_request()))
            await painter.started.wait()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return _parsed((await client.get("/metrics")).text)

    assert _of(asyncio.run(scenario()), "requests_total", path="/multsd/stream", status="500") == 1


def test_a_request_at_work_is_in_flight() -> None:
    async def scenario() -> Samples:
        painter = FakePainter(forever=True)
        app = create_app(settings(triton_metrics_url=""), painter)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            asked = asyncio.ensure_future(client.post("/multsd", json=seed_request()))
            await painter.started.wait()
            text = (await client.get("/metrics")).text
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        return _parsed(text)

    assert _of(asyncio.run(scenario()), "requests_in_flight", path="/multsd") == 1


NOTHING = {
    **{f'rejected_total{{reason="{reason}"}}': 0.0 for reason in ("requests", "rows", "time", "bytes", "model")},
    "expired_total": 0.0,
}


def _came_to_nothing(text: str) -> dict[str, float]:
    """The samples of refusals and of deadlines, by name and reason."""
    samples = re.findall(r"^multsd_gateway_((?:rejected|expired)_total\S*) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in samples}


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
@pytest.mark.parametrize(
    ("reason", "held", "changes"),
    [
        ("requests", 1, {"max_running": 1, "max_waiting": 0}),
        ("rows", 2, {"max_waiting_rows": 200}),  # 140 each
        ("time", 1, {"max_waiting_rows": 100}),
        ("bytes", 0, {"max_uploaded_bytes": 100}),
    ],
)
def test_a_refusal_is_counted_once_by_its_reason(path: str, reason: str, held: int, changes: dict[str, Any]) -> None:
    async def scenario() -> str:
        painter = FakePainter(forever=True, description=ModelDescription(frozenset(), {"max_running": "1"}))
        app = create_app(settings(triton_metrics_url="", **changes), painter)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            present = [asyncio.create_task(client.post("/multsd", json=seed_request())) for _ in range(held)]
            while len(painter.requests) < held:  # noqa: ASYNC110 - the painter tells only of its first
                await asyncio.sleep(0.01)
            assert (await client.post(path, json=seed_request())).status_code == 503
            for each in present:
                each.cancel()
            await asyncio.gather(*present, return_exceptions=True)
            return (await client.get("/metrics")).text

    assert _came_to_nothing(asyncio.run(scenario())) == NOTHING | {f'rejected_total{{reason="{reason}"}}': 1}


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (ModelFullError("full", retry_after=9), {'rejected_total{reason="model"}': 1}),
        (ModelUnavailableError("away"), {}),
        (DeadlineExceededError("the model says so, and counts it"), {}),
        (None, {}),
    ],
)
def test_what_the_model_refuses_is_counted_and_what_else_it_fails_at_is_not(
    path: str, error: Exception | None, counted: dict[str, float]
) -> None:
    app = create_app(settings(triton_metrics_url=""), FakePainter(error=error))
    ask(app, "POST", path, json=seed_request())

    assert _came_to_nothing(ask(app, "GET", "/metrics").text) == NOTHING | counted


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
@pytest.mark.parametrize("where", ["queue", "masks", "model"])
def test_a_request_whose_time_is_over_in_the_gateway_is_counted_once(
    path: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> str:
        painter = FakePainter(forever=True)
        app = create_app(settings(triton_metrics_url="", max_running=1), painter)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            first = asyncio.create_task(client.post("/multsd", json=seed_request()))
            if where == "queue":
                await painter.started.wait()
            else:
                first.cancel()
            if where == "masks":
                monkeypatch.setattr("multsd_gateway.service.decode_masks", lambda *_, **__: time.sleep(0.3))
            reply = await client.post(path, json=seed_request(), headers={TIMEOUT: "0.1"})
            assert "expected a picture within 0.1 s, it was not ready" in reply.text
            assert len(painter.requests) == (where != "masks")
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return (await client.get("/metrics")).text

    assert _came_to_nothing(asyncio.run(scenario())) == NOTHING | {"expired_total": 1}


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/metrics", "127.0.0.1:8002/metrics", "http://[::1:8002/metrics"])
def test_without_tritons_metrics_the_gateways_own_are_told(url: str) -> None:
    reply = ask(create_app(settings(triton_metrics_url=url), FakePainter()), "GET", "/metrics")

    assert reply.status_code == 200
    assert _of(_parsed(reply.text), "triton_metrics_up") == 0


def test_each_triton_has_a_state() -> None:
    app = create_app(settings(triton_url="127.0.0.1:1, 127.0.0.1:2", triton_metrics_url=""))

    samples: Any = _samples(app)
    assert [_of(samples, "triton_ready", endpoint=f"127.0.0.1:{port}") for port in (1, 2)] == [1, 1]


def test_authorities_are_read_once_and_not_whenever_somebody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 20 ms of the event loop's time, and /metrics needs no token."""
    nobody = "http://127.0.0.1:9/metrics"
    assert asyncio.run(triton_metrics(nobody)) == (b"", False)

    read: list[str] = []
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *_, **places: read.append(str(places)))
    assert asyncio.run(triton_metrics(nobody)) == (b"", False)
    assert read == []
