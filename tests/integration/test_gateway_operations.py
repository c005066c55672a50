"""The gateway as a process in front of real Tritons: stopping, balancing, clients that leave, and what is logged."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from multsd_client import Box, Client, GenerationRequest, Progress, Region, ServiceUnavailableError
from multsd_client.triton import TritonClient
from multsd_gateway.stack.waiting import answers
from tests.integration.requests_and_pictures import request_body
from tests.integration.test_isolation import wait_for
from tests.stand_in.pair import metric
from tests.stand_in.triton import StandIn, running_gateway, running_stand_in
from tests.unit.gateway.hostile import bodies
from tests.unit.gateway.test_hostile import PAINTED

SECONDS = 1.0  # that the stand-in takes for a picture
BODY = request_body(64, 64)


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[StandIn]]:
    """Two Tritons of the stand-in model."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    with running_stand_in(folders[0], seconds=SECONDS) as one, running_stand_in(folders[1], seconds=SECONDS) as two:
        yield [one, two]


@pytest.fixture(scope="module")
def triton(tritons: list[StandIn]) -> StandIn:
    return tritons[0]


def at_work(url: str) -> float:
    return metric(url, "requests_in_flight", path="/multsd") + metric(url, "requests_in_flight", path="/multsd/stream")


@contextmanager
def asked(url: str, count: int, body: dict[str, Any] = BODY) -> Iterator[list[Future[httpx.Response]]]:
    """Requests at work, each with a thread of its own."""
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(httpx.post, f"{url}/multsd", json=body, timeout=60) for _ in range(count)]
        wait_for(lambda: at_work(url) == count, "the requests to be at work")
        yield futures


def test_a_gateway_that_is_stopped_finishes_what_runs_and_takes_nothing_new(triton: StandIn, tmp_path: Path) -> None:
    with running_gateway(tmp_path, triton.grpc) as (gateway, url), asked(url, 3) as futures:
        gateway.process.terminate()
        wait_for(lambda: not answers(f"{url}/healthz"), "it to take nothing new", 5)
        assert not any(future.done() for future in futures), "they were still at work"
        assert [future.result().status_code for future in futures] == [200, 200, 200]
        gateway.process.wait(timeout=10)
        assert "Traceback" not in gateway.log.read_text()


def test_a_stop_does_not_wait_longer_than_its_grace(triton: StandIn, tmp_path: Path) -> None:
    settings = {"MULTSD_GRACE_SECONDS": "1"}
    began = time.monotonic()
    with running_gateway(tmp_path, triton.grpc, settings) as (gateway, url):
        with httpx.stream("POST", f"{url}/multsd/stream", json=BODY | {"ddim_steps": 200}, timeout=60) as response:
            next(response.iter_lines())
            began = time.monotonic()
            gateway.process.terminate()
        gateway.process.wait(timeout=10)
    assert time.monotonic() - began < 5


def test_requests_at_once_are_shared_between_tritons(tritons: list[StandIn], tmp_path: Path) -> None:
    urls = ",".join(each.grpc for each in tritons)
    with running_gateway(tmp_path, urls) as (_, url), asked(url, 6) as futures:
        wait_for(lambda: {metric(url, "triton_in_flight", endpoint=each.grpc) for each in tritons} == {3}, "halves")
        assert [future.result().status_code for future in futures] == [200] * 6


def test_a_stream_that_has_begun_is_not_begun_again_elsewhere(triton: StandIn, tmp_path: Path) -> None:
    with (
        running_stand_in(tmp_path / "victim", seconds=5) as victim,
        running_gateway(tmp_path, f"{victim.grpc},{triton.grpc}") as (_, url),
    ):
        events: list[str] = []
        with httpx.stream("POST", f"{url}/multsd/stream", json=BODY | {"ddim_steps": 20}, timeout=60) as response:
            for line in response.iter_lines():
                events.append(line)
                if line == "event: progress" and len(events) < 3:
                    os.kill(victim.triton.process.pid, signal.SIGKILL)
    names = [line for line in events if line.startswith("event: ")]
    assert names[0] == "event: progress"
    assert names[-1] == "event: error"
    assert '"status": 503' in events[-2]


