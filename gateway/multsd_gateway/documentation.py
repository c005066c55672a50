"""What OpenAPI says about the endpoints: bodies are read by hand, so their schemas are stated here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from pydantic.fields import FieldInfo
from starlette.responses import HTMLResponse, PlainTextResponse

from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_gateway.capabilities import capabilities
from multsd_gateway.inference import ModelDescription
from multsd_gateway.limits import TIMEOUT
from multsd_gateway.request_schema import EXAMPLES, request_schema
from multsd_gateway.settings import Settings

API = """Paint a picture from a background prompt and any number of regions, each a mask with a prompt of its own.

Numbers may be JSON numbers or numeric strings. `null` means left out. Errors are
`{"message", "errors": [{"field", "message"}], "request_id"}`. Every reply carries `X-Request-Id`, the caller's own
where it sent one of at most 64 letters, digits, dots, dashes and underscores. A server with tokens wants one of them as
`Authorization: Bearer TOKEN`. Whatever answers GET answers HEAD, with the same headers and no body."""


# What GET /limits tells with all settings at their defaults.
_LIMITS = capabilities(
    Settings.model_construct(),
    ModelDescription(inputs=frozenset({"preview_every", "deadline_s"}), parameters={"view_stride": "8"}),
    last_checkpoint={},
)


class Note(BaseModel):
    """A remark on one field of the request."""

    field: str = Field(description="Name in the request's JSON.", examples=["masks[0]"])
    message: str = Field(examples=["stretched from 64x64 to 512x384, other proportions"])


class ErrorReply(BaseModel):
    """Every error's body."""

    message: str = Field(examples=["width: expected 64 to 8192, found 32"])
    request_id: str = Field(description="Finds the request in the logs.", examples=["5f0c1f5e"])
    errors: list[Note] = Field(
        default=[],
        description="With status 400: each fault that was found.",
        examples=[[{"field": "width", "message": "expected 64 to 8192, found 32"}]],
    )


class PictureReply(BaseModel):
    """A finished picture."""

    image: str = Field(
        description="The picture as base64, JPEG unless output_format says otherwise.", examples=["/9j/4AAQSkZJRg=="]
    )
    media_type: str = Field(examples=["image/jpeg"])
    seed: int = Field(description="The seed that was used.", examples=[22312])
    warnings: list[Note] = Field(
        description="What was asked for and not, or not quite, done.",
        examples=[[{"field": "masks[0]", "message": "stretched from 64x64 to 512x384, other proportions"}]],
    )
    parameters: dict[str, Any] = Field(
        description="Every parameter that was used, under the request's names.",
        examples=[{"width": 512, "height": 512, "ddim_steps": 35, "seed": 22312, "scheduler": "ddim"}],
    )
    timings: dict[str, float] = Field(
        description="Seconds by part of the work.", examples=[{"unet": 2.1, "vae_decoder": 0.2, "total": 2.6}]
    )
    unet_rows: int = Field(description="Rows that the UNet worked on.", examples=[125])
    unet_rows_reference: int = Field(
        description="Rows that the published method needs for the same picture.", examples=[140]
    )
    checkpoint: dict[str, Any] = Field(
        description="Name and digest of the weights.", examples=[{"name": "checkpoint", "digest": "sha256:308318f1"}]
    )
    request_id: str = Field(examples=["5f0c1f5e"])


class AliveReply(BaseModel):
    """The process answers."""

    alive: bool = Field(examples=[True])


class CheckpointNote(BaseModel):
    """The weights that pictures are painted with; null where the served model does not tell."""

    name: str | None = Field(examples=["checkpoint"])
    digest: str | None = Field(description="SHA-256 of its files.", examples=["sha256:308318f1"])
    family: str | None = Field(examples=["sd1"])


