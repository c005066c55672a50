"""What a caller asks for. Sizes are pixels; R regions on a background."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the canvas in pixels: x0 <= x < x1, y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        if self.x0 < 0 or self.y0 < 0 or self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"box: expected 0 <= x0 < x1 and 0 <= y0 < y1, got {self}")

    def __str__(self) -> str:
        return f"{self.x0},{self.y0},{self.x1},{self.y1}"

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read "x0,y0,x1,y1". Raises ValueError."""
        try:
            x0, y0, x1, y1 = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"box: expected four whole numbers x0,y0,x1,y1, got {text!r}") from None
        return cls(x0, y0, x1, y1)

    def png(self, width: int, height: int) -> bytes:
        """The box as a mask image of width x height pixels. Raises ValueError when it lies outside of the canvas."""
        if self.x0 >= width or self.y0 >= height:
            raise ValueError(f"box: expected it on the {width}x{height} canvas, got {self}")
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).rectangle((self.x0, self.y0, self.x1 - 1, self.y1 - 1), fill=255)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the canvas with a prompt of its own.

    mask: a Box, or the bytes of an image file (PNG, JPEG, WebP, GIF, BMP), white inside; the service stretches it to
    the canvas. negative_prompt: None means the background's.
    """

    mask: Box | bytes
    prompt: str
    negative_prompt: str | None = None

    @classmethod
    def from_file(cls, path: Path, prompt: str, negative_prompt: str | None = None) -> Region:
        """A region whose mask is an image file. Raises OSError."""
        return cls(path.read_bytes(), prompt, negative_prompt)

    def mask_base64(self, width: int, height: int) -> str:
        mask = self.mask.png(width, height) if isinstance(self.mask, Box) else self.mask
        return base64.b64encode(mask).decode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A picture to paint. What is None is left to the service, which tells in the result what it took."""

    prompt: str
    negative_prompt: str = ""
    regions: tuple[Region, ...] = ()
    width: int = 512
    height: int = 512
    num_inference_steps: int | None = None
    bootstrapping: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    scheduler: str | None = None
    view_stride: int | None = None
    output_format: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The body of POST /multsd. Raises ValueError for a box outside of the canvas."""
        optional: Mapping[str, Any] = {
            "ddim_steps": self.num_inference_steps,
            "bootstrapping": self.bootstrapping,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "scheduler": self.scheduler,
            "view_stride": self.view_stride,
            "output_format": self.output_format,
        }
        return {
            "bg_prompt": self.prompt,
            "bg_nprompt": self.negative_prompt,
            "fg_prompt": [region.prompt for region in self.regions],
            "fg_nprompt": [self._negative(region) for region in self.regions],
            "masks": [region.mask_base64(self.width, self.height) for region in self.regions],
            "width": self.width,
            "height": self.height,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _negative(self, region: Region) -> str:
        return self.negative_prompt if region.negative_prompt is None else region.negative_prompt
