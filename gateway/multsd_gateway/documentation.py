"""What OpenAPI says about the endpoints: bodies are read by hand, so their schemas are stated here."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse

from multsd_gateway.request_schema import EXAMPLES, request_schema
from multsd_gateway.settings import Settings

API = """Paint a picture from a background prompt and any number of regions, each a mask with a prompt of its own.

Numbers may be JSON numbers or numeric strings. `null` means left out. Errors are
`{"message", "errors": [{"field", "message"}], "request_id"}`. Every reply carries `X-Request-Id`, the caller's own
where it sent one of at most 64 letters, digits, dots, dashes and underscores. A server with tokens wants one of them as
`Authorization: Bearer TOKEN`."""


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
    checkpoint: dict[str, Any] = Field(description="Name and digest of the weights.")
    request_id: str


class AliveReply(BaseModel):
    """The process answers."""

    alive: bool


class CheckpointNote(BaseModel):
    """The weights that pictures are painted with; null where the served model does not tell."""

    name: str | None
    digest: str | None
    family: str | None


class LimitsReply(BaseModel):
    """What this deployment accepts, and what it paints with."""

    limits: dict[str, float] = Field(description="Each limit: the lower of the gateway's and the model's.")
    output_formats: list[str]
    schedulers: list[str]
    defaults: dict[str, Any] = Field(description="What holds for a field that is left out; null: the checkpoint's own.")
    checkpoint: CheckpointNote
    window: int | None = Field(description="Side of a view in latent cells of 8 pixels.")
    optional_inputs: list[str] = Field(description="Which of preview_every and deadline_s the served model knows.")
    embeds_parameters: bool = Field(description="Whether pictures carry their parameters.")


class ReadyReply(BaseModel):
    """Every model is ready."""

    ready: bool
    models: list[str]


class NotReadyReply(BaseModel):
    """Which models are not ready."""

    ready: bool
    message: str
    missing: list[str]


def _error(description: str, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """One status of the table of errors, with an example."""
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in (headers or {}).items()}
    example = {"message": message, "request_id": "5f0c1f5e", **more}
    return {
        "model": ErrorReply,
        "description": description,
        "headers": described,
        "content": {"application/json": {"example": example}},
    }


_RETRY = {"Retry-After": "Seconds until another attempt makes sense."}

_UNAUTHORIZED = _error(
    "The server wants a token, or another one.",
    "expected a known bearer token, found another",
    headers={"WWW-Authenticate": "Bearer"},
)
_UNAVAILABLE = _error(
    "Triton is away, or too many requests wait: try after Retry-After.",
    "the model server is away or full, try again later",
    headers=_RETRY,
)

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error(
        "The request is at fault; `errors` names each field.",
        "width: expected 64 to 8192, found 32",
        errors=[{"field": "width", "message": "expected 64 to 8192, found 32"}],
    ),
    401: _UNAUTHORIZED,
    408: _error("The body did not arrive in time.", "body: expected all of it within 30 s, found 17 bytes by then"),
    413: _error("The body is larger than the limit.", "body: expected at most 20000000 bytes, found more"),
    429: _error(
        "The token's rate is used up: try after Retry-After.",
        "expected at most 60 pictures a minute, found more",
        headers=_RETRY,
    ),
    500: _error("The model failed; `request_id` finds the reason in the logs.", "vae_decoder: out of memory"),
    503: _UNAVAILABLE,
    504: _error("The picture was not ready in time.", "expected a picture within 300 s, it was not ready"),
}

_EVENT: dict[str, Any] = {
    "description": "Each event of the stream.",
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["queued", "progress", "preview", "result", "error"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
    "required": ["event", "data"],
    "examples": [{"event": "progress", "data": '{"step": 1, "num_inference_steps": 35}'}],
}

_BYTES = {"schema": {"type": "string", "format": "binary"}}


def _request(settings: Settings) -> dict[str, Any]:
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request_schema(settings), "examples": EXAMPLES}},
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


def multsd(settings: Settings) -> dict[str, Any]:
    """Of POST /multsd."""
    return {
        "summary": "Paint a picture",
        "description": (
            "Replies with JSON, or with the picture's own bytes where the Accept header prefers image/png, image/jpeg, "
            "image/webp or image/*; seed and warnings are in X-Multsd-Seed and X-Multsd-Warnings then. The picture "
            "carries its parameters: a PNG in the iTXt chunk multsd, a JPEG (where they fit) and a WebP in the EXIF "
            "user comment."
        ),
        "response_model": None,
        "responses": {
            200: {
                "model": PictureReply,
                "description": "The picture.",
                "headers": {
                    "Server-Timing": {
                        "description": "Milliseconds: read, masks, model, encode.",
                        "schema": {"type": "string"},
                    }
                },
                "content": {"image/jpeg": _BYTES, "image/png": _BYTES, "image/webp": _BYTES},
            },
            **_ERRORS,
        },
        "openapi_extra": _request(settings),
    }


def stream(settings: Settings) -> dict[str, Any]:
    """Of POST /multsd/stream."""
    return {
        "summary": "Paint a picture and watch",
        "description": (
            "The request of POST /multsd, answered with server-sent events: `queued` while it waits (`position`: how "
            "many wait before it), `progress` after each step (`step`, `num_inference_steps`), `preview` where asked "
            "for (`image`: base64, a pixel for each 8 of the picture; `media_type`), then "
            "`result` (the JSON of POST /multsd) or `error` (an error's body and "
            "`status`). A request that is at fault gets an ordinary error reply. Closing the connection stops the work."
        ),
        "response_model": None,
        "responses": {
            200: {"description": "Events.", "content": {"text/event-stream": {"schema": _EVENT}}},
            **_ERRORS,
        },
        "openapi_extra": _request(settings),
    }


LIMITS: dict[str, Any] = {
    "summary": "What this deployment accepts, and with which checkpoint it paints",
    "response_model": None,
    "responses": {
        200: {"model": LimitsReply, "description": "Limits and checkpoint."},
        401: _UNAUTHORIZED,
        503: _UNAVAILABLE,
    },
}

HEALTHZ: dict[str, Any] = {
    "summary": "Whether the gateway runs",
    "response_model": None,
    "responses": {200: {"model": AliveReply, "description": "It does."}},
}

READYZ: dict[str, Any] = {
    "summary": "Whether a picture could be painted now",
    "response_model": None,
    "responses": {
        200: {"model": ReadyReply, "description": "A Triton and every model are ready."},
        503: {"model": NotReadyReply, "description": "Something is missing."},
    },
}

METRICS: dict[str, Any] = {
    "summary": "Metrics for Prometheus: the gateway's own, then Triton's, with the UNet rows and the embedding cache",
    "response_class": PlainTextResponse,
    "responses": {200: {"description": "multsd_gateway_triton_metrics_up is 0 where Triton's are missing."}},
}
