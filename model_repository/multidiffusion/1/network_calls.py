"""Calls of one network: so many at a time, and for how long it may be silent."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from errors import SilentNetworkError

Answer = TypeVar("Answer")


class NetworkCalls:
    """The calls of one network. Not for threads: one event loop owns it.

    A call that was made cannot be taken back. Whoever stops waiting for it leaves it behind, and it keeps its place
    until it is answered: a network that hangs holds no more threads than it has places.

    Calls before it are what a call waits for, and their number is nobody's fault: with each answer to one of them its
    time begins anew. So it is the network's silence that is measured, and not the length of the queue.
    """

    def __init__(self, *, most: int, seconds: float | None) -> None:
        """most: at a time. seconds: without an answer, after which the network counts as hung; None: for ever."""
        self._seconds = seconds
        self._places = asyncio.Semaphore(most)
        self._numbers = itertools.count()
        self._patience: dict[int, asyncio.Timeout] = {}  # of those that wait, by the numbers of their calls
        self._asked: set[asyncio.Task[Any]] = set()  # the loop itself would forget them

    async def call(self, ask: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Ask when a place is free. Raises TimeoutError where the network is silent, and whatever `ask` raises."""
        number = next(self._numbers)
        async with asyncio.timeout(self._seconds) as patience:
            self._patience[number] = patience
            try:
                await self._places.acquire()
                asked = asyncio.ensure_future(ask())
                self._asked.add(asked)
                asked.add_done_callback(partial(self._answered, number))
                return await asyncio.shield(asked)
            finally:
                del self._patience[number]

    def _answered(self, number: int, asked: "asyncio.Task[Any]") -> None:
        self._asked.discard(asked)
        self._places.release()
        if asked.cancelled() or isinstance(asked.exception(), SilentNetworkError) or self._seconds is None:
            return
        ends = asyncio.get_running_loop().time() + self._seconds
        for later, patience in self._patience.items():
            if later > number and not patience.expired():
                patience.reschedule(ends)
