"""Limits of a well-typed request: counts that must agree, and ranges that the settings give."""

from __future__ import annotations

from collections.abc import Iterator

from multsd_client.errors import FieldNote
from multsd_gateway.errors import InvalidRequestError
from multsd_gateway.schema import MultsdRequest
from multsd_gateway.settings import Settings
from multsd_gateway.wording import found

FORMATS = ("jpeg", "png", "webp")
MAX_SEED = 2**64 - 1
MAX_BOOTSTRAPPING = 1000
MAX_STRIDE = 1024
MAX_GUIDANCE = 100
MAX_NAME = 40


def check_limits(request: MultsdRequest, settings: Settings) -> None:
    """Raises InvalidRequestError with every fault found."""
    faults = [*_counts(request, settings), *_texts(request, settings), *_numbers(request, settings)]
    if request.output_format not in FORMATS:
        faults.append(FieldNote("output_format", f"expected {', '.join(FORMATS)}, got {found(request.output_format)}"))
    if faults:
        raise InvalidRequestError(faults)


def _counts(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    regions = len(request.fg_prompt)
    if regions > settings.max_regions:
        yield FieldNote("fg_prompt", f"expected at most {settings.max_regions} prompts, got {regions}")
    if len(request.masks) != regions:
        yield FieldNote("masks", f"expected {regions} (one per fg_prompt), got {len(request.masks)}")
    if len(request.fg_nprompt) not in (0, 1, regions):
        expected = f"{regions} (one per fg_prompt) or 1 for all"
        yield FieldNote("fg_nprompt", f"expected {expected}, got {len(request.fg_nprompt)}")


def _texts(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    limit = settings.max_prompt_characters
    texts = [("bg_prompt", request.bg_prompt, limit), ("bg_nprompt", request.bg_nprompt, limit)]
    texts += [(f"fg_prompt[{i}]", text, limit) for i, text in enumerate(request.fg_prompt)]
    texts += [(f"fg_nprompt[{i}]", text, limit) for i, text in enumerate(request.fg_nprompt)]
    texts += [("scheduler", request.scheduler or "", MAX_NAME)]
    for field, text, longest in texts:
        if len(text) > longest:
            yield FieldNote(field, f"expected at most {longest} characters, got {len(text)}")


def _numbers(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    ranges: list[tuple[str, int, int]] = [
        ("width", settings.min_side, settings.max_side),
        ("height", settings.min_side, settings.max_side),
        ("ddim_steps", 1, settings.max_steps),
        ("bootstrapping", 0, MAX_BOOTSTRAPPING),
        ("seed", 0, MAX_SEED),
        ("guidance_scale", 0, MAX_GUIDANCE),
        ("view_stride", 1, MAX_STRIDE),
    ]
    outside = False
    for field, low, high in ranges:
        value = getattr(request, field)
        if value is not None and not low <= value <= high:
            outside = True
            yield FieldNote(field, f"expected {low} to {high}, got {found(value)}")
    if not outside:
        yield from _areas(request, settings)


def _areas(request: MultsdRequest, settings: Settings) -> Iterator[FieldNote]:
    pixels = request.width * request.height
    size = f"{request.width} x {request.height}"
    if pixels > settings.max_pixels:
        yield FieldNote("width", f"expected width x height of at most {settings.max_pixels} pixels, got {size}")
    elif pixels * len(request.masks) > settings.max_mask_pixels:
        expected = f"at most {settings.max_mask_pixels} mask pixels"
        yield FieldNote("masks", f"expected {expected}, got {len(request.masks)} masks of {size}")
