"""Which requests are painted, which wait, and which are refused before any work is spent on them.

A request's cost is an upper bound of its UNet rows, known from its small fields alone.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from errors import DeadlineError, OverloadedError

OnPosition = Callable[[int], None]  # is told how many requests wait before this one, 0 for the next


@dataclass(frozen=True, eq=False)
class _Ticket:
    """A request that waits for a place."""

    admitted: asyncio.Future[None]
    on_position: OnPosition


class Pace:
    """Seconds that a UNet row takes, as lately seen."""

    def __init__(self) -> None:
        self.seconds_per_row: float | None = None  # until the first call

    def saw(self, rows: int, seconds: float) -> None:
        """Count one call of the UNet; the last twenty or so weigh most."""
        latest = seconds / rows
        known = latest if self.seconds_per_row is None else self.seconds_per_row
        self.seconds_per_row = known + 0.05 * (latest - known)

    def seconds(self, rows: int) -> float:
        """How long so many rows take; 0 as long as nothing is known."""
        return rows * (self.seconds_per_row or 0.0)


class Admission:
    """Admits some requests, lets more wait in order, and refuses any beyond at once. One event loop owns it."""

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        waiting_rows: int,
        pace: Pace,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Nobody runs or waits.

        waiting_rows: the cost of all that wait together; a single request may cost more when nobody else waits.
        on_change: is called whenever somebody comes, is let in, or goes.
        """
        self._places = running
        self._may_wait = waiting
        self._may_wait_rows = waiting_rows
        self._pace = pace
        self._on_change = on_change
        self._queue: deque[_Ticket] = deque()
        self.running = 0
        self.waiting_rows = 0

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @asynccontextmanager
    async def place(self, rows: int, on_position: OnPosition, seconds: float | None = None) -> AsyncIterator[None]:
        """A place among those that run, for as long as the context lasts.

        rows: the request's cost.
        seconds: how long it may wait for its place.

        Raises OverloadedError where too much waits already, DeadlineError when the time is over.
        """
        await self._enter(rows, on_position, seconds)
        try:
            yield
        finally:
            self.running -= 1
            self._admit()

    async def _enter(self, rows: int, on_position: OnPosition, seconds: float | None) -> None:
        if self.running < self._places and not self._queue:
            self.running += 1
            self._on_change()
            return
        if self.waiting >= self._may_wait or (self._queue and self.waiting_rows + rows > self._may_wait_rows):
            retry = max(1, round(self._pace.seconds(self.waiting_rows)))
            raise OverloadedError(
                f"{self.running} requests are running and {self.waiting} waiting; try again in {retry} s"
            )
        ticket = _Ticket(asyncio.get_running_loop().create_future(), on_position)
        self._queue.append(ticket)
        self.waiting_rows += rows
        self._on_change()
        try:
            on_position(self.waiting - 1)
            async with asyncio.timeout(seconds):
                await ticket.admitted
        except BaseException as error:
            if ticket in self._queue:
                self._queue.remove(ticket)
            if ticket.admitted.done() and not ticket.admitted.cancelled():  # let in just as it gave up
                self.running -= 1
            self._admit()
            if isinstance(error, TimeoutError):
                raise DeadlineError(f"still waiting after {seconds:g} s") from None
            raise
        finally:
            self.waiting_rows -= rows
            self._on_change()

    def _admit(self) -> None:
        while self._queue and self.running < self._places:
            ticket = self._queue.popleft()
            if not ticket.admitted.done():  # done: it gave up, and has not been told so yet
                ticket.admitted.set_result(None)
                self.running += 1
        self._on_change()
        self._tell_positions()

    def _tell_positions(self) -> None:
        for position, ticket in enumerate(self._queue):
            ticket.on_position(position)
