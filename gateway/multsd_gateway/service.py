"""One request from body to picture: read, check, wait for a turn, decode masks, paint, encode."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from multsd_client import pictures
from multsd_client.encoding import Output, encode
from multsd_client.errors import FieldNote
from multsd_client.fields import json_parameters, note_of_warning
from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_client.shapes import Mask
from multsd_client.tensors import ModelRequest, Queued
from multsd_gateway.admission import Admission, OnPlace
from multsd_gateway.body import most_containers, parse_object
from multsd_gateway.cost import most_rows, tritons
from multsd_gateway.errors import ExpiredError, InvalidRequestError
from multsd_gateway.inference import ModelDescription, OnProgress, Painter
from multsd_gateway.limits import limit_faults, narrowed, read_timeout, within_limits
from multsd_gateway.masks import decode_masks
from multsd_gateway.schema import MultsdRequest, read_request
from multsd_gateway.settings import Settings
from multsd_gateway.stopwatch import Stopwatch
from multsd_gateway.threads import Threads
from multsd_gateway.uploads import Upload, Uploads

# JSON readers that keep numbers as doubles hold 2^53 exactly; a seed that is drawn stays well below.
DRAWN_SEEDS = 2**32

# Bytes; below them the work takes less than a millisecond, for bodies full of brackets a few.
LARGE_BODY = 32 * 1024
LARGE_PICTURE = 256 * 1024

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Painting:
    """A finished picture, encoded, and what is told with it."""

    image: bytes = field(repr=False)
    media_type: str
    warnings: tuple[FieldNote, ...]
    report: dict[str, Any]
    request_id: str
    stages: Mapping[str, float]  # seconds of the gateway's own, and of waiting for the model

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

    timeout: the header X-Request-Timeout as it came, which may lower the request's deadline_s. owner: the name of the
    token that it came with.
    on_start is awaited once the request is known to be good and its turn has come; on_progress may be before.
    """

    request_id: str
    strict: bool = False
    timeout: str | None = None
    owner: str | None = None
    picture_format: str | None = None
    on_start: Callable[[], Awaitable[None]] | None = None
    on_progress: OnProgress | None = None

    @property
    def on_place(self) -> OnPlace | None:
        """What hears of the place in the gateway's own queue: on_progress, as of the model's."""
        tell = self.on_progress
        return None if tell is None else lambda place: tell(Queued(place))


