"""Client and AsyncClient: the same two calls, blocking and awaitable."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx

from multsd_client import protocol
from multsd_client.errors import MultsdError
from multsd_client.headers import authorization
from multsd_client.listening import Listener, OnPreview, OnProgress, OnQueued
from multsd_client.request import GenerationRequest
from multsd_client.result import GenerationResult
from multsd_client.retries import Attempts
from multsd_client.urls import service_url

LAST_WORD_S = 0.5  # after a deadline, in which the service may tell of it itself


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=min(seconds, 5.0))


def _patience(timeout: float, attempts: Attempts) -> httpx.Timeout:
    """How long the service may be silent: until the deadline at most."""
    return _timeout(min(timeout, max(attempts.left, 0.0) + LAST_WORD_S))


@contextmanager
def _from_environment() -> Iterator[None]:
    """Within it, what httpx takes from the environment and cannot use is a ValueError."""
    expected = "environment: expected proxies and certificates that httpx can use"
    try:
        yield
    except httpx.InvalidURL:  # which may quote a piece of a password
        raise ValueError(f"{expected}, found a proxy's URL that is none") from None
    except (ImportError, OSError) as error:  # a SOCKS proxy, a file that is missing
        raise ValueError(f"{expected}: {error}") from error


class Client:
    """Blocking client of one gateway; a context manager.

    token: the bearer token, if the service wants one. timeout: seconds without a sign of life from the service, no more
    than a request's deadline_s. retries: how often a request is tried again while the service is not there or full,
    until work on it is told of; its deadline_s holds for all attempts together. Unless retries is 0, refusals that say
    when the token's rate allows more do not count. transport: an httpx transport, for tests and proxies.

    Raises ValueError for a URL that is none, for a token that no header can carry, and for proxies and certificates of
    the environment that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 600.0,
        retries: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retries, self._timeout = retries, timeout
        service, headers = service_url(url), {**authorization(token), **protocol.PLAIN}
        with _from_environment():
            self._http = httpx.Client(
                base_url=service,
                headers=headers,
                timeout=_timeout(timeout),
                transport=transport,
                event_hooks={"response": [protocol.require_plain]},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def generate(
        self,
        request: GenerationRequest | Mapping[str, Any],
        *,
        on_queued: OnQueued | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        request_id: str | None = None,
    ) -> GenerationResult:
        """Paint one picture; `request` may be the API's own JSON.

        The callbacks are those of a Listener; previews come where the request has preview_every. Raises MultsdError;
        ValueError for what JSON cannot say, and for a request_id that no header can carry.
        """
        listener = Listener(on_queued=on_queued, on_progress=on_progress, on_preview=on_preview)
        attempts, body = Attempts(self._retries, protocol.deadline(request)), protocol.body(request)
        while True:
            try:
                return self._generate(body, listener, request_id, _patience(self._timeout, attempts))
            except MultsdError as error:
                if (seconds := attempts.pause(error)) is None:
                    raise
            time.sleep(seconds)
            body = protocol.within(body, attempts.left)

    def limits(self) -> Mapping[str, Any]:
        """What the service accepts, and with which checkpoint it paints. Raises MultsdError."""
        with protocol.transport(self._http.base_url):
            return protocol.plain_object(self._http.get(protocol.LIMITS_PATH))

    def _generate(
        self, body: Mapping[str, Any], listener: Listener, request_id: str | None, patience: httpx.Timeout
    ) -> GenerationResult:
        reader = protocol.ReplyReader(listener)
        with (
            protocol.transport(self._http.base_url, reader),
            self._http.stream(**protocol.post(body, request_id), timeout=patience) as response,
        ):
            if response.status_code != httpx.codes.OK:
                response.read()
                raise protocol.error_of(response)
            for line in response.iter_lines():
                if (result := reader.feed(line)) is not None:
                    return result
        raise protocol.ended(response, reader, request_id)

    def ready(self) -> bool:
        """Whether the service would take a request now.

        Raises MultsdError where nobody says so: ServiceUnavailableError when nobody answers, UnauthorizedError where a
        token is missing for that, ProtocolError for another service.
        """
        return self.why_not_ready() is None

    def why_not_ready(self) -> str | None:
        """Why the service would not take a request now, in its own words; None where it would. Raises as `ready`."""
        with protocol.transport(self._http.base_url):
            return protocol.why_not_ready(self._http.get(protocol.READY_PATH))


class AsyncClient:
    """Awaitable client of one gateway; an asynchronous context manager. Cancelling a call cancels its picture.

    token: the bearer token, if the service wants one. timeout: seconds without a sign of life from the service, no more
    than a request's deadline_s. retries: how often a request is tried again while the service is not there or full,
    until work on it is told of; its deadline_s holds for all attempts together. Unless retries is 0, refusals that say
    when the token's rate allows more do not count. transport: an httpx transport, for tests and proxies.

    Raises ValueError for a URL that is none, for a token that no header can carry, and for proxies and certificates of
    the environment that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout: float = 600.0,
        retries: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries, self._timeout = retries, timeout
        service, headers = service_url(url), {**authorization(token), **protocol.PLAIN}
        with _from_environment():
            self._http = httpx.AsyncClient(
                base_url=service,
                headers=headers,
                timeout=_timeout(timeout),
                transport=transport,
                event_hooks={"response": [protocol.require_plain_async]},
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def generate(
        self,
        request: GenerationRequest | Mapping[str, Any],
        *,
        on_queued: OnQueued | None = None,
        on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None,
        request_id: str | None = None,
    ) -> GenerationResult:
        """Paint one picture; `request` may be the API's own JSON.

        The callbacks are those of a Listener; previews come where the request has preview_every. Raises MultsdError;
        ValueError for what JSON cannot say, and for a request_id that no header can carry.
        """
        listener = Listener(on_queued=on_queued, on_progress=on_progress, on_preview=on_preview)
        attempts, body = Attempts(self._retries, protocol.deadline(request)), protocol.body(request)
        while True:
            try:
                return await self._generate(body, listener, request_id, _patience(self._timeout, attempts))
            except MultsdError as error:
                if (seconds := attempts.pause(error)) is None:
                    raise
            await asyncio.sleep(seconds)
            body = protocol.within(body, attempts.left)

    async def limits(self) -> Mapping[str, Any]:
        """What the service accepts, and with which checkpoint it paints. Raises MultsdError."""
        with protocol.transport(self._http.base_url):
            return protocol.plain_object(await self._http.get(protocol.LIMITS_PATH))

    async def _generate(
        self, body: Mapping[str, Any], listener: Listener, request_id: str | None, patience: httpx.Timeout
    ) -> GenerationResult:
        reader = protocol.ReplyReader(listener)
        with protocol.transport(self._http.base_url, reader):
            async with self._http.stream(**protocol.post(body, request_id), timeout=patience) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise protocol.error_of(response)
                async for line in response.aiter_lines():
                    if (result := reader.feed(line)) is not None:
                        return result
        raise protocol.ended(response, reader, request_id)

    async def ready(self) -> bool:
        """Whether the service would take a request now.

        Raises MultsdError where nobody says so: ServiceUnavailableError when nobody answers, UnauthorizedError where a
        token is missing for that, ProtocolError for another service.
        """
        return await self.why_not_ready() is None

    async def why_not_ready(self) -> str | None:
        """Why the service would not take a request now, in its own words; None where it would. Raises as `ready`."""
        with protocol.transport(self._http.base_url):
            return protocol.why_not_ready(await self._http.get(protocol.READY_PATH))
