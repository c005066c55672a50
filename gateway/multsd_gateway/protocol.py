"""Uvicorn's protocol for HTTP, except that it waits for no client for ever.

It cuts the connection of a client that takes nothing of its reply, and closes that of one that never says all of a
request's head, or that goes on sending a body after its reply.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger(__name__)

MAX_DRAINED_BYTES = 32 * 1024 * 1024  # of a body after its reply, at the least

# What the kernel holds beside what is under way. By itself it takes megabytes, and then no more until a third of them
# is free: a client that reads slowly would seem to take nothing for minutes.
UNSENT_BYTES = 64 * 1024


class _Transport:
    """A transport whose protocol is asked to close it, and whether it does."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]) -> None:
        self._transport = transport
        self.close = close
        self.is_closing = is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class PatientProtocol(H11Protocol):
    """Closing a connection waits until the client has taken what was written, which may be never.

    Where a reply is whole and the request is not, the connection is closed as soon as the client does, and until then
    what it sends is thrown away, so much and so long: closed at once, it would be reset, and the reply be lost.
    """

    # In which all of a request's head has to come, the first after the connection, another after its own first byte;
    # and in which a body may end after its reply.
    read_seconds: float
    write_seconds: float  # in which some of what was written has to be taken
    drained_bytes: int  # most of a body after its reply
    on_cut: Callable[[], None]
    _connection: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None
    _head_timer: asyncio.TimerHandle | None = None
    _drain_timer: asyncio.TimerHandle | None = None
    _drained = 0  # bytes

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._served: Any = self.app
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. A reply that begins before all of it has come says that the connection will be closed.

        So does that to a request with two lengths, as RFC 9112, 6.1, wants it: where a proxy takes the other one, what
        follows is another client's request, or a part of this one that would be answered in another's place.
        """
        cycle, app = self.cycle, cast("ASGIApp", self._served)
        two_lengths = {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope.get("headers", ())}

        async def send_close(message: Message) -> None:
            if message["type"] == "http.response.start" and (cycle.more_body or two_lengths):
                others = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"connection"]
                message = {**message, "headers": [*others, (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, send_close if scope["type"] == "http" else send)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came."""
        self._connection = transport
        _hold_little(transport)
        asked = _Transport(transport, self._close, self._is_closing)
        super().connection_made(cast("asyncio.Transport", asked))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        if self._drain_timer is None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._await_head()
            return
        self._drained += len(data)
        if self._drained > self.drained_bytes:
            self._close()

    def handle_events(self) -> None:
        """Some of a request may have come."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_head_timer()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Another protocol takes over."""
        self._stop_head_timer()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        """The reply is whole; the next request may have come already, or some of it."""
        super().on_response_complete()
        begun, _ = self.conn.trailing_data
        if begun and self.conn.their_state is h11.IDLE:
            self._await_head()

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
        self._stop_head_timer()
        self._stop_draining()

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.read_seconds, self.timeout_keep_alive_handler)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _is_closing(self) -> bool:
        return self._drain_timer is not None or self._connection.is_closing()

    def _close(self) -> None:
        """Close the connection; where a body is still to come, when that was drained or this is called again."""
        if self.conn.their_state is h11.SEND_BODY and not self._is_closing():
            self._drain_timer = self.loop.call_later(self.read_seconds, self._close)
            if self._connection.can_write_eof():
                with suppress(OSError):  # the client has gone
                    self._connection.write_eof()
            self.flow.resume_reading()
        else:
            self._stop_draining()
            self._connection.close()
        self._look()

    def _stop_draining(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None

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


def _hold_little(transport: asyncio.Transport) -> None:
    """Have the kernel take of what is written little more than the client does, where it can be told so."""
    connection, option = transport.get_extra_info("socket"), getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if connection is not None and option is not None:
        with suppress(OSError):  # no TCP, or the client has gone
            connection.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)


def patient_protocol(
    write_seconds: float, on_cut: Callable[[], None], *, read_seconds: float, max_body_bytes: int = 0
) -> type[PatientProtocol]:
    """The protocol as a server takes it. on_cut: is called for each connection that is cut.

    max_body_bytes: a body of so many, and its reply, get through whole also where the reply comes first.
    """
    told: dict[str, Any] = {
        "read_seconds": read_seconds,
        "write_seconds": write_seconds,
        "drained_bytes": max(MAX_DRAINED_BYTES, 2 * max_body_bytes),  # also where it comes in small chunks
        "on_cut": staticmethod(on_cut),
    }
    return type("ThisPatientProtocol", (PatientProtocol,), told)
