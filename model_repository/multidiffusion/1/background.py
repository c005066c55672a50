"""The event loop on which requests are answered."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any


class Background:
    """An event loop in a thread of its own, from the first coroutine on that it is given.

    Triton's Python backend has one for an `execute` that is a coroutine, and hands the coroutine over before it takes
    note of it: one that is done by then is an error in the server's log and is kept for ever.
    """

    def __init__(self, on_error: Callable[[BaseException], None]) -> None:
        """on_error: told what a coroutine raised."""
        self._on_error = on_error
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._begun: set[Future[None]] = set()  # the loop itself would forget them

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Have it run. From one thread, not the loop's own."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=run, args=[self._loop], name="answers", daemon=True)
            self._thread.start()
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._begun.add(future)
        future.add_done_callback(self._done)  # at once, where it is done by now

    def _done(self, future: "Future[None]") -> None:
        self._begun.discard(future)
        if not future.cancelled() and (error := future.exception()) is not None:
            self._on_error(error)

    def close(self) -> None:
        """Stop the loop and wait for its thread; what is not done by then is cancelled."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()


def run(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop until it is stopped. Not as `asyncio.run` ends one: a call in its executor may hang."""
    try:
        loop.run_forever()
        loop.run_until_complete(cancel_others())
    finally:
        loop.close()


async def cancel_others() -> None:
    """Cancel all other tasks of the running loop, and wait for them."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
