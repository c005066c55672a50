"""When a request is tried again: only where the service was not there or full, and no work was told of yet."""

from __future__ import annotations

import math
import time

from multsd_client.errors import MultsdError, ServiceUnavailableError

FIRST_PAUSE_S = 1.0  # doubled with every attempt, where the service does not say how long
LONGEST_PAUSE_S = 60.0
SHORTEST_DEADLINE_S = 0.1  # that the service takes
LONGEST_DEADLINE_S = 1e9  # longer is none, and may be no float


class Attempts:
    """The attempts of one request, all within its deadline.

    retries: how many there may be after the first; more, where the caller's own rate is used up and the service tells
    when it is not: then it is there, and takes the caller's requests one after another, however many they are.
    """

    def __init__(self, retries: int, deadline_s: float | None = None) -> None:
        """The first begins now. deadline_s: of all together, seconds; what is no time at all the service refuses."""
        self._retries = retries
        self._failed = 0
        self.end = math.inf  # on the monotonic clock
        if deadline_s is not None and 0 < deadline_s < LONGEST_DEADLINE_S:
            self.end = time.monotonic() + deadline_s

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.end - time.monotonic()

    def pause(self, error: MultsdError) -> float | None:
        """Seconds to wait after an attempt that has failed, or None for no other one: there may be no time for it."""
        if not _comes_round(error):
            self._failed += 1
        seconds = pause(error, attempt=max(self._failed, 1), retries=self._retries)
        return None if seconds is None or seconds >= self.left - SHORTEST_DEADLINE_S else seconds


def _comes_round(error: MultsdError) -> bool:
    return isinstance(error, ServiceUnavailableError) and error.limited and bool(error.retry_after)


def pause(error: MultsdError, *, attempt: int, retries: int) -> float | None:
    """Seconds to wait before another attempt, or None for none. attempt: how many have failed, this one counted."""
    if not isinstance(error, ServiceUnavailableError) or error.answered or attempt > retries:
        return None
    wanted = FIRST_PAUSE_S * 2.0 ** (attempt - 1) if error.retry_after is None else error.retry_after
    return min(wanted, LONGEST_PAUSE_S)
