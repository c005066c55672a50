"""An event loop in which nothing takes time, so that a test of seconds need not wait for them."""

from __future__ import annotations

import asyncio
import selectors


class JumpingClock(selectors.SelectSelector):
    """What an event loop waits with; it does not wait, and takes note of how long it should have."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is not None:
            self.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time: when all wait, its clock jumps to what is due next."""

    def __init__(self) -> None:
        self._clock = JumpingClock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now
