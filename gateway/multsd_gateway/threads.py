"""The few threads for work that would hold the event loop up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """Run at most `most` pieces of work at once, also of those that nobody waits for any more.

    A thread cannot be stopped. Whoever is cancelled goes at once; work that has begun keeps its place to its end, work
    that has not is dropped.
    """

    def __init__(self, most: int) -> None:
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="images")
        # Waiting is done here and not in the pool's queue, which would keep what a dropped piece holds.
        self._free = asyncio.Semaphore(most)

    async def run(self, work: Callable[[], T], *, on_end: Callable[[], None] = lambda: None) -> T:
        """What work returns or raises. on_end is called on the event loop once it has ended, or was dropped."""

        def end(_: object) -> None:
            self._free.release()
            on_end()

        try:
            await self._free.acquire()
        except asyncio.CancelledError:
            on_end()
            raise
        try:
            working = asyncio.get_running_loop().run_in_executor(self._pool, copy_context().run, work)
        except RuntimeError:  # closed
            end(None)
            raise
        working.add_done_callback(end)
        return await asyncio.shield(working)

    def close(self) -> None:
        """Let the threads end, each with the work that it has."""
        self._pool.shutdown(wait=False)
