"""The wire format that the sync and the async client share: request body, event stream, replies, errors."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from PIL import Image

from multsd_client.errors import (
    DeadlineExceededError,
    FieldNote,
    GenerationFailedError,
    InvalidRequestError,
    MultsdError,
    ProtocolError,
    ServiceUnavailableError,
    UnauthorizedError,
)
from multsd_client.headers import header_value
from multsd_client.listening import Listener
from multsd_client.request import GenerationRequest
from multsd_client.result import GenerationResult, whole
from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_client.tensors import Preview, Progress, Queued, Update, is_work
from multsd_client.urls import shown

STREAM_PATH = "/multsd/stream"
LIMITS_PATH = "/limits"
READY_PATH = "/readyz"
REQUEST_ID = "X-Request-Id"
# Replies as they are: a few kilobytes that unpack to gigabytes would be in memory before anybody looked at them.
PLAIN = {"Accept-Encoding": "identity"}
EVENT_STREAM = "text/event-stream"

# What a reverse proxy or load balancer says in pages of its own, where the service is away, full or silent.
_OF_PROXIES = (429, 502, 503, 504)


def body(request: GenerationRequest | Mapping[str, Any]) -> Mapping[str, Any]:
    """The API's JSON of a typed request, or the API's own as it is. Raises ValueError."""
    return request.to_json() if isinstance(request, GenerationRequest) else request


def deadline(request: GenerationRequest | Mapping[str, Any]) -> float | None:
    """Seconds that a request has; None where it has no deadline, and for what the service refuses as one."""
    if isinstance(request, GenerationRequest):
        return request.deadline_s
    try:
        seconds = float(request["deadline_s"])  # the API takes numeric strings, too
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) else None


def within(body: Mapping[str, Any], seconds: float) -> Mapping[str, Any]:
    """The same request with so many seconds left, at the least what the service takes for a deadline."""
    return body if math.isinf(seconds) else {**body, "deadline_s": max(seconds, SHORTEST_DEADLINE_S)}


def post(body: Mapping[str, Any], request_id: str | None) -> dict[str, Any]:
    """What to send, as arguments of httpx. Raises ValueError."""
    return {
        "method": "POST",
        "url": STREAM_PATH,
        "json": body,
        "headers": {REQUEST_ID: header_value(request_id, "request_id")} if request_id else {},
    }


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; data is its JSON."""

    name: str
    data: Mapping[str, Any]


@dataclass(slots=True)
class EventReader:
    """Puts events together from the lines of a text/event-stream (WHATWG HTML, 9.2.6)."""

    _name: str = "message"
    _data: list[str] = field(default_factory=list)

    def feed(self, line: str) -> Event | None:
        """Take one line without its end; an event when the line completes one. Raises ProtocolError."""
        if line:
            self._take(line)
            return None
        name, data = self._name, self._data
        self._name, self._data = "message", []
        return Event(name, _json_object("\n".join(data))) if data else None

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._name = value
        elif name == "data":
            self._data.append(value)


def read_event(event: Event, *, answered: bool = False) -> Update | GenerationResult | None:
    """What an event says; None for a kind this client does not know.

    Raises MultsdError for `error` events. answered: whether work has been told of before; see ServiceUnavailableError.
    """
    if (read := _UPDATES.get(event.name)) is not None:
        try:
            return read(event.data)
        except KeyError as error:
            raise ProtocolError(f"{event.name} event: expected {error.args[0]}, found {sorted(event.data)}") from None
        except Exception as error:  # Pillow's parsers raise nearly anything on broken files
            raise ProtocolError(f"{event.name} event: {error}") from None
    if event.name == "result":
        return GenerationResult.from_json(event.data)
    if event.name == "error":
        wait = event.data.get("retry_after")
        retry_after = wait if isinstance(wait, int | float) and wait >= 0 else None
        raise _error(event.data.get("status", 500), event.data, retry_after=retry_after, answered=answered)
    return None


def _preview(data: Mapping[str, Any]) -> Preview:
    with Image.open(io.BytesIO(base64.b64decode(data["image"], validate=True)), formats=("PNG", "WEBP")) as image:
        return Preview(np.asarray(image.convert("RGB")))


_UPDATES: Mapping[str, Callable[[Mapping[str, Any]], Update]] = {
    "queued": lambda data: Queued(whole(data["position"])),
    "progress": lambda data: Progress(whole(data["step"]), whole(data["num_inference_steps"])),
    "preview": _preview,
}


