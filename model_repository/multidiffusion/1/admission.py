"""How many requests are painted at a time, and how many may wait for that."""

import asyncio
from types import TracebackType

from errors import OverloadedError


class Admission:
    """An async context that admits `running` requests, lets `waiting` more queue, and refuses any beyond at once."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(running)
        self._capacity = running + waiting
        self._inside = 0

    async def __aenter__(self) -> None:
        if self._inside >= self._capacity:
            raise OverloadedError(f"{self._inside} requests are running or waiting; try again later")
        self._inside += 1
        try:
            await self._places.acquire()
        except BaseException:
            self._inside -= 1
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._places.release()
        self._inside -= 1