class LimitsReply(BaseModel):
    """What this deployment accepts, and what it paints with."""

    limits: dict[str, float] = Field(
        description="Each limit: the lower of the gateway's and the model's, of several Tritons' the highest.",
        examples=[_LIMITS["limits"]],
    )
    output_formats: list[str] = Field(examples=[_LIMITS["output_formats"]])
    schedulers: list[str] = Field(
        description="The samplers that the served model has, its default first; of several Tritons those of all.",
        examples=[_LIMITS["schedulers"]],
    )
    defaults: dict[str, Any] = Field(
        description="What holds for a field that is left out; null: the checkpoint's own.",
        examples=[_LIMITS["defaults"]],
    )
    checkpoint: CheckpointNote
    window: int | None = Field(description="Side of a view in latent cells of 8 pixels.", examples=[64])
    optional_inputs: list[str] = Field(
        description="Which of preview_every and deadline_s the served model knows.",
        examples=[_LIMITS["optional_inputs"]],
    )
    embeds_parameters: bool = Field(description="Whether pictures carry their parameters.", examples=[True])


class ReadyReply(BaseModel):
    """Every model is ready."""

    ready: bool = Field(examples=[True])
    models: list[str] = Field(examples=[["multidiffusion", "text_encoder", "unet", "vae_decoder"]])


class NotReadyReply(BaseModel):
    """Which models are not ready."""

    ready: bool = Field(examples=[False])
    message: str = Field(examples=["not ready: unet"])
    missing: list[str] = Field(examples=[["unet"]])


_REQUEST_ID = {
    "X-Request-Id": {
        "description": "Finds the request in the logs; the caller's own where it sent one that is fit for it.",
        "required": True,
        "schema": {"type": "string"},
        "example": "5f0c1f5e",
    }
}


