"""Which requests are accepted, which of them wait, and which are refused before any work is spent on them.

Three bounds, each of which refuses with 503 and the time after which it will not:

- Requests between arrival and reply: `running` + `waiting`, counted before a body is read as JSON.
- Rows that wait: all beyond those that the Tritons paint at once, as in the model's own queue. A single request may
  cost more when no other waits.
- Time: whoever is accepted is done within its time, and makes nobody late who was accepted before, at the pace lately
  seen. Where there are tokens, a name may count on half of the Tritons: else one request that only just fits into its
  time would keep all others out. What a name asks for beyond that is done in time only if others leave it the time. As
  long as no picture has told the pace, twice the rows that may wait count as what can be done in time. Where nothing
  else is at work, everything is accepted.

A request's cost, an upper bound of its UNet rows, is known from its small fields: a refused one's masks are never
decoded. Who is accepted waits in Triton, where the requests of all gateways meet in one order and the model decides
last. Not more go there than the Tritons paint and let wait together, nor more than `running`: a request that the model
refuses has had its masks decoded and sent for nothing. What is beyond waits here. This queue knows no requests but its
own gateway's.

What a request holds: until it works its body and the JSON read from it (`max_uploaded_bytes` for all bodies together);
while it works its texts and decoded masks, at most `max_mask_pixels` bytes, and a copy while they are sent; then its
picture.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from multsd_gateway.cost import Tritons
from multsd_gateway.errors import DeadlineExceededError, OverloadedError

OnPlace = Callable[[int], Awaitable[None]]  # with how many wait before this one

ASIDE = 32  # rows that take about as long as all the rest of a picture: its texts, its decoding
KNOWN_PICTURES = 5  # that the pace is known by
MOST_PROMISED = 0.5  # of all Tritons to the requests of one owner
NO_TIME = 0.05  # seconds: who has no more left had all of its time


LOOK_SECONDS = 1.0  # between looks whether there is room


@dataclass(eq=False, slots=True)
class _Ticket:
    """An accepted request. ends: by the clock, when its time is over; spent: seconds of one Triton that it had.

    owner: the name of its token; need: the share of all Tritons that it takes to be done in its time; promised: whether
    no other owner's request may make it late.
    """

    rows: int
    ends: float
    owner: str | None = None
    spent: float = 0.0
    need: float = 0.0
    promised: bool = True

    @property
    def work(self) -> int:
        """What it takes, in rows."""
        return self.rows + ASIDE


class Admission:
    """The queue of one gateway; one event loop owns it."""

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        waiting_rows: int,
        tritons: Callable[[], Tritons] = lambda: Tritons(1, 8, 40),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """waiting_rows: for each Triton; tritons: what is ready now."""
        self._running = running
        self._capacity = running + waiting
        self._waiting_rows = waiting_rows
        self._ready = tritons
        self._clock = clock
        self._present = 0
        self._working = 0
        self._accepted: list[_Ticket] = []  # until their pictures are there, in the order of their arrival
        self._queue: deque[_Ticket] = deque()  # those that do not work yet, the next at the front
        self._moved = asyncio.Event()  # a new one for every change of the queue
        self._counted = clock()  # until when `spent` is
        self._paces: deque[float] = deque(maxlen=KNOWN_PICTURES)  # of the last pictures, seconds of one Triton a row

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Count a request from its arrival to its reply. Raises OverloadedError."""
        if self._present >= self._capacity:
            self._count()
            ends = forecast(self._work(self._accepted), self._tritons()).ends
            raise OverloadedError(
                f"expected at most {self._capacity} requests at once, try again later",
                reason="requests",
                retry_after=self._whole(min(ends, default=0.0)),
            )
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    @asynccontextmanager
    async def slot(
        self, rows: int, seconds: float, on_place: OnPlace | None = None, *, owner: str | None = None
    ) -> AsyncIterator[None]:
        """Wait for a turn to work, first come, first served; on_place hears of every change while it waits.

        rows: its cost; seconds: how long it has; owner: the name of its token. Raises OverloadedError.
        """
        self._count()
        ticket = _Ticket(rows, self._clock() + seconds, owner)
        self._check(ticket)
        self._promise(ticket)
        self._accepted.append(ticket)
        try:
            await self._turn(ticket, on_place)
            try:
                yield
                self._learn(ticket)
            except (asyncio.CancelledError, DeadlineExceededError):
                self._learn(ticket, at_least=True)
                raise
            finally:
                self._working -= 1
        finally:
            self._count()
            self._accepted.remove(ticket)
            self._move()

    def _tritons(self) -> Tritons:
        ready = self._ready()
        return Tritons(ready.count, min(ready.painted, self._running), min(ready.capacity, self._running))

    def _check(self, new: _Ticket) -> None:
        """Raises OverloadedError where it would have to wait behind too many rows, or somebody would be late."""
        if not self._accepted:
            return
        tritons, work = self._tritons(), self._work(self._accepted)
        waiting, bound = self._accepted[tritons.painted :], self._waiting_rows * tritons.count
        if waiting and _rows(waiting) + new.rows > bound:
            starts = forecast(work, tritons).starts[tritons.painted :]
            raise OverloadedError(
                f"expected at most {bound} UNet rows to wait, found {_rows(waiting)} and {new.rows} more, "
                "try again later",
                reason="rows",
                retry_after=self._whole(_room(new.rows, [each.rows for each in waiting], starts, bound)),
            )
        (own,), left = self._work([new]), [self._left(each) for each in [*self._accepted, new]]
        heeded = [each.promised or each.owner == new.owner for each in self._accepted]
        if not in_time(work, own, left, heeded, tritons):
            raise OverloadedError(
                f"{_rows(self._accepted)} UNet rows are at work and {new.rows} more would not be done in time, "
                "try again later",
                reason="time",
                retry_after=self._whole(soonest(work, own, left, heeded, tritons)),
            )

    @property
    def _pace(self) -> float | None:
        """Seconds of one Triton that a row takes: the median, which one slow picture does not move; None: not known."""
        return sorted(self._paces)[(len(self._paces) - 1) // 2] if self._paces else None

    def _promise(self, ticket: _Ticket) -> None:
        """Let it count on being in time beside other owners' requests, unless its owner's do on too much already."""
        if self._pace is None:
            return
        seconds = (ticket.ends - self._counted) * self._tritons().count
        ticket.need = ticket.work * self._pace / seconds if seconds > 0 else math.inf
        promised = sum(each.need for each in self._accepted if each.owner == ticket.owner and each.promised)
        ticket.promised = promised + ticket.need <= MOST_PROMISED

    def _left(self, ticket: _Ticket) -> float:
        """The time that it has, in the unit of `_work`."""
        return 2.0 * self._waiting_rows if self._pace is None else ticket.ends - self._counted

    def _work(self, tickets: Sequence[_Ticket]) -> list[float]:
        """What is left of each, in seconds of one Triton; in rows as long as the pace is not known."""
        pace = self._pace
        return [each.work if pace is None else max(each.work * pace - each.spent, 0.0) for each in tickets]

    def _whole(self, seconds: float) -> int | None:
        """For Retry-After; None as long as the pace is not known."""
        return None if self._pace is None else max(1, math.ceil(seconds))

    def _count(self) -> None:
        """Give those that are painted their share of the time since the last change."""
        tritons, now = self._tritons(), self._clock()
        painted = self._accepted[: tritons.painted]
        if painted:
            share = (now - self._counted) * min(1.0, tritons.count / len(painted))
            for each in painted:
                each.spent += share
        self._counted = now

    def _learn(self, ticket: _Ticket, *, at_least: bool = False) -> None:
        """See how long a picture took. at_least: it was not done by then, which tells only of a slower pace.

        Where no pace is known it tells one only if it had all of its time: who gives up early would set any.
        """
        self._count()
        seen, known = ticket.spent / ticket.work, self._pace
        tells = ticket.ends - self._counted <= NO_TIME if known is None else seen > known
        if not at_least or (tells and seen):
            self._paces.append(seen)

    async def _turn(self, ticket: _Ticket, on_place: OnPlace | None) -> None:
        told = -1
        self._queue.append(ticket)
        try:
            while self._working >= self._tritons().capacity or self._queue[0] is not ticket:
                moved = self._moved
                # Those that work beyond what is painted wait in Triton, before all that wait here.
                place = max(self._accepted.index(ticket) - self._tritons().painted, 0)
                if on_place is not None and place != told:
                    await on_place(place)
                    told = place
                with suppress(TimeoutError):  # a Triton that has come back moves the queue, and tells nobody here
                    async with asyncio.timeout(LOOK_SECONDS):
                        await moved.wait()
            self._working += 1
        finally:
            self._queue.remove(ticket)
            self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


class Forecast(NamedTuple):
    """When each begins and is done, infinite where not until then; and what is left of it."""

    starts: list[float]
    ends: list[float]
    left: list[float]


def forecast(work: Sequence[float], tritons: Tritons, until: float = math.inf) -> Forecast:
    """How so much work each, in seconds of one Triton and in the order of arrival, gets done.

    Those that are painted share the Tritons evenly, and each that is done lets the next begin.
    """
    starts, ends, left = [math.inf] * len(work), [math.inf] * len(work), list(work)
    waiting, painted, now = deque(range(len(work))), list[int](), 0.0
    while waiting or painted:
        while waiting and len(painted) < tritons.painted:
            starts[waiting[0]] = now
            painted.append(waiting.popleft())
        seconds = max(1.0, len(painted) / tritons.count)  # in which each gets one of a Triton
        least = min(left[number] for number in painted)
        done = min(least, (until - now) / seconds)
        now += done * seconds
        for number in painted:
            left[number] -= done
            if done == least and not left[number]:
                ends[number] = now
        if done < least:
            break
        painted = [number for number in painted if left[number]]
    return Forecast(starts, ends, left)


def in_time(work: Sequence[float], new: float, left: Sequence[float], heeded: Sequence[bool], tritons: Tritons) -> bool:
    """Whether new work beside the other is done in its time and makes none of those late that it has to heed.

    left: of each, the new one last. Those that it need not heed take nothing from what the others may count on.
    """
    if not any(work):
        return True
    if 0.0 <= left[-1] < forecast([*work, new], tritons).ends[-1]:
        return False
    others = [each for each, counts in zip(work, heeded, strict=True) if counts]
    times = [each for each, counts in zip(left[:-1], heeded, strict=True) if counts]
    before, after = forecast(others, tritons).ends, forecast([*others, new], tritons).ends[:-1]
    return not any(earlier <= most < later for earlier, later, most in zip(before, after, times, strict=True))


def soonest(
    work: Sequence[float], new: float, left: Sequence[float], heeded: Sequence[bool], tritons: Tritons
) -> float:
    """Seconds after which the same new work, with as much time for it, will be in time."""
    *others, own = left
    low, high = 0.0, max(forecast(work, tritons).ends)
    for _ in range(10):  # to a thousandth
        middle = (low + high) / 2
        later = forecast(work, tritons, middle).left
        if in_time(later, new, [*(each - middle for each in others), own], heeded, tritons):
            high = middle
        else:
            low = middle
    return high


def _rows(tickets: Sequence[_Ticket]) -> int:
    return sum(each.rows for each in tickets)


def _room(rows: int, waiting: Sequence[int], starts: Sequence[float], bound: int) -> float:
    """When so many of those that wait have begun that so many rows more may wait, or none waits any more."""
    left = sum(waiting)
    for each, start in zip(waiting, starts, strict=True):
        left -= each
        if left + rows <= bound:
            return start
    return starts[-1]
