"""The client's end of a request: noticing that it went away, and talking to it in server-sent events.

Nobody waits for a client for ever: each piece of an event has so many seconds to find room on the way to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from multsd_gateway.errors import ClientGoneError, answer_for
from multsd_gateway.outcome import Outcome, outcome_of

T = TypeVar("T")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run work; cancel it when the client goes away. Its body must have been read. Raises ClientGoneError."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client closed the connection")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One event as it is sent."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


PIECE = 64 * 1024  # bytes that are sent at once, and no more until the client has taken most of them
HEARTBEAT = b": heartbeat\n\n"  # a comment, which every reader of events passes over


class EventSender:
    """Sends server-sent events; the response starts with the first.

    Whatever sends raises ClientGoneError once there was no room for a piece for `write_seconds`; `lost` is true then.
    """

    def __init__(self, send: Send, headers: Mapping[str, str], *, write_seconds: float) -> None:
        self._send_for_ever = send
        self._write_seconds = write_seconds
        self.lost = False
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self._turn = asyncio.Lock()  # whoever sends an event of several pieces
        self._started = asyncio.Event()
        self._sent_at = 0.0  # in the event loop's time

    @property
    def started(self) -> bool:
        """Whether the response's head was sent."""
        return self._started.is_set()

    async def start(self) -> None:
        """Send the response's head, once."""
        if not self.started:
            self._note()
            self._started.set()
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def _send(self, message: Message) -> None:
        if self.lost:
            raise ClientGoneError("the client took nothing")
        try:
            async with asyncio.timeout(self._write_seconds):
                await self._send_for_ever(message)
        except TimeoutError:
            self.lost = True
            raise ClientGoneError(f"the client took nothing for {self._write_seconds:g} s") from None

    async def keep_alive(self, seconds: float) -> None:
        """Send a heartbeat whenever the started response has been silent for so long; until cancelled."""
        await self._started.wait()
        clock = asyncio.get_running_loop().time
        while True:
            if (left := self._sent_at + seconds - clock()) > 0:
                await asyncio.sleep(left)
            else:
                await self.data(HEARTBEAT)

    async def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Send one event with its JSON."""
        await self.data(event(name, data))

    async def data(self, content: bytes) -> None:
        """Send events that are text already."""
        async with self._turn:
            await self.start()
            for begin in range(0, len(content), PIECE):
                self._note()
                piece = content[begin : begin + PIECE]
                await self._send({"type": "http.response.body", "body": piece, "more_body": True})
            self._note()

    async def end(self) -> None:
        """Send that the response is whole."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _note(self) -> None:
        self._sent_at = asyncio.get_running_loop().time()


class EventStream(Response):
    """A response written by `work` as it goes. What work raises before it has sent anything is raised on.

    The `status` of the event that on_error makes is the request's outcome: its head has said 200 long before.
    A client that takes nothing for `write_seconds` has gone: what is left of its response is not sent, and whoever
    serves it is to close the connection of a response that was not ended.

    While work has nothing to say, a heartbeat every so many seconds keeps proxies from closing the connection. The
    header Heartbeat-Seconds promises it: a reader that hears nothing for longer has lost the connection.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        work: Callable[[EventSender], Awaitable[None]],
        *,
        on_error: Callable[[Exception], Mapping[str, Any]],
        heartbeat_seconds: float,
        write_seconds: float,
    ) -> None:
        promise = {"Heartbeat-Seconds": f"{heartbeat_seconds:g}"}
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **promise})
        del self.headers["content-length"]
        self._work = work
        self._on_error = on_error
        self._heartbeat_seconds = heartbeat_seconds
        self._write_seconds = write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        sender, outcome = EventSender(send, self.headers, write_seconds=self._write_seconds), outcome_of(scope)
        outcome.status = 500  # of a stream that is cut off
        try:
            await self._tell(sender, outcome)
        except ClientGoneError as error:
            if not sender.lost:
                raise
            outcome.status = answer_for(error).status

    async def _tell(self, sender: EventSender, outcome: Outcome) -> None:
        try:
            await self._work_with_heartbeats(sender)
            outcome.status = None
        except Exception as error:
            if not sender.started:
                outcome.status = None
                raise
            data = self._on_error(error)
            outcome.status = data["status"]
            await sender.event("error", data)
        await sender.end()

    async def _work_with_heartbeats(self, sender: EventSender) -> None:
        """Work to its end, or until a heartbeat finds no room."""
        working = asyncio.ensure_future(self._work(sender))
        beating = asyncio.ensure_future(sender.keep_alive(self._heartbeat_seconds))
        try:
            await asyncio.wait({working, beating}, return_when=asyncio.FIRST_COMPLETED)
            await (working if working.done() else beating)
        finally:
            working.cancel()
            beating.cancel()
            await asyncio.gather(working, beating, return_exceptions=True)
