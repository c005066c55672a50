"""Mask images: what counts as inside, and how an image meets a canvas of another size.

A pixel is inside where max(red, green, blue) * alpha / 255 >= 128: what is transparent is not masked, grey counts from
its middle, and any bright colour counts (pure red, too, unlike a conversion by luminance). A mask is (height, width)
uint8 of 0 and 1.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from multsd_client.shapes import Mask

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
THRESHOLD = 128


def inside(image: Image.Image) -> Mask:
    """Where an image says "inside": (height, width) uint8 of 0 and 1."""
    if image.mode.startswith("I"):  # 16-bit grey, which convert() clips
        return as_mask(np.asarray(image).astype(np.int64) >= THRESHOLD * 256)
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return as_mask(np.asarray(image.convert("L")) >= THRESHOLD)
    pixels = np.asarray(image.convert("RGBA"))  # (height, width, 4)
    brightness = pixels[..., :3].max(axis=-1).astype(np.uint16)
    return as_mask(brightness * pixels[..., 3] >= THRESHOLD * 255)


def as_mask(marked: NDArray[np.bool_]) -> Mask:
    """False and True as 0 and 1."""
    return marked.view(np.uint8)


def stretch(mask: Mask, *, width: int, height: int) -> Mask:
    """Nearest-neighbour resize to (height, width).

    Whole numbers all the way, unlike Pillow's sum of steps: where a pixel's centre falls between two pixels of the mask
    it is the one to the right or below, as on the gateway's page.
    """
    if mask.shape == (height, width):
        return mask
    rows, columns = (_nearest(of, to) for of, to in zip(mask.shape, (height, width), strict=True))
    # The side first that leaves less to hold in between: a mask of one long row would be held as many of them.
    if height * mask.shape[1] <= mask.shape[0] * width:
        return mask[rows].take(columns, axis=1)
    return mask.take(columns, axis=1)[rows]


def _nearest(size: int, stretched: int) -> NDArray[np.int64]:
    """Which of `size` pixels in a row lies under the centre of each of `stretched`."""
    return (2 * np.arange(stretched, dtype=np.int64) + 1) * size // (2 * stretched)


def read(data: bytes, *, width: int, height: int) -> Mask:
    """The mask of an image file, stretched to the canvas.

    Raises ValueError where the bytes are no such image, or by their header one of more pixels than Pillow decodes.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            mask = inside(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"expected an image small enough to decode, found a larger one: {error}") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on broken files
        told = str(error) or type(error).__name__
        raise ValueError(f"expected a {', '.join(FORMATS)} image, found something else: {told}") from None
    return stretch(mask, width=width, height=height)
