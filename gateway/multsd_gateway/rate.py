"""How often each caller may ask: a token bucket for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from multsd_gateway.errors import RateLimitedError

LONGEST_PROMISE_S = 60  # the client waits no longer before it asks again


class RateLimit:
    """`burst` requests at once, refilled at `per_minute`. Callers are the known tokens, so there are few.

    Requests that are refused together are told to come back one after another, each when a place becomes free that
    none before it was told of. A place is kept for nobody, as one request of a caller cannot be told from another.
    """

    def __init__(self, *, per_minute: float, burst: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, and when that was counted
        self._promised: dict[str, float] = {}  # when the last place that was told of becomes free

    def take(self, caller: str) -> None:
        """Count one request. Raises RateLimitedError."""
        now = self._clock()
        left, counted = self._buckets.get(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - counted) * self._per_second)
        if left < 1:
            wait = max(1, math.ceil(self._promise(caller, now, now + (1 - left) / self._per_second) - now))
            raise RateLimitedError(
                f"expected at most {self._per_second * 60:g} pictures a minute, found more", retry_after=wait
            )
        self._buckets[caller] = (left - 1, now)

    def _promise(self, caller: str, now: float, free: float) -> float:
        """When to come back. free: when the next place is.

        Past the longest promise all are told the last place: who never comes back must not drive the others away.
        """
        last = self._promised.get(caller, now)
        following = free if last <= now else max(free, last + 1 / self._per_second)
        if following <= now + LONGEST_PROMISE_S or last <= now:
            self._promised[caller] = last = following
        return last
