"""Mask images from outside: bounded before a pixel is decoded, then stretched to the canvas.

R regions. A pixel is inside where max(red, green, blue) * alpha / 255 >= 128: what is transparent is not masked, grey
counts from its middle, and any bright colour counts (pure red, too, unlike a conversion by luminance).
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multsd_client.errors import FieldNote
from multsd_gateway.errors import InvalidRequestError
from multsd_gateway.settings import Settings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
THRESHOLD = 128
SAME_PROPORTIONS = 0.01

_WHITESPACE = b" \t\r\n\f\v"

Mask = NDArray[np.uint8]


class MaskError(ValueError):
    """An image that cannot serve as a mask; the text says what was expected and what was found."""


def decode_masks(
    texts: Sequence[str], *, width: int, height: int, settings: Settings
) -> tuple[Mask | None, list[FieldNote]]:
    """Masks of one request, (R - 1, height, width) uint8 of 0 and 1, or None for no region; and warnings.

    Raises InvalidRequestError with every fault found.
    """
    masks, warnings, faults = [], [], []
    pixels_left = settings.max_mask_pixels
    for number, text in enumerate(texts):
        field = f"masks[{number}]"
        try:
            image = open_image(decode_base64(text), max_pixels=min(settings.max_image_pixels, pixels_left))
            pixels_left -= image.width * image.height
            masks.append(stretch(inside(image), width=width, height=height))
        except MaskError as error:
            faults.append(FieldNote(field, str(error)))
            continue
        if not same_proportions(image.size, (width, height)):
            size = f"{image.width}x{image.height}"
            warnings.append(FieldNote(field, f"stretched from {size} to {width}x{height}, other proportions"))
    if faults:
        raise InvalidRequestError(faults)
    return (np.stack(masks) if masks else None), warnings


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 string or a base64 data: URL; white space anywhere is allowed. Raises MaskError."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.rstrip().lower().endswith(";base64"):
            raise MaskError("expected a data: URL with base64, got another encoding")
    try:
        data = base64.b64decode(text.encode("ascii").translate(None, _WHITESPACE), validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        reason = "a character that is not ASCII" if isinstance(error, UnicodeEncodeError) else str(error)
        raise MaskError(f"expected an image in base64, got invalid base64: {reason}") from None
    if not data:
        raise MaskError("expected an image in base64, got nothing")
    return data


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode an image file after its header has been found harmless. Raises MaskError."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise MaskError(f"expected an image of at most {max_pixels} pixels, got far more") from None
    except Exception:  # Pillow's parsers raise nearly anything on hostile bytes
        raise MaskError(f"expected a {', '.join(FORMATS)} image, got {len(data)} bytes of something else") from None
    if image.width * image.height > max_pixels:
        raise MaskError(f"expected an image of at most {max_pixels} pixels, got {image.width}x{image.height}")
    try:
        animated = getattr(image, "is_animated", False)
        if not animated:
            image.load()
    except Exception as error:  # as above
        raise MaskError(f"expected a whole {image.format} image, got a broken one: {str(error)[:80]}") from None
    if animated:
        raise MaskError(f"expected a still image, got an animated {image.format}")
    return image


def inside(image: Image.Image) -> Mask:
    """Where an image says "inside": (height, width) uint8 of 0 and 1."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() clips
        return as_mask(np.asarray(image).astype(np.int64) >= THRESHOLD * 256)
    pixels = np.asarray(image.convert("RGBA"))  # (height, width, 4)
    brightness = pixels[..., :3].max(axis=-1).astype(np.uint16)
    return as_mask(brightness * pixels[..., 3] >= THRESHOLD * 255)


def as_mask(marked: NDArray[np.bool_]) -> Mask:
    """False and True as 0 and 1."""
    return marked.view(np.uint8)


def stretch(mask: Mask, *, width: int, height: int) -> Mask:
    """Nearest-neighbour resize to (height, width)."""
    if mask.shape == (height, width):
        return mask
    resized: Mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return resized


def same_proportions(size: tuple[int, int], canvas: tuple[int, int]) -> bool:
    """Whether stretching size to canvas, both (width, height), distorts by less than a hundredth."""
    distortion = (size[0] * canvas[1]) / (size[1] * canvas[0])
    return abs(distortion - 1) <= SAME_PROPORTIONS
