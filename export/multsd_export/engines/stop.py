"""Ctrl-C and SIGTERM while foreign code runs that calls back into Python."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether this process was asked to stop. It may be read from any thread."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """End what is under way if it was.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Until the block ends SIGINT and SIGTERM are only noted, and heeded when it ends.

    Python's own handler raises wherever the interpreter happens to be; what is raised inside a call from C++ is lost
    there. Signals that are ignored stay so, and outside the main thread nothing changes.

    Raises:
        KeyboardInterrupt: one came, whether or not the block ended with an error.
    """
    stop = Stop()

    def note(_signal: int, _frame: object) -> None:
        stop.requested = True

    kept = {}
    if threading.current_thread() is threading.main_thread():
        kept = {each: signal.getsignal(each) for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        for each in kept:
            signal.signal(each, note)
        yield stop
    finally:
        for each, handler in kept.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)  # None: not set from Python
        stop.check()