class ReplyReader:
    """Follows a stream of events, line by line, to its result.

    answered: whether work on the picture has been told of. The stream's head comes before the model is asked, and a
    place in the queue has cost nothing.
    """

    def __init__(self, listener: Listener) -> None:
        self._events = EventReader()
        self._listener = listener
        self.answered = False

    def feed(self, line: str) -> GenerationResult | None:
        """Take one line; the result when it completes one. Raises MultsdError."""
        event = self._events.feed(line)
        update = None if event is None else read_event(event, answered=self.answered)
        if update is None or isinstance(update, GenerationResult):
            return update
        self.answered = self.answered or is_work(update)
        self._listener.tell(update)
        return None


def ended(response: httpx.Response, reader: ReplyReader, request_id: str | None) -> MultsdError:
    """The exception for a reply that came to an end without a result or an error.

    A proxy that speaks HTTP/1.0 to the service ends its own reply so, too, when the service has gone.
    """
    message = f"{shown(response.url)}: expected a result or an error, found the reply's end"
    if response.headers.get("Content-Type", "").startswith(EVENT_STREAM):
        return ServiceUnavailableError(message, request_id=request_id, answered=reader.answered)
    return ProtocolError(message, request_id=request_id)


def plain_object(response: httpx.Response) -> Mapping[str, Any]:
    """The JSON object of a reply. Raises MultsdError."""
    if not response.is_success:
        raise error_of(response)
    return _json_object(response.text)


def why_not_ready(response: httpx.Response) -> str | None:
    """What a reply of READY_PATH says is missing; None where nothing is.

    Raises MultsdError for one that tells nothing of that: a token is missing, or another service answers.
    """
    if response.is_success:
        return None
    if response.status_code not in _OF_PROXIES:  # the service itself says 503
        raise error_of(response)
    try:
        data = _json_object(response.text)
    except ProtocolError:
        data = {}
    return str(data.get("message", f"not ready: HTTP {response.status_code}"))


def error_of(response: httpx.Response) -> MultsdError:
    """The exception for a reply that is not a picture; its body must have been read."""
    try:
        data = _json_object(response.text)
    except ProtocolError:
        data = {}
    if "message" not in data:
        unknown = f"{shown(response.url)}: expected the multsd API, found HTTP {response.status_code}"
        if response.status_code not in _OF_PROXIES:
            return ProtocolError(unknown)
        data = {"message": unknown}
    retry_after = response.headers.get("Retry-After", "")
    return _error(response.status_code, data, retry_after=float(retry_after) if retry_after.isdecimal() else None)


def require_plain(response: httpx.Response) -> None:
    """Look at a reply's head, before its body is read. Raises ProtocolError for one that is compressed all the same."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise ProtocolError(
            f"{shown(response.url)}: expected a reply without Content-Encoding, found {encoding[:40]!r}"
        )


async def require_plain_async(response: httpx.Response) -> None:
    """The same, as AsyncClient calls it."""
    require_plain(response)


@contextmanager
def transport(url: httpx.URL, reader: ReplyReader | None = None) -> Iterator[None]:
    """Within it, what httpx raises becomes a MultsdError. reader: of the reply, where that is a stream."""
    try:
        yield
    except httpx.LocalProtocolError:  # its text is the header's, which may be the token's
        raise InvalidRequestError(f"{shown(url)}: expected a request that HTTP can carry, found another") from None
    except httpx.RequestError as error:
        raise _transport_error(error, url, answered=reader is not None and reader.answered) from error


def _transport_error(error: httpx.RequestError, url: httpx.URL, *, answered: bool) -> MultsdError:
    """The exception for a request without a (whole) reply. answered: see ServiceUnavailableError."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlineExceededError(f"{shown(url)}: no reply in time")
    return ServiceUnavailableError(f"{shown(url)}: {error or type(error).__name__}", answered=answered)


def _error(status: int, data: Mapping[str, Any], *, retry_after: float | None, answered: bool = False) -> MultsdError:
    message, request_id = str(data.get("message", f"HTTP {status}")), data.get("request_id")
    if status in (400, 413, 422):
        return InvalidRequestError(message, errors=_notes(data.get("errors")), request_id=request_id)
    if status == 401:
        return UnauthorizedError(message, request_id=request_id)
    if status in (429, 502, 503):
        return ServiceUnavailableError(
            message, retry_after=retry_after, request_id=request_id, answered=answered, limited=status == 429
        )
    if status in (408, 504):
        return DeadlineExceededError(message, request_id=request_id)
    return GenerationFailedError(message, request_id=request_id)


def _notes(errors: object) -> list[FieldNote]:
    """The faults of a refused request; what is none is left out, there is still the message."""
    found = [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []
    return [FieldNote(str(each.get("field", "")), str(each.get("message", ""))) for each in found]


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise ProtocolError("reply: expected JSON") from None
    if not isinstance(value, dict):
        raise ProtocolError(f"reply: expected a JSON object, found {type(value).__name__}")
    return value
