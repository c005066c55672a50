"""How many requests are at work and waiting: bounded, and past the bound refused at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from multsd_gateway.errors import OverloadedError


class Admission:
    """At most `running` requests at work, at most `waiting` more between arrival and work."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._slots = asyncio.Semaphore(running)
        self._capacity = running + waiting
        self._present = 0

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a request from its arrival to its reply. Raises OverloadedError."""
        if self._present >= self._capacity:
            raise OverloadedError(f"expected at most {self._capacity} requests at once, try again later")
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a turn to work, first come, first served."""
        async with self._slots:
            yield
