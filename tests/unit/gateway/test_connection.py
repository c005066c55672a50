"""Clients that leave, deadlines, and more requests than the gateway takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from multsd_gateway.admission import Admission
from multsd_gateway.app import create_app
from multsd_gateway.errors import OverloadedError
from tests.unit.gateway.fakes import FakePainter, post, seed_request, settings

Message = dict[str, Any]


async def _call(app: FastAPI, path: str, receive: Callable[[], Awaitable[Message]]) -> list[Message]:
    """One request over bare ASGI; what was sent."""
    sent: list[Message] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"x-request-id", b"me")],
        "scheme": "http",
        "server": ("gateway", 80),
        "client": ("me", 1),
        "root_path": "",
    }
    await app(scope, receive, send)
    return sent


def _client_that_leaves(painter: FakePainter) -> Callable[[], Awaitable[Message]]:
    """Sends a valid body and hangs up once the model works on it."""
    messages: list[Message] = [
        {"type": "http.request", "body": json.dumps(seed_request()).encode(), "more_body": False}
    ]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await painter.started.wait()
        return {"type": "http.disconnect"}

    return receive


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
def test_a_client_that_goes_away_cancels_its_work(path: str) -> None:
    async def scenario() -> FakePainter:
        painter = FakePainter(forever=True)
        app = create_app(settings(), painter)
        await asyncio.wait_for(_call(app, path, _client_that_leaves(painter)), timeout=5)
        return painter

    assert asyncio.run(scenario()).cancelled == ["me"]


def test_a_client_that_leaves_while_it_sends_starts_nothing() -> None:
    messages: list[Message] = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Message:
        return messages.pop()

    painter = FakePainter()
    asyncio.run(_call(create_app(settings(), painter), "/multsd", receive))

    assert painter.requests == []


def test_a_body_is_refused_while_it_streams() -> None:
    received = 0

    async def receive() -> Message:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    sent = asyncio.run(_call(create_app(settings(max_body_bytes=10_000), FakePainter()), "/multsd", receive))

    assert sent[0]["status"] == 413
    assert received == 11


def test_a_body_that_does_not_arrive_is_a_408() -> None:
    async def receive() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    sent = asyncio.run(_call(create_app(settings(body_seconds=0.05), FakePainter()), "/multsd", receive))

    assert sent[0]["status"] == 408


def test_the_deadline_is_a_504_and_cancels_the_work() -> None:
    painter = FakePainter(forever=True)

    reply = post(seed_request(), painter=painter, request_seconds=0.1)

    assert reply.status_code == 504
    assert reply.json()["message"] == "expected a picture within 0.1 s, it was not ready"
    assert len(painter.cancelled) == 1


def test_requests_past_the_bound_are_a_503_at_once_and_the_others_finish() -> None:
    async def scenario() -> list[httpx.Response]:
        app = create_app(settings(max_running=1, max_waiting=1), FakePainter())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            return await asyncio.gather(*(client.post("/multsd", json=seed_request()) for _ in range(4)))

    replies = asyncio.run(scenario())

    assert sorted(reply.status_code for reply in replies) == [200, 200, 503, 503]
    assert all(reply.headers["Retry-After"] == "5" for reply in replies if reply.status_code == 503)


def test_a_place_is_given_back_however_a_request_ends() -> None:
    async def scenario() -> list[int]:
        app = create_app(settings(max_running=1, max_waiting=0, request_seconds=0.05), FakePainter(forever=True))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            bodies = [b"{", json.dumps(seed_request()).encode()] * 2
            return [(await client.post("/multsd", content=body)).status_code for body in bodies]

    assert asyncio.run(scenario()) == [400, 504, 400, 504]


def test_admission_counts_those_at_work_and_those_that_wait() -> None:
    admission = Admission(running=1, waiting=1)

    with admission.enter(), admission.enter(), pytest.raises(OverloadedError), admission.enter():
        pass
    with admission.enter():
        pass
