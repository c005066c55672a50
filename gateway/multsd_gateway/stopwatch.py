"""Where the time of one request goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Seconds by stage, each measured around a `with`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._began = time.perf_counter()

    def total(self) -> float:
        """Seconds since it was made."""
        return time.perf_counter() - self._began

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure the body."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = time.perf_counter() - began


def server_timing(seconds: Mapping[str, float]) -> str:
    """The value of a Server-Timing header (W3C Server Timing), in milliseconds."""
    return ", ".join(f"{stage};dur={value * 1000:.3f}" for stage, value in seconds.items())
