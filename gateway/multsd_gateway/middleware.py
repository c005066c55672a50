"""Around every request: its id, one log line, and the last net for what nobody caught."""

from __future__ import annotations

import logging
import re
import time
import uuid
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multsd_gateway.errors import INTERNAL
from multsd_gateway.logs import FIELDS, request_id_var
from multsd_gateway.outcome import outcome_of
from multsd_gateway.replies import error_reply

log = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"

_USABLE = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def usable_id(offered: str | None) -> str:
    """The id that a client offers, or a new one where it offers none or one unfit for headers and logs."""
    return offered if offered is not None and _USABLE.fullmatch(offered) else uuid.uuid4().hex


class RequestIds:
    """ASGI middleware: takes or makes the request id, returns it in a header, logs the outcome."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = usable_id(Headers(scope=scope).get(REQUEST_ID))
        request_id_var.set(request_id)
        status, began = 0, time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            _log(scope, status or INTERNAL.status, time.monotonic() - began)


class ServerErrors:
    """ASGI middleware: answers what nobody caught; what is added around it sees a reply like any other."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if started:
                raise
            await error_reply(error)(scope, receive, send)


def _log(scope: Scope, head: int, seconds: float) -> None:
    """The request's line in the access log. head: the status that the reply began with."""
    outcome = outcome_of(scope)
    seconds = round(seconds, 6)
    fields = {
        "method": scope["method"],
        "path": quote(scope["path"][:100]),
        "status": outcome.status or head,
        "seconds": seconds,
        "token": outcome.token,
    }
    level = logging.DEBUG if scope["path"] in ("/healthz", "/readyz") else logging.INFO
    text = f"{fields['method']} {fields['path']} {fields['status']} {seconds * 1000:.0f} ms"
    if outcome.token is not None:
        text += f", token {outcome.token}"
    log.log(level, "%s", text, extra={FIELDS: fields})
