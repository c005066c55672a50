"""Limits of a well-typed request: counts that must agree, and ranges that the settings give."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from multsd_client.errors import FieldNote
from multsd_client.pictures import MEDIA_TYPES
from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_client.shapes import Box, Polygon, RunLengths
from multsd_gateway.inference import ModelDescription
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
TIMEOUT = "X-Request-Timeout"

# Settings that the served model has a parameter for, by the same name; and what it counts on top: the background.
SHARED = {"max_pixels": 0, "max_mask_pixels": 0, "max_steps": 0, "max_prompt_bytes": 0, "max_regions": 1}


def narrowed(settings: Settings, models: Sequence[ModelDescription]) -> Settings:
    """The settings, each limit no higher than the models' own, of several models the highest."""
    held = {}
    for name, on_top in SHARED.items():
        own: int = getattr(settings, name)
        held[name] = min(own, highest(models, name, own + on_top, on_top) - on_top)
    return settings.model_copy(update=held)


def highest(models: Sequence[ModelDescription], name: str, otherwise: int, least: int = 1) -> int:
    """The highest of the models' numbers; `otherwise` stands for one that is not told."""
    return max((model.number(name, otherwise, least=least) for model in models), default=otherwise)


def defaults(settings: Settings) -> dict[str, int]:
    """What holds for a number that is left out: no more than its limit."""
    sides, steps = dict.fromkeys(("width", "height"), settings.max_side), settings.max_steps
    most = {**sides, "ddim_steps": steps, "bootstrapping": steps}
    return {name: min(int(MultsdRequest.model_fields[name].default), limit) for name, limit in most.items()}


def within_limits(request: MultsdRequest, settings: Settings) -> MultsdRequest:
    """The request with those defaults in place of the schema's."""
    left_out = {name: value for name, value in defaults(settings).items() if name not in request.model_fields_set}
    return request.model_copy(update=left_out)


def limit_faults(
    request: MultsdRequest,
    settings: Settings,
    *,
    models: Sequence[ModelDescription] = (),
    samplers: Collection[str] | None = None,
    unread: Collection[str] = frozenset(),
) -> list[FieldNote]:
    """Every fault found. models: what those that may paint it say of themselves; unread: see Reading.

    samplers: those that the models have, None where one has not told.

    What has to agree with a field that could not be read is not looked at.
    """
    held = narrowed(settings, models)
    counts = [] if "fg_prompt" in unread else [each for each in _counts(request, held) if each.field not in unread]
    ranges = list(_numbers(request, held, models))
    sized = not ranges and not {"width", "height", "masks"} & set(unread)
    areas = [*_areas(request, held), *_shapes(request, settings)] if sized else []
    texts = _texts(request, held)
    return [*counts, *_polygons(request, settings), *texts, *_choices(request, samplers), *ranges, *areas]


def read_timeout(header: str | None, settings: Settings) -> tuple[float | None, list[FieldNote]]:
    """Seconds that the header TIMEOUT gives the request, None where it is left out; and its fault."""
    if header is None:
        return None, []
    low, high = SHORTEST_DEADLINE_S, settings.request_seconds
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


def _shapes(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    """What decoding would refuse and can be told before. No model sees a mask at the size in which it is sent."""
    most = min(settings.max_image_pixels, settings.max_mask_pixels)
    for number, mask in enumerate(request.masks):
        try:
            if isinstance(mask, Box):
                mask.on_canvas(request.width, request.height)
            elif isinstance(mask, RunLengths):
                require_pixels(mask, most)
        except ValueError as error:
            yield FieldNote(f"masks[{number}]", str(error))


def require_pixels(mask: RunLengths, most: int) -> None:
    """Raises ValueError where it has more."""
    height, width = mask.size
    if height * width > most:
        raise ValueError(f"expected a mask of at most {most} pixels, found {width}x{height}")


def _texts(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    limit = settings.max_prompt_bytes
    texts = [("bg_prompt", request.bg_prompt, limit), ("bg_nprompt", request.bg_nprompt, limit)]
    texts += [(f"fg_prompt[{i}]", text, limit) for i, text in enumerate(request.fg_prompt)]
    texts += [(f"fg_nprompt[{i}]", text, limit) for i, text in enumerate(request.fg_nprompt)]
    texts += [("scheduler", request.scheduler or "", MAX_NAME)]
    for field, text, longest in texts:
        if (size := len(text.encode())) > longest:
            yield FieldNote(field, f"expected at most {longest} bytes, found {size}")


def _numbers(request: MultsdRequest, settings: Settings, models: Sequence[ModelDescription]) -> Iterator[FieldNote]:
    ranges: list[tuple[str, float, float]] = [
        ("width", settings.min_side, settings.max_side),
        ("height", settings.min_side, settings.max_side),
        ("ddim_steps", 1, settings.max_steps),
        ("bootstrapping", 0, min(MAX_BOOTSTRAPPING, highest(models, "max_steps", MAX_BOOTSTRAPPING))),
        ("seed", 0, MAX_SEED),
        ("guidance_scale", 0, MAX_GUIDANCE),
        ("view_stride", 1, min(MAX_STRIDE, highest(models, "window", MAX_STRIDE))),
        ("quality", 1, MAX_QUALITY),
        ("preview_every", 0, settings.max_steps),
        ("deadline_s", SHORTEST_DEADLINE_S, settings.request_seconds),
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
