"""Around every request: who asks, how often, and headers that keep browsers from guessing."""

from __future__ import annotations

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multsd_gateway.errors import RateLimitedError, UnauthorizedError
from multsd_gateway.outcome import outcome_of
from multsd_gateway.rate import RateLimit
from multsd_gateway.replies import error_reply
from multsd_gateway.tokens import Tokens

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# What a page of another origin may read of a reply.
EXPOSED_HEADERS = (
    "X-Request-Id",
    "X-Multsd-Seed",
    "X-Multsd-Warnings",
    "Retry-After",
    "Server-Timing",
    "Heartbeat-Seconds",
    "WWW-Authenticate",
)
# Of pages their own policy holds; nothing else is ever to be shown as one.
NOT_A_PAGE = "default-src 'none'; frame-ancestors 'none'"


class SecurityHeaders:
    """ASGI middleware: adds HEADERS where the response does not say otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not headers.get("content-type", "").startswith("text/html"):
                    headers.setdefault("Content-Security-Policy", NOT_A_PAGE)
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Authentication:
    """ASGI middleware: refuses requests without a known token, and pictures past its owner's rate."""

    def __init__(self, app: ASGIApp, *, tokens: Tokens, rate: RateLimit, open_paths: Collection[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._rate = rate
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self._open:
            await self._app(scope, receive, send)
            return
        try:
            owner = self._tokens.owner(Headers(scope=scope).get("authorization"))
            outcome_of(scope).token = owner
            if scope["method"] == "POST":
                self._rate.take(owner)
        except (UnauthorizedError, RateLimitedError) as error:
            await error_reply(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)