class Service:
    """Paints what bodies ask for, within the settings' limits."""

    def __init__(self, settings: Settings, painter: Painter) -> None:
        self._settings = settings
        self._painter = painter
        self._threads = Threads(settings.image_threads)
        all_bodies = settings.max_uploaded_bytes
        self.uploads = Uploads(all_bodies, most_of_one=max(all_bodies // 2, settings.max_body_bytes))
        self.last_checkpoint: Mapping[str, Any] = {}
        self.admission = Admission(
            running=settings.max_running,
            waiting=settings.max_waiting,
            waiting_rows=settings.max_waiting_rows,
            tritons=lambda: tritons(painter.descriptions()),
        )

    async def paint(self, upload: Upload, order: Order) -> Painting:
        """Paint one picture. Raises GatewayError; cancelling the call stops the work.

        The body is released as soon as its masks are decoded.
        """
        seconds, arrival = self._settings.request_seconds, asyncio.get_running_loop().time()
        watch, models, samplers = Stopwatch(), self._painter.descriptions(), self._painter.samplers()
        try:
            async with asyncio.timeout(seconds) as timeout:
                with watch("read"):
                    request, warnings = await self.in_thread_if_large(
                        lambda: check(
                            bytes(upload),
                            strict=order.strict,
                            timeout=order.timeout,
                            settings=self._settings,
                            models=models,
                            samplers=samplers,
                        ),
                        large=len(upload) > LARGE_BODY,
                        upload=upload,
                    )
                if request.deadline_s is not None:
                    seconds = request.deadline_s
                    timeout.reschedule(arrival + seconds)
                return await self._paint(request, warnings, upload, order, watch)
        except TimeoutError:
            raise ExpiredError(f"expected a picture within {seconds:g} s, it was not ready") from None

    def close(self) -> None:
        """Give back the threads."""
        self._threads.close()

    async def in_thread_if_large(self, work: Callable[[], T], *, large: bool, upload: Upload | None = None) -> T:
        """Run work here where changing threads would take longer."""
        return await self.in_thread(work, upload) if large else work()

    async def in_thread(self, work: Callable[[], T], upload: Upload | None = None) -> T:
        """Run work that would hold the event loop up, in one of the few threads for it.

        upload: what it works on, whose bytes count until it has ended, also where nobody waits for it any more.
        """
        if upload is None:
            return await self._threads.run(work)
        upload.hold()
        return await self._threads.run(work, on_end=upload.let_go)

    async def _paint(
        self, request: MultsdRequest, warnings: list[FieldNote], upload: Upload, order: Order, watch: Stopwatch
    ) -> Painting:
        left = (request.deadline_s or self._settings.request_seconds) - watch.total()
        rows = most_rows(request, self._painter.descriptions())
        async with self.admission.slot(rows, left, order.on_place, owner=order.owner):
            with watch("masks"):
                masks, mask_warnings = await self.in_thread(
                    lambda: decode_masks(
                        request.masks, width=request.width, height=request.height, settings=self._settings
                    ),
                    upload,
                )
            request = request.model_copy(update={"masks": ()})  # decoded; their text may be most of the body
            upload.release()
            if order.on_start is not None:
                await order.on_start()
            # The gateway's own limit too: the model knows at once what it cannot paint in that time.
            left = (request.deadline_s or self._settings.request_seconds) - watch.total()
            asked = model_request(
                request, masks, progress=order.on_progress is not None, deadline_s=max(left, SHORTEST_DEADLINE_S)
            )
            if request.preview_every and not asked.progress:
                warnings = [*warnings, FieldNote("preview_every", "not used, only POST /multsd/stream shows previews")]
            with watch("model"):
                picture = await self._painter.paint(asked, request_id=order.request_id, on_progress=order.on_progress)
        output = Output(
            output_format=order.picture_format or request.output_format,
            quality=request.quality,
            embed=self._settings.embed_parameters,
            max_embedded_bytes=self._settings.max_embedded_bytes,
        )
        self.last_checkpoint = picture.report["checkpoint"]
        with watch("encode"):
            image, output_warnings = await self.in_thread(lambda: encode(asked, picture, output))
        return Painting(
            image=image,
            media_type=pictures.MEDIA_TYPES[output.output_format],
            warnings=(*warnings, *mask_warnings, *map(note_of_warning, picture.warnings), *output_warnings),
            report=dict(picture.report),
            request_id=order.request_id,
            stages=watch.seconds,
        )


def check(
    body: bytes,
    *,
    strict: bool,
    settings: Settings,
    samplers: Collection[str] | None,
    models: Sequence[ModelDescription] = (),
    timeout: str | None = None,
) -> tuple[MultsdRequest, list[FieldNote]]:
    """A body that is a request within the limits, and warnings. models, samplers: see limit_faults; timeout: see Order.

    Raises InvalidRequestError with every fault found.
    """
    reading = read_request(parse_object(body, most_containers(settings)), strict=strict)
    request = within_limits(reading.request, narrowed(settings, models))
    found = limit_faults(request, settings, models=models, samplers=samplers, unread=reading.unread)
    faults = [*reading.faults, *found]
    seconds, header_faults = read_timeout(timeout, settings)
    if faults or header_faults:
        raise InvalidRequestError([*faults, *header_faults])
    if seconds is not None:
        soonest = seconds if request.deadline_s is None else min(seconds, request.deadline_s)
        request = request.model_copy(update={"deadline_s": soonest})
    return request, list(reading.warnings)


def model_request(request: MultsdRequest, masks: Mask | None, *, progress: bool, deadline_s: float) -> ModelRequest:
    """The request in the model's terms; a seed that is missing is drawn here. deadline_s: what is left of it."""
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
        preview_every=(request.preview_every or None) if progress else None,
        deadline_s=deadline_s,
        progress=progress,
    )
