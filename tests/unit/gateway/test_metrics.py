"""What the gateway counts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from multsd_gateway.app import create_app
from multsd_gateway.errors import DeadlineExceededError
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


def test_without_tritons_metrics_the_gateways_own_are_told() -> None:
    reply = ask(create_app(settings(triton_metrics_url="http://127.0.0.1:1/metrics"), FakePainter()), "GET", "/metrics")

    assert reply.status_code == 200
    assert _of(_parsed(reply.text), "triton_metrics_up") == 0


def test_each_triton_has_a_state() -> None:
    app = create_app(settings(triton_url="127.0.0.1:1, 127.0.0.1:2", triton_metrics_url=""))

    samples: Any = _samples(app)
    assert [_of(samples, "triton_ready", endpoint=f"127.0.0.1:{port}") for port in (1, 2)] == [1, 1]
