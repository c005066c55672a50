"""How many requests are at work and waiting: bounded, and past the bound refused at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from multsd_gateway.errors import OverloadedError

OnPlace = Callable[[int], Awaitable[None]]  # with how many wait before this one


class Admission:
    """At most `running` requests at work, at most `waiting` more between arrival and work."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._running = running
        self._working = 0
        self._queue: deque[object] = deque()  # a ticket for each request that waits, the next at the front
        self._moved = asyncio.Event()  # a new one for every change of the queue
        self._seconds: float | None = None  # that a request works, as lately seen
        self._capacity = running + waiting
        self._present = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a request from its arrival to its reply. Raises OverloadedError."""
        if self._present >= self._capacity:
            raise OverloadedError(
                f"expected at most {self._capacity} requests at once, try again later", retry_after=self._drained()
            )
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    @asynccontextmanager
    async def slot(self, on_place: OnPlace | None = None) -> AsyncIterator[None]:
        """Wait for a turn to work, first come, first served; on_place hears of every change while it waits."""
        await self._turn(on_place)
        began = time.monotonic()
        try:
            yield
            latest = time.monotonic() - began
            self._seconds = latest if self._seconds is None else self._seconds + 0.1 * (latest - self._seconds)
        finally:
            self._working -= 1
            self._move()

    async def _turn(self, on_place: OnPlace | None) -> None:
        ticket, told = object(), -1
        self._queue.append(ticket)
        try:
            while self._working >= self._running or self._queue[0] is not ticket:
                moved, place = self._moved, self._queue.index(ticket)
                if on_place is not None and place != told:
                    await on_place(place)
                    told = place
                await moved.wait()
            self._working += 1
        finally:
            self._queue.remove(ticket)
            self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def _drained(self) -> int | None:
        """Whole seconds until those that are here will be done; None as long as none has been."""
        return None if self._seconds is None else max(1, math.ceil(self._seconds * self._present / self._running))
