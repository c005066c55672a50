"""Work in threads: how much of it at once, and what becomes of it when nobody waits any more."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import httpx
import pytest

from multsd_gateway.app import create_app
from multsd_gateway.limits import TIMEOUT
from multsd_gateway.masks import decode_masks
from multsd_gateway.threads import Threads
from tests.unit.gateway.fakes import FakePainter, seed_request, settings

name: ContextVar[str] = ContextVar("name")


class Gate:
    """Work that goes on until the gate is open; how much of it is under way, and was at most."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._lock = threading.Lock()
        self.begun = self.at_work = self.most = 0

    def open(self) -> None:
        self._open.set()

    def pass_through(self) -> None:
        with self._lock:
            self.begun += 1
            self.at_work += 1
            self.most = max(self.most, self.at_work)
        self._open.wait(30)
        with self._lock:
            self.at_work -= 1


def _run(scenario: Callable[[Gate], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in bounded time; whatever becomes of it, no thread is left behind its gate."""
    gate = Gate()

    async def bounded() -> None:
        try:
            async with asyncio.timeout(20):
                await scenario(gate)
        finally:
            gate.open()

    asyncio.run(bounded())


def test_work_that_comes_after_the_end_is_refused_and_keeps_no_place() -> None:
    async def scenario(_gate: Gate) -> None:
        threads, ended = Threads(1), 0

        def end() -> None:
            nonlocal ended
            ended += 1

        threads.close()
        for _ in range(2):
            with pytest.raises(RuntimeError, match="after shutdown"):
                await threads.run(lambda: None, on_end=end)
        assert ended == 2

    _run(scenario)


async def _until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - threads tell nobody
        await asyncio.sleep(0.01)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_work_returns_raises_and_knows_its_context() -> None:
    async def scenario(_gate: Gate) -> None:
        threads = Threads(1)
        name.set("request")
        assert await threads.run(name.get) == "request"
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await threads.run(lambda: 1) == 1, "its place is free again"

    _run(scenario)


def test_work_that_nobody_waits_for_keeps_its_place_and_other_is_dropped() -> None:
    async def scenario(gate: Gate) -> None:
        threads, ended = Threads(2), list[str]()
        left = [
            asyncio.create_task(threads.run(gate.pass_through, on_end=lambda: ended.append("begun"))) for _ in range(2)
        ]
        await _until(lambda: gate.begun == 2)
        waiting = asyncio.create_task(threads.run(gate.pass_through, on_end=lambda: ended.append("dropped")))
        await asyncio.sleep(0)
        await _cancel(*left, waiting)
        assert ended == ["dropped"]
        again = asyncio.create_task(threads.run(lambda: gate.at_work))
        await asyncio.sleep(0.1)
        assert not again.done(), "both threads are taken"
        gate.open()
        assert await again < 2
        await _until(lambda: len(ended) == 3)
        assert gate.begun == 2

    _run(scenario)


def test_requests_whose_time_is_over_leave_no_more_work_than_there_are_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(gate: Gate) -> None:
        monkeypatch.setattr("multsd_gateway.service.decode_masks", lambda *_, **__: gate.pass_through())
        app = create_app(settings(image_threads=2), FakePainter())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            for _ in range(4):
                reply = await client.post("/multsd", json=seed_request(), headers={TIMEOUT: "0.1"})
                assert reply.status_code == 504
            assert (gate.begun, gate.most) == (2, 2)
            gate.open()
            await _until(lambda: gate.at_work == 0)
            monkeypatch.setattr("multsd_gateway.service.decode_masks", decode_masks)
            assert (await client.post("/multsd", json=seed_request())).status_code == 200
        assert gate.begun == 2

    _run(scenario)


@pytest.mark.parametrize("stage", ["check", "decode_masks"])
def test_a_body_counts_as_long_as_a_thread_works_on_it(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(gate: Gate) -> None:
        body = json.dumps(seed_request()).encode()
        monkeypatch.setattr("multsd_gateway.service.LARGE_BODY", 0)
        monkeypatch.setattr(f"multsd_gateway.service.{stage}", lambda *_, **__: gate.pass_through())
        app = create_app(settings(max_uploaded_bytes=len(body), request_seconds=0.1), FakePainter())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            assert (await client.post("/multsd", content=body)).status_code == 504
            assert (await client.post("/multsd", content=body)).status_code == 503, "its bytes are still held"
            gate.open()
            await _until(lambda: gate.at_work == 0)
            await asyncio.sleep(0.1)
            assert (await client.post("/multsd", content=body)).status_code != 503

    _run(scenario)


def test_the_threads_end_with_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(_gate: Gate) -> None:
        before, used = set(threading.enumerate()), set[threading.Thread]()

        def note(*_: Any, **__: Any) -> tuple[None, list[Any]]:
            used.add(threading.current_thread())
            return None, []

        monkeypatch.setattr("multsd_gateway.service.decode_masks", note)
        app = create_app(settings(), FakePainter())
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                assert (await client.post("/multsd", json=seed_request())).status_code == 200
            assert used
            assert used.isdisjoint(before)
        await _until(lambda: not any(thread.is_alive() for thread in used))

    _run(scenario)