async def _leave(host: str, port: int, path: str, body: bytes, moments: random.Random) -> None:
    """Send all of a request or a part of it, wait a little, and close the connection."""
    head = f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    message = head + body
    if moments.random() < 0.4:
        message = message[: moments.randrange(len(message))]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(message)
    await writer.drain()
    try:
        async with asyncio.timeout(moments.uniform(0, SECONDS * 1.3)):
            await reader.read(moments.choice([1, 200, 10**6]))
            await asyncio.sleep(moments.uniform(0, SECONDS))
    except TimeoutError:
        pass
    writer.transport.abort()


def test_clients_that_leave_at_random_moments_leave_nothing_behind(triton: StandIn, tmp_path: Path) -> None:
    moments = random.Random(9)  # noqa: S311 - moments, not secrets
    body = json.dumps(BODY).encode()

    async def crowd(port: int) -> None:
        for _ in range(3):
            paths = [moments.choice(["/multsd", "/multsd/stream"]) for _ in range(30)]
            await asyncio.gather(*(_leave("127.0.0.1", port, path, body, moments) for path in paths))

    with running_gateway(tmp_path, triton.grpc) as (gateway, url):
        asyncio.run(crowd(httpx.URL(url).port or 80))
        wait_for(lambda: at_work(url) == 0, "every request to end", 10)
        assert metric(url, "triton_in_flight") == 0
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda _: httpx.post(f"{url}/multsd", json=BODY, timeout=60), range(8)))
        assert [reply.status_code for reply in replies] == [200] * 8
        log = gateway.log.read_text()
        assert "Traceback" not in log
        assert "internal error" not in log
    assert errors_of(triton.triton.log) == []


def test_a_client_that_shuts_its_sending_half_down_counts_as_gone(triton: StandIn, tmp_path: Path) -> None:
    body = json.dumps(BODY).encode()
    with (
        running_gateway(tmp_path, triton.grpc) as (_, url),
        socket.create_connection(("127.0.0.1", httpx.URL(url).port or 80)) as client,
    ):
        client.sendall(f"POST /multsd HTTP/1.1\r\nHost: gateway\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: metric(url, "triton_in_flight") == 1, "the request to be at work")
        client.shutdown(socket.SHUT_WR)
        wait_for(lambda: at_work(url) == 0, "the request to end")
        assert metric(url, "requests_total", path="/multsd", status="499") == 1


def test_the_corpus_of_hostile_bodies_is_answered_by_a_gateway_that_goes_on(triton: StandIn, tmp_path: Path) -> None:
    corpus = bodies()
    with running_gateway(tmp_path, triton.grpc) as (gateway, url):
        with ThreadPoolExecutor(8) as pool:
            replies = pool.map(lambda body: httpx.post(f"{url}/multsd", content=body, timeout=60), corpus.values())
            statuses = dict(zip(corpus, [reply.status_code for reply in replies], strict=True))
        assert statuses == {name: 200 if name in PAINTED else 400 for name in corpus}
        assert httpx.post(f"{url}/multsd", json=BODY, timeout=60).status_code == 200
        assert "Traceback" not in gateway.log.read_text()


def errors_of(log: Path) -> list[str]:
    """The error lines of a Triton's log, but the one that every machine without a GPU has."""
    lines = log.read_text().splitlines()
    return [line for line in lines if line[:1] == "E" and line[1:5].isdigit() and "CudaDriverHelper" not in line]


def test_the_client_straight_to_triton_gets_the_same_result(triton: StandIn, tmp_path: Path) -> None:
    request = GenerationRequest(
        prompt="a", regions=(Region(Box(0, 0, 32, 64), "b"),), width=64, height=64, seed=5, output_format="png"
    )
    told: list[Progress] = []
    with TritonClient(triton.grpc) as client:
        assert client.ready()
        direct = client.generate(request, on_progress=told.append, request_id="job-7")
    with running_gateway(tmp_path, triton.grpc) as (_, url), Client(url) as http:
        over_http = http.generate(request)

    assert (direct.image, direct.parameters, direct.seed) == (over_http.image, over_http.parameters, 5)
    assert direct.request_id == "job-7"
    assert told[-1] == Progress(50, 50)


def test_the_client_straight_to_triton_says_when_nobody_is_there() -> None:
    with TritonClient("127.0.0.1:1") as client:
        for call in (client.ready, lambda: client.generate(GenerationRequest(prompt="a"))):
            with pytest.raises(ServiceUnavailableError, match=r"127\.0\.0\.1:1"):
                call()
