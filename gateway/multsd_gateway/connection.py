"""The client's end of a request: noticing that it went away, and talking to it in server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from multsd_gateway.errors import ClientGoneError

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


class EventSender:
    """Sends server-sent events; the response starts with the first."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send = send
        self._headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.started = False

    async def start(self) -> None:
        """Send the response's head, once."""
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def event(self, name: str, data: Mapping[str, Any]) -> None:
        """Send one event with its JSON."""
        await self.data(event(name, data))

    async def data(self, content: bytes) -> None:
        """Send events that are text already."""
        await self.start()
        await self._send({"type": "http.response.body", "body": content, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


class EventStream(Response):
    """A response written by `work` as it goes. What work raises before it has sent anything is raised on."""

    media_type = "text/event-stream"

    def __init__(
        self, work: Callable[[EventSender], Awaitable[None]], *, on_error: Callable[[Exception], Mapping[str, Any]]
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work = work
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        sender = EventSender(send, self.headers)
        try:
            await self._work(sender)
        except Exception as error:
            if not sender.started:
                raise
            await sender.event("error", self._on_error(error))
        await sender.end()
