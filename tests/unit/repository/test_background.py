"""Coroutines that are begun from one thread and run in another: nothing of those that are done is kept."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from background import Background

SOON = 30.0  # seconds that nothing here takes


def failed(error: BaseException) -> None:
    raise AssertionError("no coroutine raised anything") from error


def test_coroutines_run_beside_one_another_in_one_thread() -> None:
    background = Background(on_error=failed)
    both, threads, done = asyncio.Barrier(2), set[int](), threading.Semaphore(0)

    async def meet() -> None:
        await both.wait()
        threads.add(threading.get_ident())
        done.release()

    background.begin(meet())
    background.begin(meet())
    assert all(done.acquire(timeout=SOON) for _ in range(2))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    background.close()


def test_a_coroutine_that_is_done_before_it_was_noted_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own loop keeps the futures of those for ever."""
    begin: Callable[..., Future[Any]] = asyncio.run_coroutine_threadsafe
    futures: list[weakref.ref[Future[Any]]] = []

    def slowly(*given: Any) -> Future[Any]:
        future = begin(*given)
        future.result(SOON)
        futures.append(weakref.ref(future))
        return future

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", slowly)
    background = Background(on_error=failed)
    background.begin(asyncio.sleep(0))
    background.close()
    gc.collect()
    assert [future() for future in futures] == [None]


def test_nothing_of_a_coroutine_that_waits_is_collected_and_nothing_of_one_that_is_done_is_kept() -> None:
    background = Background(on_error=failed)
    waits, done = threading.Event(), threading.Event()
    held: list[weakref.ref[asyncio.Future[None]]] = []

    async def wait() -> None:
        future = asyncio.get_running_loop().create_future()  # nobody else has it
        held.append(weakref.ref(future))
        asyncio.get_running_loop().call_later(0.01, waits.set)
        try:
            await future
        finally:
            done.set()

    background.begin(wait())
    assert waits.wait(SOON)
    gc.collect()
    (future,) = [each() for each in held]
    assert future is not None
    future.get_loop().call_soon_threadsafe(future.set_result, None)
    assert done.wait(SOON)
    del future
    background.close()
    gc.collect()
    assert [each() for each in held] == [None]


def test_what_a_coroutine_raises_is_told_and_the_next_runs() -> None:
    told: list[str] = []
    background, done = Background(on_error=lambda error: told.append(str(error))), threading.Event()

    async def fail() -> None:
        raise RuntimeError("no")

    async def work() -> None:
        done.set()

    background.begin(fail())
    background.begin(work())
    assert done.wait(SOON)
    background.close()
    assert told == ["no"]


def test_one_that_was_cancelled_raised_nothing(caplog: pytest.LogCaptureFixture) -> None:
    background, cancelled = Background(on_error=failed), threading.Event()

    async def cancel() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: cancelled.set())
        task.cancel()
        await asyncio.sleep(0)

    background.begin(cancel())
    assert cancelled.wait(SOON)
    background.close()
    assert not caplog.records


def test_the_thread_is_over_when_it_was_closed() -> None:
    before = threading.active_count()
    background = Background(on_error=failed)
    background.close()  # nothing was begun
    background.begin(asyncio.sleep(3600))
    assert threading.active_count() == before + 1
    background.close()
    assert threading.active_count() == before
