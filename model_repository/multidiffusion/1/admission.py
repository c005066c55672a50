"""Which requests are painted, which wait, and which are refused before any work is spent on them.

A request's cost is an upper bound of its UNet rows, known from its small fields alone.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from errors import OverloadedError

OnPosition = Callable[[int], None]  # is told how many requests wait before this one, 0 for the next
Look = Callable[[], None]  # raises when nobody waits any more

KNOWN_CALLS = 20  # of the UNet that its pace is known by
LONGEST_CALL = 4.0  # times the median, that a call counts for in the mean
RECENT = 10.0  # seconds for which a call tells what the UNet can do
ENOUGH_CALLS = 3  # of which the fastest tells it
MANY_CALLS = 100  # after which the fastest that the UNet ever was tells something; fewer may all have been slow ones
# Times that the UNet may be faster than it ever was. Others that shared the machine may have slowed all of many calls,
# but hardly so much. With each idle hour it may be as many times more, so that nothing is refused for ever if it was.
FASTER = 10.0
FASTER_SECONDS = 3600.0


@dataclass(frozen=True)
class _Call:
    """One call of the UNet."""

    rows: int  # that somebody wanted
    full: bool
    seconds: float
    ended: float


class _Fastest:
    """The fastest that calls ever were: by the mean of several in a row, for one alone may be measured too short."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=KNOWN_CALLS)
        self._count = 0
        self._least = math.inf

    def saw(self, seconds: float) -> None:
        """Count a call."""
        self._count += 1
        self._last.append(seconds)
        if len(self._last) == KNOWN_CALLS:
            self._least = min(self._least, sum(self._last) / KNOWN_CALLS)

    @property
    def seconds(self) -> float:
        """Of a call; 0 as long as there were few."""
        return self._least if self._count >= MANY_CALLS else 0.0


