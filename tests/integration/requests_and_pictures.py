"""Requests of the integration tests, and what they look at in a picture."""

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


def mask_png(width: int, height: int, *boxes: Box) -> str:
    """White boxes on black, PNG in base64."""
    image = Image.new("L", (width, height))
    for left, top, right, bottom in boxes:
        ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=255)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def request_body(width: int = 512, height: int = 512, *, regions: int = 1, **fields: Any) -> dict[str, Any]:
    """A small request: few steps, `regions` overlapping boxes."""
    third = width // 3
    boxes = [(third * i // 2, height // 4, third * i // 2 + third, height * 3 // 4) for i in range(regions)]
    return {
        "bg_prompt": "green stripes background",
        "bg_nprompt": "",
        "fg_prompt": ["a red circle", "a blue star", "a yellow heart"][:regions],
        "fg_nprompt": [""] * regions,
        "width": width,
        "height": height,
        "ddim_steps": 4,
        "bootstrapping": 2,
        "seed": 7,
        "masks": [mask_png(width, height, box) for box in boxes],
    } | fields


def picture(reply: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The reply's picture: (height, width, 3)."""
    with Image.open(io.BytesIO(base64.b64decode(reply["image"]))) as image:
        return np.asarray(image.convert("RGB"))
