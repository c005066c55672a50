"""Clients that leave, deadlines, and more requests than the gateway takes."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from multsd_client.tensors import Progress
from multsd_gateway.admission import Admission
from multsd_gateway.app import create_app
from multsd_gateway.connection import HEARTBEAT, EventSender, EventStream
from multsd_gateway.errors import OverloadedError
from multsd_gateway.replies import error_event, update_event
from tests.unit.gateway.fakes import FakePainter, post, seed_request, settings

Message = dict[str, Any]


async def _never() -> Message:
    await asyncio.sleep(3600)
    raise AssertionError


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


def test_a_silent_stream_gets_heartbeats_and_none_after_its_end() -> None:
    messages = [Progress(1, 2)]

    async def scenario() -> list[bytes]:
        sent: list[bytes] = []
        beaten = asyncio.Event()

        async def send(message: Any) -> None:
            sent.append(message.get("body", b""))
            if sent.count(HEARTBEAT) == 2:
                beaten.set()

        async def work(sender: EventSender) -> None:
            await asyncio.sleep(0.05)  # before the head there is nothing to keep alive
            await sender.start()
            await beaten.wait()
            for update in messages:
                await sender.data(update_event(update))

        stream = EventStream(work, on_error=error_event, heartbeat_seconds=0.01)
        async with asyncio.timeout(10):
            await stream({"type": "http"}, _never, send)
        await asyncio.sleep(0.05)
        return sent

    assert asyncio.run(scenario()) == [b"", HEARTBEAT, HEARTBEAT, update_event(messages[0]), b""]


class JumpingClock(selectors.SelectSelector):
    """What an event loop waits with; it does not wait, and takes note of how long it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time: when all wait, its clock jumps to what is due next."""

    def __init__(self) -> None:
        self._clock = JumpingClock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def test_a_stream_that_talks_gets_heartbeats_only_when_it_has_stopped() -> None:
    async def scenario() -> list[tuple[float, bytes]]:
        clock = asyncio.get_running_loop().time
        sent: list[tuple[float, bytes]] = []

        async def send(message: Any) -> None:
            sent.append((clock(), message.get("body", b"head")))

        async def work(sender: EventSender) -> None:
            for _ in range(4):
                await sender.data(b"event")
                await asyncio.sleep(6)
            await asyncio.sleep(19)

        await EventStream(work, on_error=error_event, heartbeat_seconds=10)({"type": "http"}, _never, send)
        return sent

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        events = [(time, b"event") for time in (0, 6, 12, 18)]
        heartbeats = [(28, HEARTBEAT), (38, HEARTBEAT)]
        assert runner.run(scenario()) == [(0, b"head"), *events, *heartbeats, (43, b"")]


def test_a_stream_promises_its_heartbeats_in_a_header() -> None:
    async def work(_: EventSender) -> None:
        raise AssertionError

    assert EventStream(work, on_error=error_event, heartbeat_seconds=0.5).headers["heartbeat-seconds"] == "0.5"


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


def test_who_waits_hears_of_its_place_and_is_served_in_order() -> None:
    async def scenario() -> tuple[list[str], dict[str, list[int]]]:
        admission = Admission(running=1, waiting=9)
        ended: list[str] = []
        heard: dict[str, list[int]] = {name: [] for name in "abcd"}

        async def request(name: str, until: asyncio.Event) -> None:
            async def on_place(place: int) -> None:
                heard[name].append(place)

            async with admission.slot(on_place):
                await until.wait()
                ended.append(name)

        gates = {name: asyncio.Event() for name in "abcd"}
        tasks = {}
        for name, gate in gates.items():
            tasks[name] = asyncio.create_task(request(name, gate))
            await asyncio.sleep(0)
        tasks["c"].cancel()  # one that waits goes away
        await asyncio.gather(tasks["c"], return_exceptions=True)
        for name in "abd":
            gates[name].set()
            await tasks[name]
        return ended, heard

    ended, heard = asyncio.run(scenario())

    assert ended == ["a", "b", "d"]
    assert heard == {"a": [], "b": [0], "c": [1], "d": [2, 1, 0]}


def test_retry_after_follows_the_pace_of_earlier_requests() -> None:
    async def scenario() -> list[int | None]:
        admission, told = Admission(running=1, waiting=2), []
        for seconds in (1.2, 0.0):  # the first is slow; the second hardly changes what is known
            with ExitStack() as present:
                for _ in range(3):
                    present.enter_context(admission.enter())
                with pytest.raises(OverloadedError) as refused, admission.enter():
                    pass
                told.append(refused.value.retry_after)
                async with admission.slot():
                    await asyncio.sleep(seconds)
        return told

    assert asyncio.run(scenario()) == [None, 4]  # three requests of 1.2 s, one at a time


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
