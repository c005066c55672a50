"""How often each caller may ask: a token bucket for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

from multsd_gateway.errors import RateLimitedError


class RateLimit:
    """`burst` requests at once, refilled at `per_minute`. Callers are the known tokens, so there are few."""

    def __init__(self, *, per_minute: float, burst: int, clock: Callable[[], float] = monotonic) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # requests left, and when that was counted

    def take(self, caller: str) -> None:
        """Count one request. Raises RateLimitedError."""
        now = self._clock()
        left, counted = self._buckets.get(caller, (float(self._burst), now))
        left = min(self._burst, left + (now - counted) * self._per_second)
        if left < 1:
            wait = max(1, math.ceil((1 - left) / self._per_second))
            raise RateLimitedError(
                f"expected at most {self._per_second * 60:g} pictures a minute, found more", retry_after=wait
            )
        self._buckets[caller] = (left - 1, now)
