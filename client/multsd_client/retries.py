"""When a request is tried again: only where the service was not there or full, and no work was told of yet."""

from __future__ import annotations

from multsd_client.errors import MultsdError, ServiceUnavailableError

FIRST_PAUSE_S = 1.0  # doubled with every attempt, where the service does not say how long
LONGEST_PAUSE_S = 60.0


def pause(error: MultsdError, *, attempt: int, retries: int) -> float | None:
    """Seconds to wait before another attempt, or None for none. attempt: how many have failed, this one counted."""
    if not isinstance(error, ServiceUnavailableError) or error.answered or attempt > retries:
        return None
    wanted = FIRST_PAUSE_S * 2.0 ** (attempt - 1) if error.retry_after is None else error.retry_after
    return min(wanted, LONGEST_PAUSE_S)
