"""Clients that leave or do not read, deadlines, and more requests than the gateway takes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from multsd_client.tensors import Progress
from multsd_gateway.app import create_app
from multsd_gateway.connection import HEARTBEAT, PIECE, EventSender, EventStream
from multsd_gateway.errors import DeadlineExceededError
from multsd_gateway.inference import error_of
from multsd_gateway.outcome import outcome_of
from multsd_gateway.replies import error_event, update_event
from tests.jumping import JumpingLoop
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

        stream = EventStream(work, on_error=error_event, heartbeat_seconds=0.01, write_seconds=10)
        async with asyncio.timeout(10):
            await stream({"type": "http"}, _never, send)
        await asyncio.sleep(0.05)
        return sent

    assert asyncio.run(scenario()) == [b"", HEARTBEAT, HEARTBEAT, update_event(messages[0]), b""]


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

        await EventStream(work, on_error=error_event, heartbeat_seconds=10, write_seconds=10)(
            {"type": "http"}, _never, send
        )
        return sent

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        events = [(time, b"event") for time in (0, 6, 12, 18)]
        heartbeats = [(28, HEARTBEAT), (38, HEARTBEAT)]
        assert runner.run(scenario()) == [(0, b"head"), *events, *heartbeats, (43, b"")]


def test_a_stream_promises_its_heartbeats_in_a_header() -> None:
    async def work(_: EventSender) -> None:
        raise AssertionError

    assert (
        EventStream(work, on_error=error_event, heartbeat_seconds=0.5, write_seconds=10).headers["heartbeat-seconds"]
        == "0.5"
    )


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

    app = create_app(settings(body_seconds=0.05), FakePainter())
    sent = asyncio.run(_call(app, "/multsd", receive))

    assert sent[0]["status"] == 408
    told = app.openapi()["paths"]["/multsd"]["post"]["responses"]["408"]["content"]["application/json"]["example"]
    numbers = re.compile(r"\d[\d.]*")
    assert numbers.sub("N", json.loads(sent[1]["body"])["message"]) == numbers.sub("N", told["message"])


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


def test_by_default_no_more_requests_are_sent_to_the_model_than_it_takes() -> None:
    async def scenario() -> tuple[int, int]:
        painter = FakePainter(forever=True)
        app = create_app(settings(), painter)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            body = seed_request(ddim_steps=1)
            asked = [asyncio.create_task(client.post("/multsd", json=body)) for _ in range(41)]
            while len(painter.requests) < 40:  # noqa: ASYNC110 - the painter tells only of its first
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            sent = len(painter.requests)
            assert not any(each.done() for each in asked), "all are accepted"
            asked[0].cancel()
            while len(painter.requests) < 41:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            for each in asked:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return sent, len(painter.requests)

    assert asyncio.run(scenario()) == (40, 41)


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
def test_rows_past_the_bound_are_a_503_before_a_mask_is_decoded(path: str) -> None:
    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        painter = FakePainter(forever=True)
        app = create_app(settings(max_waiting_rows=100), painter)  # 140 rows each
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            first = asyncio.create_task(client.post("/multsd", json=seed_request()))
            await painter.started.wait()
            refused = await client.post(path, json=seed_request(masks=["no image"]))
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return refused, await client.post(path, json=seed_request(masks=["no image"]))

    refused, alone = asyncio.run(scenario())

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    expected = "140 UNet rows are at work and 140 more would not be done in time, try again later"
    assert refused.json()["message"] == expected
    assert alone.status_code == 400, "nothing else is at work, so its mask is looked at"


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
def test_when_the_model_refuses_its_own_words_and_time_to_come_again_are_told(path: str) -> None:
    full = error_of("UNAVAILABLE", "8 requests are running and 32 waiting; try again in 42 s")

    reply = post(seed_request(), path=path, painter=FakePainter(error=full, updates=()))

    assert "8 requests are running and 32 waiting; try again in 42 s" in reply.text
    if path == "/multsd":
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "42")
    else:
        assert '"status": 503' in reply.text
        assert '"retry_after": 42' in reply.text


def test_a_place_is_given_back_however_a_request_ends() -> None:
    async def scenario() -> list[int]:
        app = create_app(settings(max_running=1, max_waiting=0, request_seconds=0.05), FakePainter(forever=True))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            bodies = [b"{", json.dumps(seed_request()).encode()] * 2
            return [(await client.post("/multsd", content=body)).status_code for body in bodies]

    assert asyncio.run(scenario()) == [400, 504, 400, 504]


class SlowReader:
    """A client that takes so many bytes a second; what is sent waits as uvicorn has it wait: while 64 KiB are left."""

    def __init__(self, bytes_a_second: float) -> None:
        self._pace = bytes_a_second
        self._free = 0.0  # when all was taken, by the loop's clock
        self.taken: list[bytes] = []

    async def send(self, message: Any) -> None:
        clock = asyncio.get_running_loop().time
        if self._free - clock() > PIECE / self._pace:
            await asyncio.sleep(self._free - clock())
        self._free = max(self._free, clock()) + len(message.get("body", b"")) / self._pace
        self.taken.append(message.get("body", b""))


def _read_slowly(work: Callable[[EventSender], Awaitable[None]], reader: SlowReader) -> tuple[float, int | None]:
    """When a stream's response was over, with 10 s for each write and heartbeats after 3 s; and its outcome."""

    async def scenario() -> tuple[float, int | None]:
        scope: dict[str, Any] = {"type": "http"}
        stream = EventStream(work, on_error=error_event, heartbeat_seconds=3, write_seconds=10)
        await stream(scope, _never, reader.send)
        return asyncio.get_running_loop().time(), outcome_of(scope).status

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(scenario())


NEVER = 1e-9  # bytes a second


@pytest.mark.parametrize("error", [None, DeadlineExceededError("late")], ids=["the result", "an error"])
def test_nobody_waits_for_ever_until_a_client_takes_the_last_event(error: Exception | None) -> None:
    async def work(sender: EventSender) -> None:
        await sender.data(b"x" * 2 * PIECE)
        if error is not None:
            raise error

    async def fill(sender: EventSender) -> None:
        await sender.data(b"x" * PIECE)
        await sender.data(b"y")  # more than the client's share
        await work(sender)

    reader = SlowReader(NEVER)
    assert _read_slowly(fill, reader) == (10, 499)
    assert b"" not in reader.taken[1:], "a response that was not ended, so that the server closes the connection"


def test_work_ends_when_a_heartbeat_finds_no_room() -> None:
    ended: list[str] = []

    async def work(sender: EventSender) -> None:
        await sender.data(b"x" * PIECE)
        await sender.data(b"y")
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("work")

    assert _read_slowly(work, SlowReader(NEVER)) == (13, 499)
    assert ended == ["work"]


def test_a_slow_client_gets_a_large_event_whole_and_no_heartbeat_within() -> None:
    result = bytes(range(256)) * 4 * 1024  # 1 MiB

    async def work(sender: EventSender) -> None:
        await sender.data(result)

    reader = SlowReader(PIECE / 4)
    over, status = _read_slowly(work, reader)

    assert (status, b"".join(reader.taken)) == (None, result)
    assert over > 30, "much longer than a single write may take"
