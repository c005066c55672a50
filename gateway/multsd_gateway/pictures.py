"""Encoding finished pictures, and which encoding a client asked for."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUALITY = 95  # JPEG and WebP, of 100
PNG_LEVEL = 1  # 24 ms for 512x512 instead of 39 at the default, a few per cent larger

MEDIA_TYPES = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_OPTIONS = {"jpeg": {"quality": QUALITY}, "png": {"compress_level": PNG_LEVEL}, "webp": {"quality": QUALITY}}
_FORMAT_OF = {media_type: name for name, media_type in MEDIA_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The reply that a client prefers: JSON or a picture, in the named format or else the one the request names."""

    as_picture: bool
    name: str | None = None


def encode(image: NDArray[np.uint8], output_format: str) -> bytes:
    """An image file of (height, width, 3) uint8 sRGB; output_format: a name in MEDIA_TYPES."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, output_format, **_OPTIONS[output_format])
    return buffer.getvalue()


def wanted_format(accept: str) -> Wanted:
    """What an Accept header prefers; JSON where it has no preference for a picture."""
    best, best_quality = Wanted(as_picture=False), 0.0
    for entry in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in entry.split(";"))
        choice, quality = _choice(media_type), _quality(parameters)
        if choice is not None and quality > best_quality:
            best, best_quality = choice, quality
    return best


def _choice(media_type: str) -> Wanted | None:
    if media_type in ("application/json", "application/*", "*/*"):
        return Wanted(as_picture=False)
    if media_type == "image/*":
        return Wanted(as_picture=True)
    name = _FORMAT_OF.get(media_type)
    return Wanted(as_picture=True, name=name) if name else None


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0
