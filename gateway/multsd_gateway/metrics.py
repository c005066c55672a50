"""The gateway's own metrics, and Triton's behind them."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Protocol, get_args

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multsd_gateway.errors import ExpiredError, ModelFullError, OverloadedError, Reason
from multsd_gateway.outcome import outcome_of

log = logging.getLogger(__name__)

disable_created_metrics()  # type: ignore[no-untyped-call]  # when a counter began is told by its first sample, too

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
OTHER = "other"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METRICS_SECONDS = 2.0


class EndpointState(Protocol):
    """What is told of one Triton."""

    url: str
    ready: bool
    in_flight: int


class TritonStates(Collector):
    """Collects the state of every Triton when it is asked for."""

    def __init__(self, endpoints: Sequence[EndpointState]) -> None:
        self._endpoints = endpoints

    def collect(self) -> Iterable[Metric]:
        ready = GaugeMetricFamily(
            "multsd_gateway_triton_ready", "1 where this Triton takes requests, as last probed.", labels=["endpoint"]
        )
        in_flight = GaugeMetricFamily(
            "multsd_gateway_triton_in_flight", "Requests at work in this Triton.", labels=["endpoint"]
        )
        for each in self._endpoints:
            ready.add_metric([each.url], float(each.ready))
            in_flight.add_metric([each.url], each.in_flight)
        return [ready, in_flight]


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self, *, paths: Collection[str], endpoints: Sequence[EndpointState] = ()) -> None:
        self._registry = CollectorRegistry()
        self._paths = frozenset(paths)
        labels = ["path"]
        self.requests = Counter(
            "multsd_gateway_requests",
            "Requests answered, by status; a stream that failed by its error event's.",
            [*labels, "status"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "multsd_gateway_request_seconds",
            "From a request's head to the end of its reply.",
            labels,
            buckets=SECONDS,
            registry=self._registry,
        )
        self.bytes_in = Counter(
            "multsd_gateway_received_bytes", "Bytes of bodies received.", labels, registry=self._registry
        )
        self.bytes_out = Counter("multsd_gateway_sent_bytes", "Bytes of bodies sent.", labels, registry=self._registry)
        self.in_flight = Gauge(
            "multsd_gateway_requests_in_flight", "Requests between head and reply.", labels, registry=self._registry
        )
        self.cut = Counter(
            "multsd_gateway_cut_connections",
            "Connections that were cut because the client took nothing of its reply.",
            registry=self._registry,
        )
        self.rejected = Counter(
            "multsd_gateway_rejected",
            "Requests refused because too much was at work: by the gateway's bounds, or by every model that it asked.",
            ["reason"],
            registry=self._registry,
        )
        for reason in get_args(Reason):  # a rate needs the zero before the first event
            self.rejected.labels(reason)
        self.expired = Counter(
            "multsd_gateway_expired",
            "Requests whose time was over in the gateway: waiting there, with their masks, or for the model.",
            registry=self._registry,
        )
        self.stages = Histogram(
            "multsd_gateway_stage_seconds",
            "Parts of finished pictures: read, masks, model, encode.",
            ["stage"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tasks = Gauge("multsd_gateway_tasks", "Tasks of the gateway's event loop.", registry=self._registry)
        self.triton_up = Gauge(
            "multsd_gateway_triton_metrics_up", "1 where Triton's metrics follow.", registry=self._registry
        )
        self._registry.register(TritonStates(endpoints))

    def observe_stages(self, seconds: Mapping[str, float]) -> None:
        """Count the parts of a finished picture."""
        for stage, value in seconds.items():
            self.stages.labels(stage).observe(value)

    def observe_failure(self, error: Exception) -> None:
        """Count a request that came to nothing, where it was refused or its time was over."""
        if isinstance(error, OverloadedError):
            self.rejected.labels(error.reason).inc()
        elif isinstance(error, ModelFullError):
            self.rejected.labels("model").inc()
        elif isinstance(error, ExpiredError):
            self.expired.inc()

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)

    def path_label(self, path: str) -> str:
        """The path, or one word for all paths that are not served: labels have to stay few."""
        return path if path in self._paths else OTHER


async def triton_metrics(url: str) -> tuple[bytes, bool]:
    """Triton's metrics as they are, and whether they are there. url: empty for none."""
    if not url:
        return b"", False
    try:
        async with httpx.AsyncClient(timeout=METRICS_SECONDS, trust_env=False, verify=_authorities()) as client:
            answer = await client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        log.warning("no metrics from Triton: %s", type(error).__name__)
        return b"", False
    return (answer.content, True) if answer.is_success else (b"", False)


@cache
def _authorities() -> ssl.SSLContext:
    """Whom to believe where the URL is https. Reading them holds the event loop up, and anybody may ask for metrics."""
    return httpx.create_ssl_context(trust_env=False)


class Measured:
    """ASGI middleware: counts every request."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, path = self._metrics, self._metrics.path_label(scope["path"])
        status, began = 500, time.perf_counter()  # what nobody catches inside becomes a 500 outside

        async def counted_receive() -> Message:
            message = await receive()
            metrics.bytes_in.labels(path).inc(len(message.get("body", b"")))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            if scope["method"] != "HEAD":  # whose body the server leaves out
                metrics.bytes_out.labels(path).inc(len(message.get("body", b"")))
            await send(message)

        with metrics.in_flight.labels(path).track_inprogress():
            try:
                await self._app(scope, counted_receive, counted_send)
            finally:
                metrics.requests.labels(path, str(outcome_of(scope).status or status)).inc()
                metrics.seconds.labels(path).observe(time.perf_counter() - began)
