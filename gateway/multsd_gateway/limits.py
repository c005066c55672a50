"""Limits of a well-typed request: counts that must agree, and ranges that the settings give."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from multsd_client.errors import FieldNote
from multsd_client.pictures import MEDIA_TYPES
from multsd_client.shapes import Polygon
from multsd_gateway.readers import read_number
from multsd_gateway.schema import MultsdRequest
from multsd_gateway.settings import Settings
from multsd_gateway.wording import found

FORMATS = tuple(MEDIA_TYPES)
MAX_SEED = 2**64 - 1
MAX_BOOTSTRAPPING = 1000
MAX_STRIDE = 1024
MAX_GUIDANCE = 100
MAX_NAME = 40
MAX_QUALITY = 100
SHORTEST_DEADLINE = 0.1
TIMEOUT = "X-Request-Timeout"


def defaults(settings: Settings) -> dict[str, int]:
    """What holds for a number that is left out: no more than its limit."""
    most = {"width": settings.max_side, "height": settings.max_side, "ddim_steps": settings.max_steps}
    return {name: min(int(MultsdRequest.model_fields[name].default), limit) for name, limit in most.items()}


def within_limits(request: MultsdRequest, settings: Settings) -> MultsdRequest:
    """The request with those defaults in place of the schema's."""
    left_out = {name: value for name, value in defaults(settings).items() if name not in request.model_fields_set}
    return request.model_copy(update=left_out)


def limit_faults(
    request: MultsdRequest,
    settings: Settings,
    *,
    samplers: Collection[str] | None = None,
    unread: Collection[str] = frozenset(),
) -> list[FieldNote]:
    """Every fault found. samplers: those that the model has, None where it has not told; unread: see Reading.

    What has to agree with a field that could not be read is not looked at.
    """
    counts = [] if "fg_prompt" in unread else [each for each in _counts(request, settings) if each.field not in unread]
    ranges = list(_numbers(request, settings))
    areas = [] if ranges or {"width", "height", "masks"} & set(unread) else _areas(request, settings)
    texts = _texts(request, settings)
    return [*counts, *_polygons(request, settings), *texts, *_choices(request, samplers), *ranges, *areas]


def read_timeout(header: str | None, settings: Settings) -> tuple[float | None, list[FieldNote]]:
    """Seconds that the header TIMEOUT gives the request, None where it is left out; and its fault."""
    if header is None:
        return None, []
    low, high = SHORTEST_DEADLINE, settings.request_seconds
    try:
        seconds = read_number(header)
    except ValueError:
        seconds = 0.0
    if not low <= seconds <= high:
        return None, [FieldNote(TIMEOUT, f"expected seconds from {low:g} to {high:g}, found {found(header)}")]
    return seconds, []


def _choices(request: MultsdRequest, samplers: Collection[str] | None) -> Iterator[FieldNote]:
    if request.output_format not in FORMATS:
        yield FieldNote("output_format", f"expected {', '.join(FORMATS)}, found {found(request.output_format)}")
    scheduler = request.scheduler
    if samplers is None or scheduler is None or len(scheduler.encode()) > MAX_NAME:  # told by _texts
        return
    if scheduler not in samplers:
        yield FieldNote("scheduler", f"expected one of {', '.join(samplers)}, found {found(scheduler)}")


def _counts(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    regions = len(request.fg_prompt)
    if regions > settings.max_regions:
        yield FieldNote("fg_prompt", f"expected at most {settings.max_regions} prompts, found {regions}")
    if len(request.masks) != regions:
        yield FieldNote("masks", f"expected {regions} (one per fg_prompt), found {len(request.masks)}")
    if len(request.fg_nprompt) not in (0, 1, regions):
        expected = f"{regions} (one per fg_prompt) or 1 for all"
        yield FieldNote("fg_nprompt", f"expected {expected}, found {len(request.fg_nprompt)}")


def _polygons(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    most = settings.max_polygon_points
    for number, mask in enumerate(request.masks):
        if isinstance(mask, Polygon) and len(mask.points) > most:
            yield FieldNote(f"masks[{number}]", f"polygon: expected at most {most} points, found {len(mask.points)}")


def _texts(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    limit = settings.max_prompt_bytes
    texts = [("bg_prompt", request.bg_prompt, limit), ("bg_nprompt", request.bg_nprompt, limit)]
    texts += [(f"fg_prompt[{i}]", text, limit) for i, text in enumerate(request.fg_prompt)]
    texts += [(f"fg_nprompt[{i}]", text, limit) for i, text in enumerate(request.fg_nprompt)]
    texts += [("scheduler", request.scheduler or "", MAX_NAME)]
    for field, text, longest in texts:
        if (size := len(text.encode())) > longest:
            yield FieldNote(field, f"expected at most {longest} bytes, found {size}")


def _numbers(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    ranges: list[tuple[str, float, float]] = [
        ("width", settings.min_side, settings.max_side),
        ("height", settings.min_side, settings.max_side),
        ("ddim_steps", 1, settings.max_steps),
        ("bootstrapping", 0, MAX_BOOTSTRAPPING),
        ("seed", 0, MAX_SEED),
        ("guidance_scale", 0, MAX_GUIDANCE),
        ("view_stride", 1, MAX_STRIDE),
        ("quality", 1, MAX_QUALITY),
        ("preview_every", 0, settings.max_steps),
        ("deadline_s", SHORTEST_DEADLINE, settings.request_seconds),
    ]
    for field, low, high in ranges:
        value = getattr(request, field)
        if value is not None and not low <= value <= high:
            yield FieldNote(field, f"expected {low} to {_shown(high)}, found {found(value)}")


def _shown(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _areas(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    pixels = request.width * request.height
    size = f"{request.width} x {request.height}"
    if pixels > settings.max_pixels:
        yield FieldNote("width", f"expected width x height of at most {settings.max_pixels} pixels, found {size}")
    elif pixels * len(request.masks) > settings.max_mask_pixels:
        expected = f"at most {settings.max_mask_pixels} mask pixels"
        yield FieldNote("masks", f"expected {expected}, found {len(request.masks)} masks of {size}")
