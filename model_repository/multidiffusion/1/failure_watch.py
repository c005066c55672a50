"""Whether a network that fails has failed for good, as all do that compute on a GPU whose context is lost."""

import asyncio
from collections.abc import Awaitable, Callable

from errors import NetworkError, SilentNetworkError

CHECK_SECONDS = 1.0  # between two checks


class FailureWatch:
    """Checks a network from a call on that failed, until any call works. Not for threads: one event loop owns it.

    Triton goes on calling such a network ready. A call may have failed for what it asked, so a check is one that works
    whenever any does.
    """

    def __init__(self, *, seconds: float, give_up: Callable[[NetworkError], None]) -> None:
        """seconds: in which every call fails, after which `give_up` is called with the last error; 0: never."""
        self._seconds = seconds
        self._give_up = give_up
        self._answers = 0
        self._watching: asyncio.Task[None] | None = None  # the loop itself would forget it

    def failed(self, check: Callable[[], Awaitable[object]]) -> None:
        """A call has failed. check: makes a call; raises NetworkError."""
        if self._seconds and (self._watching is None or self._watching.done()):
            self._watching = asyncio.ensure_future(self._watch(check))

    def answered(self) -> None:
        """A call has worked."""
        self._answers += 1

    async def _watch(self, check: Callable[[], Awaitable[object]]) -> None:
        before, loop = self._answers, asyncio.get_running_loop()
        ends = loop.time() + self._seconds
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await check()
            except SilentNetworkError:
                return  # it hangs, which ends its requests in another way
            except NetworkError as error:
                if self._answers > before:
                    return
                if loop.time() >= ends:
                    self._give_up(error)
                    return
            else:
                return
