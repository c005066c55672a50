"""Picture files: encoding them, and the text that travels inside them.

The text is JSON in ASCII, in a PNG's iTXt chunk named "multsd", in a JPEG's or WebP's EXIF user comment.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

QUALITY = 95  # JPEG and WebP, of 100
PNG_LEVEL = 1  # 24 ms for 512x512 instead of 39 at the default, a few per cent larger

MEDIA_TYPES: Mapping[str, str] = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}

KEYWORD = "multsd"
MAX_JPEG_EXIF = 65_533  # bytes of a segment
MAX_TEXT = 1024 * 1024  # Pillow reads no longer text of a PNG

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_ASCII = b"ASCII\0\0\0"


class TextTooLongError(ValueError):
    """A text does not fit into a file of the format."""


def encode(
    image: NDArray[np.uint8], output_format: str, *, quality: int | None = None, text: str | None = None
) -> bytes:
    """An image file of (height, width, 3) uint8 sRGB.

    output_format: a name in MEDIA_TYPES; quality: 1 to 100, of JPEG and WebP; text: ASCII, embedded. Raises
    TextTooLongError.
    """
    options: dict[str, Any] = (
        {"compress_level": PNG_LEVEL} if output_format == "png" else {"quality": quality or QUALITY}
    )
    if text is not None:
        options |= _embedded(text, output_format)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, output_format, **options)
    return buffer.getvalue()


def read_text(data: bytes) -> str | None:
    """The text inside a picture file, None where there is none.

    Raises ValueError for what is no picture, or by its header one of more pixels than Pillow decodes.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.format == "PNG":
                text = image.info.get(KEYWORD)
                return str(text) if isinstance(text, str) else None
            comment = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"picture: expected one small enough to decode, found a larger one: {error}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on broken files
        told = str(error) or type(error).__name__
        raise ValueError(f"picture: expected a PNG, JPEG or WebP file, found something else: {told}") from None
    if not isinstance(comment, bytes) or not comment.startswith(_ASCII):
        return None
    return comment.removeprefix(_ASCII).decode("ascii", "replace")


def _embedded(text: str, output_format: str) -> dict[str, Any]:
    if len(text) > MAX_TEXT:
        raise TextTooLongError(f"expected at most {MAX_TEXT} bytes, found {len(text)}")
    if output_format == "png":
        info = PngInfo()
        info.add_itxt(KEYWORD, text, zip=True)
        return {"pnginfo": info}
    exif = Image.Exif()
    exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _ASCII + text.encode("ascii")
    data = exif.tobytes()
    if output_format == "jpeg" and len(data) > MAX_JPEG_EXIF:
        raise TextTooLongError(f"expected at most {MAX_JPEG_EXIF} bytes, found {len(data)}")
    return {"exif": data}
