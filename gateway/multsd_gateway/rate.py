"""How often each caller may ask: a token bucket for each."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from time import monotonic

from multsd_gateway.errors import RateLimitedError

LONGEST_PROMISE_S = 60  # the client waits no longer before it asks again
LATE_S = 0.5  # after the time that it was told a request may still be on its way


@dataclass(frozen=True, slots=True)
class _Promise:
    """A place that a request was told of. free: when it is; due: when the request was told to come, up to 1 s later."""

    free: float
    due: float


class RateLimit:
    """`burst` requests at once, refilled at `per_minute`. Callers are the known tokens, so there are few.

    Requests that are refused together are told to come back one after another, each when a place becomes free that
    none before it was told of. Until then, and LATE_S longer, the place is kept from requests that come sooner; one
    that comes then has it, whose ever it is, as one request of a caller cannot be told from another.

    Where a request is taken and another place is left that is kept for none, some who were told did not come: promises
    still to come are forgotten.
    """

    def __init__(self, *, per_minute: float, burst: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, and when that was counted
        self._promises: dict[str, deque[_Promise]] = {}  # in the order of their places

    def take(self, caller: str) -> None:
        """Count one request. Raises RateLimitedError."""
        now = self._clock()
        left, counted = self._buckets.get(caller, (float(self._burst), now))
        promises = self._promises.setdefault(caller, deque())
        while promises and promises[0].due + LATE_S < now:
            promises.popleft()
        # Places that are kept lie on top of the burst: what is refilled meanwhile is not lost.
        most = self._burst + sum(1 for _ in takewhile(lambda promise: promise.free <= now, promises))
        before, after = _kept(promises, now)
        left = min(most, left + (now - counted) * self._per_second)
        if left < 1 + before:
            free = now + (1 + before + after - left) / self._per_second
            raise RateLimitedError(
                f"expected at most {self._per_second * 60:g} pictures a minute, found more",
                retry_after=self._promise(promises, now, free),
            )
        self._buckets[caller] = (left - 1, now)
        if left - 1 >= 1 + before + after:
            while promises and promises[-1].free > now:
                promises.pop()

    def _promise(self, promises: deque[_Promise], now: float, free: float) -> int:
        """In how many seconds to come back. free: when the first place is that is kept for none.

        Past the longest promise all are told the last place: who never comes back must not drive the others away.
        """
        last = promises[-1].free if promises else now
        following = max(free, last + 1 / self._per_second) if last > now else free
        if following > now + LONGEST_PROMISE_S and last > now:
            return _seconds(last - now)
        wait = _seconds(following - now)
        promises.append(_Promise(following, now + wait))
        return wait


def _kept(promises: deque[_Promise], now: float) -> tuple[int, int]:
    """How many places are kept from the request that comes now: before its own, if it was told of one, and after it.

    The first promise that is due is taken to be its own, and is kept no more.
    """
    kept = list(takewhile(lambda promise: promise.free <= now, promises))
    for number, promise in enumerate(kept):
        if promise.due <= now:
            promises.remove(promise)
            return number, len(kept) - number - 1
    return len(kept), 0


def _seconds(wait: float) -> int:
    return max(1, math.ceil(wait))
