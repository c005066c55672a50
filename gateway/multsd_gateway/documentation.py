"""What OpenAPI says about the endpoints: bodies are read by hand, so their schemas are stated here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse

from multsd_gateway.schema import MultsdRequest

API = """Paint a picture from a background prompt and any number of regions, each a mask with a prompt of its own.

Numbers may be JSON numbers or numeric strings. `null` means left out. Errors are
`{"message", "errors": [{"field", "message"}], "request_id"}`. Every reply carries `X-Request-Id`, the caller's own
where it sent one of at most 64 letters, digits, dots, dashes and underscores."""


class Note(BaseModel):
    """A remark on one field of the request."""

    field: str = Field(description="Name in the request's JSON, such as masks[0].")
    message: str


class ErrorReply(BaseModel):
    """Every error's body."""

    message: str
    request_id: str
    errors: list[Note] = Field(default=[], description="With status 400: each fault that was found.")


class PictureReply(BaseModel):
    """A finished picture."""

    image: str = Field(description="The picture as base64, JPEG unless output_format says otherwise.")
    media_type: str = Field(examples=["image/jpeg"])
    seed: int = Field(description="The seed that was used.")
    warnings: list[Note] = Field(description="What was asked for and not, or not quite, done.")
    parameters: dict[str, Any] = Field(description="Every parameter that was used, under the request's names.")
    timings: dict[str, float] = Field(description="Seconds by part of the work.")
    unet_rows: int = Field(description="Rows that the UNet worked on.")
    unet_rows_reference: int = Field(description="Rows that the published method needs for the same picture.")
    checkpoint: dict[str, str] = Field(description="Name and digest of the weights.")
    request_id: str


class ReadyReply(BaseModel):
    """Every model is ready."""

    ready: bool
    models: list[str]


class NotReadyReply(BaseModel):
    """Which models are not ready."""

    ready: bool
    message: str
    missing: list[str]


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorReply, "description": "The request is at fault; `errors` names each field."},
    408: {"model": ErrorReply, "description": "The body did not arrive in time."},
    413: {"model": ErrorReply, "description": "The body is larger than the limit."},
    500: {"model": ErrorReply, "description": "The model failed; `request_id` finds the reason in the logs."},
    503: {"model": ErrorReply, "description": "Triton is away, or too many requests wait: try after Retry-After."},
    504: {"model": ErrorReply, "description": "The picture was not ready within the time limit."},
}

# 8x8 pixels, white in the middle quarter.
_MASK = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAGElEQVR42mNgYGBgsGFiYGJgYmBgYGAAAALUAEMQ6XlWAAAAAElFTkSuQmCC"

_EXAMPLE = {
    "bg_prompt": "a beach at noon, photo",
    "bg_nprompt": "blurry, text",
    "fg_prompt": ["a Husky dog"],
    "fg_nprompt": ["cartoon, drawing"],
    "width": "512",
    "height": "512",
    "ddim_steps": "35",
    "bootstrapping": "20",
    "seed": "22312",
    "masks": [_MASK],
}

_REQUEST: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": MultsdRequest.model_json_schema(), "example": _EXAMPLE}},
    },
    "parameters": [
        {
            "name": "strict",
            "in": "query",
            "required": False,
            "description": "1: unknown fields are errors, not warnings.",
            "schema": {"type": "string", "enum": ["0", "1"]},
        }
    ],
}

_BYTES = {"schema": {"type": "string", "format": "binary"}}

MULTSD: dict[str, Any] = {
    "summary": "Paint a picture",
    "description": (
        "Replies with JSON, or with the picture's own bytes where the Accept header prefers image/png, image/jpeg, "
        "image/webp or image/*; seed and warnings are in X-Multsd-Seed and X-Multsd-Warnings then."
    ),
    "response_model": None,
    "responses": {
        200: {
            "model": PictureReply,
            "description": "The picture.",
            "content": {"image/jpeg": _BYTES, "image/png": _BYTES, "image/webp": _BYTES},
        },
        **_ERRORS,
    },
    "openapi_extra": _REQUEST,
}

STREAM: dict[str, Any] = {
    "summary": "Paint a picture and watch",
    "description": (
        "The request of POST /multsd, answered with server-sent events: `progress` after each step "
        "(`step`, `num_inference_steps`), then `result` (the JSON of POST /multsd) or `error` (an error's body and "
        "`status`). A request that is at fault gets an ordinary error reply. Closing the connection stops the work."
    ),
    "response_model": None,
    "responses": {200: {"description": "Events.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    | _ERRORS,
    "openapi_extra": _REQUEST,
}

HEALTHZ: dict[str, Any] = {"summary": "Whether the gateway runs", "response_model": None}

READYZ: dict[str, Any] = {
    "summary": "Whether a picture could be painted now",
    "response_model": None,
    "responses": {
        200: {"model": ReadyReply, "description": "Triton and every model are ready."},
        503: {"model": NotReadyReply, "description": "Something is missing."},
    },
}

METRICS: dict[str, Any] = {
    "summary": "Metrics for Prometheus: Triton's, with the UNet rows and the embedding cache's hits among them",
    "response_class": PlainTextResponse,
    "responses": {503: {"model": ErrorReply, "description": "Triton is away."}},
}
