"""One request from body to picture: read, check, wait for a turn, decode masks, paint, encode."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from multsd_client.errors import FieldNote
from multsd_client.tensors import ModelRequest, Picture
from multsd_gateway import pictures
from multsd_gateway.admission import Admission
from multsd_gateway.body import parse_object
from multsd_gateway.errors import DeadlineExceededError
from multsd_gateway.fields import json_parameters, note_of_warning
from multsd_gateway.inference import OnProgress, Painter
from multsd_gateway.limits import check_limits
from multsd_gateway.masks import Mask, decode_masks
from multsd_gateway.schema import MultsdRequest, read_request
from multsd_gateway.settings import Settings
from multsd_gateway.uploads import Upload, Uploads

# JSON readers that keep numbers as doubles hold 2^53 exactly; a seed that is drawn stays well below.
DRAWN_SEEDS = 2**32

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Painting:
    """A finished picture, encoded, and what is told with it."""

    image: bytes = field(repr=False)
    media_type: str
    warnings: tuple[FieldNote, ...]
    report: dict[str, Any]
    request_id: str

    @property
    def seed(self) -> int:
        """The seed that was used."""
        return int(self.report["parameters"]["seed"])

    def to_json(self) -> dict[str, Any]:
        """The reply of POST /multsd."""
        return {
            "image": base64.b64encode(self.image).decode("ascii"),
            "media_type": self.media_type,
            "seed": self.seed,
            "warnings": [{"field": note.field, "message": note.message} for note in self.warnings],
            "parameters": json_parameters(self.report["parameters"]),
            "timings": self.report["seconds"],
            "unet_rows": self.report["unet_rows"],
            "unet_rows_reference": self.report["unet_rows_reference"],
            "checkpoint": self.report["checkpoint"],
            "request_id": self.request_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a caller asks for besides the body. picture_format: instead of the request's own; strict: see read_request.

    on_start is awaited once the request is known to be good and its turn has come.
    """

    request_id: str
    strict: bool = False
    picture_format: str | None = None
    on_start: Callable[[], Awaitable[None]] | None = None
    on_progress: OnProgress | None = None


class Service:
    """Paints what bodies ask for, within the settings' limits."""

    def __init__(self, settings: Settings, painter: Painter) -> None:
        self._settings = settings
        self._painter = painter
        self._threads = CapacityLimiter(settings.image_threads)
        self.uploads = Uploads(settings.max_uploaded_bytes)
        self.admission = Admission(running=settings.max_running, waiting=settings.max_waiting)

    async def paint(self, upload: Upload, order: Order) -> Painting:
        """Paint one picture. Raises GatewayError; cancelling the call stops the work.

        The body is released as soon as its masks are decoded.
        """
        seconds = self._settings.request_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._paint(upload, order)
        except TimeoutError:
            raise DeadlineExceededError(f"expected a picture within {seconds:g} s, it was not ready") from None

    async def _paint(self, upload: Upload, order: Order) -> Painting:
        request, warnings = await self._in_thread(
            lambda: check(bytes(upload), strict=order.strict, settings=self._settings)
        )
        async with self.admission.slot():
            masks, mask_warnings = await self._in_thread(
                lambda: decode_masks(request.masks, width=request.width, height=request.height, settings=self._settings)
            )
            request = request.model_copy(update={"masks": ()})  # decoded; their text may be most of the body
            upload.release()
            if order.on_start is not None:
                await order.on_start()
            picture = await self._painter.paint(
                model_request(request, masks, progress=order.on_progress is not None),
                request_id=order.request_id,
                on_progress=order.on_progress,
            )
        output_format = order.picture_format or request.output_format
        return await self._in_thread(
            lambda: finish(picture, [*warnings, *mask_warnings], output_format, order.request_id)
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)


def check(body: bytes, *, strict: bool, settings: Settings) -> tuple[MultsdRequest, list[FieldNote]]:
    """A body that is a request within the limits, and warnings. Raises InvalidRequestError."""
    request, warnings = read_request(parse_object(body), strict=strict)
    check_limits(request, settings)
    return request, warnings


def model_request(request: MultsdRequest, masks: Mask | None, *, progress: bool) -> ModelRequest:
    """The request in the model's terms; a seed that is missing is drawn here."""
    negative = request.fg_nprompt or (request.bg_nprompt,)
    if len(negative) == 1:
        negative *= len(request.fg_prompt)
    return ModelRequest(
        prompts=(request.bg_prompt, *request.fg_prompt),
        negative_prompts=(request.bg_nprompt, *negative),
        masks=masks,
        height=request.height,
        width=request.width,
        num_inference_steps=request.ddim_steps,
        bootstrapping=request.bootstrapping,
        guidance_scale=request.guidance_scale,
        seed=secrets.randbelow(DRAWN_SEEDS) if request.seed is None else request.seed,
        scheduler=request.scheduler,
        view_stride=request.view_stride,
        progress=progress,
    )


def finish(picture: Picture, warnings: list[FieldNote], output_format: str, request_id: str) -> Painting:
    """Encode a picture and gather what is told with it."""
    return Painting(
        image=pictures.encode(picture.image, output_format),
        media_type=pictures.MEDIA_TYPES[output_format],
        warnings=(*warnings, *map(note_of_warning, picture.warnings)),
        report=dict(picture.report),
        request_id=request_id,
    )
