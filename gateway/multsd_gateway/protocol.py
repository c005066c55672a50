"""Uvicorn's protocol for HTTP, except that it cuts the connection of a client that takes nothing of its reply."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)


class _Transport:
    """A transport whose protocol is asked to close it."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport = transport
        self.close = close

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(H11Protocol):
    """Closing a connection waits until the client has taken what was written, which may be never."""

    write_seconds: float  # in which some of what was written has to be taken
    on_cut: Callable[[], None]
    _connection: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        self._connection = transport
        super().connection_made(cast("asyncio.Transport", _Transport(transport, self._close)))

    def pause_writing(self) -> None:
        """Too much is waiting to be taken."""
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        """Most of it was taken; of a connection that is closed the rest has to be, too."""
        super().resume_writing()
        if self._connection.is_closing():
            self._look()
        else:
            self._stop()

    def eof_received(self) -> None:
        """The client sends no more: the connection is closed."""
        super().eof_received()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        super().connection_lost(exc)
        self._stop()

    def _close(self) -> None:
        self._connection.close()
        self._look()

    def _look(self, before: float = math.inf) -> None:
        """Cut the connection where no less is left than `before`; look again later."""
        self._stop()
        left = self._connection.get_write_buffer_size()
        if left >= before:
            log.info("a client took nothing for %g s, %d bytes are left", self.write_seconds, left)
            self.on_cut()
            self._connection.abort()
        elif left:
            self._timer = self.loop.call_later(self.write_seconds, self._look, left)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def patient_protocol(write_seconds: float, on_cut: Callable[[], None]) -> type[PatientProtocol]:
    """The protocol as a server takes it. on_cut: is called for each connection that is cut."""
    told: dict[str, Any] = {"write_seconds": write_seconds, "on_cut": staticmethod(on_cut)}
    return type("ThisPatientProtocol", (PatientProtocol,), told)
