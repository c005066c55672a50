"""Masks from outside, images or shapes: bounded before a pixel is decoded, then brought to the canvas. R regions."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from multsd_client.errors import FieldNote
from multsd_client.masks import FORMATS, inside, stretch
from multsd_client.shapes import Box, Mask, Polygon
from multsd_gateway.errors import InvalidRequestError
from multsd_gateway.limits import require_pixels
from multsd_gateway.readers import MaskSource
from multsd_gateway.settings import Settings

SAME_PROPORTIONS = 0.01

_WHITESPACE = b" \t\r\n\f\v"


class MaskError(ValueError):
    """An image that cannot serve as a mask; the text says what was expected and what was found."""


def decode_masks(
    sources: Sequence[MaskSource], *, width: int, height: int, settings: Settings
) -> tuple[Mask | None, list[FieldNote]]:
    """Masks of one request, (R - 1, height, width) uint8 of 0 and 1, or None for no region; and warnings.

    Raises InvalidRequestError with every fault found.
    """
    masks, warnings, faults = [], [], []
    pixels_left = settings.max_mask_pixels
    for number, source in enumerate(sources):
        field = f"masks[{number}]"
        try:
            mask = as_sent(source, (width, height), max_pixels=min(settings.max_image_pixels, pixels_left))
        except ValueError as error:
            faults.append(FieldNote(field, str(error)))
            continue
        pixels_left -= mask.size
        masks.append(stretch(mask, width=width, height=height))
        if not same_proportions((mask.shape[1], mask.shape[0]), (width, height)):
            size = f"{mask.shape[1]}x{mask.shape[0]}"
            warnings.append(FieldNote(field, f"stretched from {size} to {width}x{height}, other proportions"))
    if faults:
        raise InvalidRequestError(faults)
    return (np.stack(masks) if masks else None), warnings


def as_sent(source: MaskSource, canvas: tuple[int, int], *, max_pixels: int) -> Mask:
    """One mask at its own size: an image's, run lengths', or for a box or polygon the canvas's (width, height).

    Raises ValueError.
    """
    if isinstance(source, str):
        return inside(open_image(decode_base64(source), max_pixels=max_pixels))
    if isinstance(source, Box | Polygon):
        return source.mask(*canvas)
    require_pixels(source, max_pixels)
    return source.mask()


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 string or a base64 data: URL; white space anywhere is allowed. Raises MaskError."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.rstrip().lower().endswith(";base64"):
            raise MaskError("expected a data: URL with base64, found another encoding")
    try:
        data = base64.b64decode(text.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        reason = "a character that is not ASCII" if isinstance(error, UnicodeEncodeError) else str(error)
        raise MaskError(f"expected an image in base64, found invalid base64: {reason}") from None
    if not data:
        raise MaskError("expected an image in base64, found nothing")
    return data


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode an image file after its header has been found harmless. Raises MaskError."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        told = re.search(r"\d+", str(error))
        found = told.group() if told else "far more"
        raise MaskError(f"expected an image of at most {max_pixels} pixels, found {found}") from None
    except Exception:  # Pillow's parsers raise nearly anything on hostile bytes
        raise MaskError(f"expected a {', '.join(FORMATS)} image, found {len(data)} bytes of something else") from None
    if image.width * image.height > max_pixels:
        raise MaskError(f"expected an image of at most {max_pixels} pixels, found {image.width}x{image.height}")
    try:
        animated = getattr(image, "is_animated", False)
        if not animated:
            image.load()
    except Exception as error:  # as above
        raise MaskError(f"expected a whole {image.format} image, found a broken one: {str(error)[:80]}") from None
    if animated:
        raise MaskError(f"expected a still image, found an animated {image.format}")
    return image


def same_proportions(size: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """Whether stretching size to canvas, both (width, height), distorts by less than a hundredth."""
    distortion = (size[0] * canvas[1]) / (size[1] * canvas[0])
    return abs(distortion - 1) <= SAME_PROPORTIONS