class Pace:
    """How fast the UNet works, by its last calls. Two questions, two answers, neither spoilt for long by a slow call.

    `seconds`, for telling when to try again: the mean, in which a call that hung counts no more than a few others.

    `least_seconds`, for refusing what cannot be done: a lower bound. Rows take least time in full calls, and a full
    call takes no less than the fastest full one lately seen, or the fastest of any size where few were full. Calls that
    ended a while ago count no more: with few since, as after an idle time, only that is refused which takes many times
    as long as the UNet ever needed at its fastest; and nothing as long as it has made few calls at all.
    """

    def __init__(self, *, places: int, calls: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        """places: rows of a full call. calls: that the UNet makes at a time."""
        self._places = places
        self._at_a_time = calls
        self._clock = clock
        self._calls: deque[_Call] = deque(maxlen=KNOWN_CALLS)
        self._answers: deque[float] = deque(maxlen=calls)  # when the last came
        self._ever, self._ever_full = _Fastest(), _Fastest()

    def answered(self, rows: int, *, sent: float, padded: int = 0) -> None:
        """Count one call of the UNet that has just ended; sent: when, by the clock.

        Calls that are sent ahead wait until one of those before is answered; that is not the UNet's time.
        """
        now = self._clock()
        free = self._answers[0] if len(self._answers) == self._at_a_time else -math.inf
        self._answers.append(now)
        self.saw(rows, now - max(sent, free), padded=padded)

    def saw(self, rows: int, seconds: float, *, padded: int = 0) -> None:
        """Count one call of the UNet that has just ended; padded: rows more that it had and nobody wanted."""
        call = _Call(rows, rows + padded >= self._places, seconds, self._clock())
        self._calls.append(call)
        self._ever.saw(seconds)
        if call.full:
            self._ever_full.saw(seconds)

    def seconds(self, rows: int) -> float:
        """How long so many rows take; 0 as long as nothing is known."""
        if not self._calls:
            return 0.0
        median = sorted(call.seconds for call in self._calls)[len(self._calls) // 2]
        seen = sum(min(call.seconds, LONGEST_CALL * median) for call in self._calls)
        return rows * seen / (sum(call.rows for call in self._calls) * self._at_a_time)

    def least_seconds(self, rows: int) -> float:
        """What so many rows take at the very least; 0 as long as too little is known."""
        recent = [call for call in self._calls if call.ended > self._clock() - RECENT]
        full = [call for call in recent if call.full]
        known = full if len(full) >= ENOUGH_CALLS else recent
        enough = len(known) >= ENOUGH_CALLS
        least = min(call.seconds for call in known) if enough else self._least_after_idle_time()
        return rows / (self._places * self._at_a_time) * least

    def _least_after_idle_time(self) -> float:
        """What a full call takes at the very least, by calls that ended a while ago; 0 as long as they are few."""
        fastest = self._ever_full.seconds or self._ever.seconds
        if not fastest:
            return 0.0
        idle = self._clock() - self._calls[-1].ended
        return fastest / (FASTER * (1 + idle / FASTER_SECONDS))


@dataclass(eq=False)
class Place:
    """A request's place among those that run, or wait for it."""

    rows_left: int  # that the UNet has still to evaluate; whoever has the place tells


@dataclass(eq=False)
class _Ticket:
    """A request that waits for a place."""

    place: Place
    admitted: asyncio.Future[None]
    on_position: OnPosition
    told: int | None = None  # the position

    def tell(self, position: int) -> None:
        """Tell the position, where it is another. An error is this request's own, and no other's."""
        if self.admitted.done() or position == self.told:
            return
        self.told = position
        try:
            self.on_position(position)
        except Exception as error:
            self.admitted.set_exception(error)


class Admission:
    """Admits some requests, lets more wait in order, and refuses any beyond at once. One event loop owns it."""

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        waiting_rows: int,
        pace: Pace,
        look_every: float,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Nobody runs or waits.

        waiting_rows: the cost of all that wait together; a single request may cost more when nobody else waits.
        look_every: seconds between looks whether a request that waits is still wanted.
        on_change: is called whenever somebody comes, is let in, or goes.
        """
        self._places = running
        self._may_wait = waiting
        self._may_wait_rows = waiting_rows
        self._pace = pace
        self._look_every = look_every
        self._on_change = on_change
        self._queue: deque[_Ticket] = deque()
        self._running: set[Place] = set()

    @property
    def running(self) -> int:
        """How many requests run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._queue)

    @property
    def waiting_rows(self) -> int:
        """What those that wait cost together."""
        return sum(ticket.place.rows_left for ticket in self._queue)

    @asynccontextmanager
    async def place(self, rows: int, on_position: OnPosition, look: Look) -> AsyncIterator[Place]:
        """A place among those that run, for as long as the context lasts.

        rows: the request's cost.
        look: is called now and then while it waits, and ends that by what it raises.

        Raises OverloadedError where too much waits already.
        """
        place = Place(rows)
        await self._enter(place, on_position, look)
        try:
            yield place
        finally:
            self._running.discard(place)
            self._admit()

    def end_waiting(self, error: Exception) -> None:
        """End every wait for a place with an error."""
        for ticket in self._queue:
            if not ticket.admitted.done():
                ticket.admitted.set_exception(error)

    async def _enter(self, place: Place, on_position: OnPosition, look: Look) -> None:
        if self.running < self._places and not self._queue:
            self._running.add(place)
            self._on_change()
            return
        if not self._has_room(self.waiting, self.waiting_rows, place.rows_left):
            retry = max(1, math.ceil(self._pace.seconds(self._rows_until_room(place.rows_left))))
            raise OverloadedError(
                f"{self.running} requests are running and {self.waiting} waiting; try again in {retry} s"
            )
        ticket = _Ticket(place, asyncio.get_running_loop().create_future(), on_position)
        self._queue.append(ticket)
        self._on_change()
        try:
            ticket.tell(self.waiting - 1)
            while not ticket.admitted.done():
                await asyncio.wait([ticket.admitted], timeout=self._look_every)
                if not ticket.admitted.done():
                    look()
            ticket.admitted.result()
        except BaseException:
            if ticket in self._queue:
                self._queue.remove(ticket)
            self._running.discard(place)  # it may have been let in just as it gave up
            self._admit()
            raise

    def _has_room(self, waiting: int, waiting_rows: int, rows: int) -> bool:
        """Whether a request may wait behind so many others."""
        return waiting < self._may_wait and (not waiting or waiting_rows + rows <= self._may_wait_rows)

    def _rows_until_room(self, rows: int) -> int:
        """What the UNet has to evaluate until a request of so many rows is no longer refused."""
        queue = [ticket.place.rows_left for ticket in self._queue]
        entered = 0
        while entered < len(queue) and not self._has_room(len(queue) - entered, sum(queue[entered:]), rows):
            entered += 1
        # Where nobody may wait it needs a place of its own.
        return rows_until([each.rows_left for each in self._running], queue, ends=max(1, entered))

    def _admit(self) -> None:
        while self._queue and self.running < self._places:
            ticket = self._queue.popleft()
            if not ticket.admitted.done():  # done: it could not be told its position, and has not gone yet
                ticket.admitted.set_result(None)
                self._running.add(ticket.place)
        self._on_change()
        for position, ticket in enumerate(list(self._queue)):
            ticket.tell(position)


def rows_until(running: Sequence[int], queue: Sequence[int], *, ends: int) -> int:
    """Rows that the UNet evaluates until so many requests have ended, and as many of the queue have come in.

    running, queue: rows left of each. Those that run have equal shares, and one ends when its last row is done.
    """
    left, coming, rows = list(running), deque(queue), 0
    for _ in range(min(ends, len(running) + len(queue))):
        least = min(left)
        rows += least * len(left)
        left = [each - least for each in left]
        left.remove(0)
        if coming:
            left.append(coming.popleft())
    return rows
