"""Ctrl-C and SIGTERM while foreign code runs that calls back into Python."""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
READ_BYTES = 4096


class Stop:
    """Whether this process was asked to stop. It may be read from any thread."""

    def __init__(self) -> None:
        self._requested = False
        self._arrivals: socket.socket | None = None  # non-blocking; the number of every signal, a byte each

    @property
    def requested(self) -> bool:
        """Whether it was asked, also while the main thread runs no Python and with it no handler."""
        self._read(self._arrivals)
        return self._requested

    def _read(self, arrivals: socket.socket | None) -> None:
        with suppress(BlockingIOError):
            while arrivals and not self._requested and (numbers := arrivals.recv(READ_BYTES)):
                if not set(SIGNALS).isdisjoint(numbers):  # of all signals that have a handler
                    self.note()

    def note(self, *_: object) -> None:
        """It was asked. A signal's handler."""
        self._requested = True

    def check(self) -> None:
        """End what is under way if it was.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.requested:
            raise KeyboardInterrupt

    @contextmanager
    def arrivals(self) -> Iterator[None]:
        """Until the block ends, signals' numbers are read from where the interpreter writes them at once."""
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            self._arrivals = reader
            try:
                yield
            finally:
                signal.set_wakeup_fd(before)
                self._arrivals = None
                self._read(reader)


@contextmanager
def noted_signals() -> Iterator[Stop]:
    """Until the block ends SIGINT and SIGTERM are only noted, and heeded when it ends.

    Python's own handler raises wherever the interpreter happens to be; what is raised inside a call from C++ is lost
    there. And any handler in Python waits for the main thread to run Python again, which may be hours in such a call
    while other threads call back; so what has arrived is read as well. Signals that are ignored stay so, and outside
    the main thread nothing changes.

    Raises:
        KeyboardInterrupt: one came, whether or not the block ended with an error.
    """
    stop = Stop()
    with ExitStack() as undo:
        undo.callback(stop.check)
        if threading.current_thread() is threading.main_thread():
            undo.enter_context(stop.arrivals())
            for each in SIGNALS:
                handler = signal.getsignal(each)
                if handler is not signal.SIG_IGN:
                    # None: not set from Python
                    undo.callback(signal.signal, each, signal.SIG_DFL if handler is None else handler)
                    signal.signal(each, stop.note)
        yield stop
