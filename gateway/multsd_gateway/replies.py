"""HTTP responses: errors in one shape, pictures as JSON or as themselves."""

from __future__ import annotations

import base64
import itertools
import json
import logging
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from multsd_client.errors import FieldNote
from multsd_client.pictures import MEDIA_TYPES, encode
from multsd_client.tensors import Progress, Queued, Update
from multsd_gateway.connection import event
from multsd_gateway.errors import GatewayError, InvalidRequestError, answer_for, error_body
from multsd_gateway.logs import request_id_var
from multsd_gateway.service import Painting
from multsd_gateway.stopwatch import server_timing

log = logging.getLogger(__name__)

SERVER_TIMING = "Server-Timing"
MAX_HEADER_BYTES = 2048  # many clients take 8 KB of headers in all, proxies 4
MAX_HEADER_TEXT = 300  # bytes of a message


def picture_reply(painting: Painting) -> Response:
    """The picture's own bytes; seed and warnings in headers."""
    headers = {"X-Multsd-Seed": str(painting.seed), SERVER_TIMING: server_timing(painting.stages)}
    if painting.warnings:
        headers["X-Multsd-Warnings"] = header_warnings(painting.warnings)
    return Response(painting.image, media_type=painting.media_type, headers=headers)


def json_reply(painting: Painting) -> Response:
    """The picture and all that made it as JSON."""
    return JSONResponse(painting.to_json(), headers={SERVER_TIMING: server_timing(painting.stages)})


def header_warnings(warnings: Sequence[FieldNote]) -> str:
    """Warnings as a JSON list in ASCII, shortened, and where they are too many how many more there are."""
    shown = [{"field": note.field, "message": _shortened(note.message, MAX_HEADER_TEXT)} for note in warnings]
    for count in range(len(shown), 0, -1):
        more = len(shown) - count
        text = json.dumps([*shown[:count], *([{"field": "", "message": f"and {more} more"}] if more else [])])
        if len(text) <= MAX_HEADER_BYTES:
            return text
    return json.dumps([{"field": "", "message": f"{len(shown)} warnings"}])


def _shortened(text: str, most: int) -> str:
    """As much of a text as JSON writes in so many bytes of ASCII: a character may take twelve."""
    sizes = itertools.accumulate(len(json.dumps(character)) - 2 for character in text)
    return text[: sum(1 for _ in itertools.takewhile(lambda size: size <= most, sizes))]


def told(error: Exception) -> dict[str, Any]:
    """An error as the caller is told it; what is the service's own fault is logged here."""
    answer, request_id = answer_for(error), request_id_var.get()
    if not isinstance(error, GatewayError):
        log.error("internal error", exc_info=error)
    elif answer.status >= 500:
        log.warning("%s: %s", type(error).__name__, error)
    elif isinstance(error, InvalidRequestError):
        log.info("refused: %s", ", ".join(note.field for note in error.errors))
    return error_body(error, request_id=request_id)


def error_reply(error: Exception) -> Response:
    """An error as a response."""
    answer = answer_for(error)
    headers = {} if answer.retry_after is None else {"Retry-After": str(answer.retry_after)}
    if answer.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(told(error), status_code=answer.status, headers=headers)


def update_event(update: Update) -> bytes:
    """What is told before the result, as an event. A preview is a few thousand pixels, so that it may be coded here."""
    if isinstance(update, Queued):
        return event("queued", {"position": update.position})
    if isinstance(update, Progress):
        return event("progress", {"step": update.step, "num_inference_steps": update.num_inference_steps})
    image = base64.b64encode(encode(update.image, "png")).decode("ascii")
    return event("preview", {"image": image, "media_type": MEDIA_TYPES["png"]})


def error_event(error: Exception) -> dict[str, Any]:
    """An error as the data of an `error` event, with the status that a plain reply would have had."""
    answer = answer_for(error)
    retry_after = {} if answer.retry_after is None else {"retry_after": answer.retry_after}
    return {"status": answer.status, **told(error), **retry_after}


async def handle_gateway_error(_request: Request, error: Exception) -> Response:
    return error_reply(error)


async def handle_http_error(_request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same shape."""
    if not isinstance(error, HTTPException):
        return error_reply(error)
    body = {"message": error.detail, "request_id": request_id_var.get()}
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)