def _headers(texts: Mapping[str, str]) -> dict[str, Any]:
    """Headers of a reply and what they tell, beside the request's id."""
    return _REQUEST_ID | {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def _example(model: type[BaseModel]) -> dict[str, Any]:
    """A whole reply, of its fields' examples."""
    return {name: _field_example(field) for name, field in model.model_fields.items()}


def _field_example(field: FieldInfo) -> Any:
    if field.examples:
        return field.examples[0]
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return _example(field.annotation)
    raise ValueError(f"expected examples of every field, found none of {field}")


def _reply(
    model: type[BaseModel],
    description: str,
    *,
    headers: Mapping[str, Any] = _REQUEST_ID,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A reply in JSON, with an example of the whole. others: what it may be instead, by media type."""
    content = {"application/json": {"example": _example(model)}, **(others or {})}
    return {"model": model, "description": description, "headers": headers, "content": content}


def _error(description: str, message: str, *, headers: Mapping[str, Any] = _REQUEST_ID, **more: Any) -> dict[str, Any]:
    """One status of the table of errors, with an example."""
    example = {"message": message, "request_id": "5f0c1f5e", **more}
    return {
        "model": ErrorReply,
        "description": description,
        "headers": headers,
        "content": {"application/json": {"example": example}},
    }


_RETRY = _headers({"Retry-After": "Seconds until another attempt makes sense."})

_UNAUTHORIZED = _error(
    "The server wants a token, or another one.",
    "expected a known bearer token, found another",
    headers=_headers({"WWW-Authenticate": "Bearer"}),
)
_UNAVAILABLE = _error(
    "Triton is away, or too many requests or UNet rows wait, or a picture would not be done in time beside those at "
    "work: try after Retry-After.",
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
    408: _error("The body did not arrive in time.", "body: expected within 30 s, found 17 bytes by then"),
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

_EVENT_EXAMPLE = {"event": "result", "data": json.dumps(_example(PictureReply))}

_PICTURE_HEADERS = _headers(
    {
        "Server-Timing": "Milliseconds: read, masks, model, encode.",
        "X-Multsd-Seed": "With a picture's own bytes: the seed that was used.",
        "X-Multsd-Warnings": "With a picture's own bytes, where there are any: a JSON list of warnings.",
    }
)

_STREAM_HEADERS = _headers({"Heartbeat-Seconds": "A stream that was silent for so long gets a comment line."})

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
            },
            {
                "name": TIMEOUT,
                "in": "header",
                "required": False,
                "description": (
                    "Seconds from the request's arrival, after which nobody wants the picture: 504. As the field "
                    f"deadline_s; the smaller of both holds. From {SHORTEST_DEADLINE_S:g} to "
                    f"{settings.request_seconds:g}."
                ),
                "schema": {
                    "type": "number",
                    "minimum": SHORTEST_DEADLINE_S,
                    "maximum": settings.request_seconds,
                },
                "example": 30,
            },
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
            200: _reply(
                PictureReply,
                "The picture.",
                headers=_PICTURE_HEADERS,
                others={"image/jpeg": _BYTES, "image/png": _BYTES, "image/webp": _BYTES},
            ),
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
            "many wait before it, here and in Triton; it may rise where several gateways share a Triton, or when "
            "another Triton takes the request over), `progress` after each step (`step`, `num_inference_steps`), "
            "`preview` where asked for (`image`: base64, a pixel for each 8 of the picture; `media_type`), then "
            "`result` (the JSON of POST /multsd) or `error` (an error's body and `status`). A stream that has been "
            f"silent for {settings.heartbeat_seconds:g} s (the header `Heartbeat-Seconds`) gets a comment line, "
            "`: heartbeat`. A request that is at fault gets an ordinary error reply. Closing the connection stops the "
            f"work, and so does taking nothing of what is sent for {settings.write_seconds:g} s."
        ),
        "response_model": None,
        "responses": {
            200: {
                "description": "Events.",
                "headers": _STREAM_HEADERS,
                "content": {"text/event-stream": {"schema": _EVENT, "example": _EVENT_EXAMPLE}},
            },
            **_ERRORS,
        },
        "openapi_extra": _request(settings),
    }


PAGE: dict[str, Any] = {
    "summary": "A page to paint regions on",
    "response_class": HTMLResponse,
    "responses": {200: {"description": "HTML; what it needs is served under /page/.", "headers": _REQUEST_ID}},
}

LIMITS: dict[str, Any] = {
    "summary": "What this deployment accepts, and with which checkpoint it paints",
    "response_model": None,
    "responses": {
        200: _reply(LimitsReply, "Limits and checkpoint."),
        401: _UNAUTHORIZED,
        503: _UNAVAILABLE,
    },
}

HEALTHZ: dict[str, Any] = {
    "summary": "Whether the gateway runs",
    "response_model": None,
    "responses": {200: _reply(AliveReply, "It does.")},
}

READYZ: dict[str, Any] = {
    "summary": "Whether a picture could be painted now",
    "response_model": None,
    "responses": {
        200: _reply(ReadyReply, "A Triton and every model are ready."),
        503: _reply(NotReadyReply, "Something is missing."),
    },
}

METRICS: dict[str, Any] = {
    "summary": "Metrics for Prometheus: the gateway's own, then Triton's, with the UNet rows and the embedding cache",
    "response_class": PlainTextResponse,
    "responses": {
        200: {
            "description": "multsd_gateway_triton_metrics_up is 0 where Triton's are missing.",
            "headers": _REQUEST_ID,
            "content": {"text/plain": {"example": 'multsd_gateway_requests_total{path="/multsd",status="200"} 7.0\n'}},
        }
    },
}


def require_tokens(app: FastAPI, *, open_paths: Collection[str]) -> None:
    """Say in OpenAPI that every path but the open ones wants a bearer token."""
    document = app.openapi()  # made once, and kept by the application
    document["components"]["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "One of the tokens that this server knows."}
    }
    for path, operations in document["paths"].items():
        if path not in open_paths:
            for operation in operations.values():
                operation["security"] = [{"token": []}]
