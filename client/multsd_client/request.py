"""What a caller asks for. Sizes are pixels; R regions on a background."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multsd_client import masks
from multsd_client.shapes import Box, Mask, Polygon, RunLengths


@dataclass(frozen=True, slots=True)
class Region:
    """A part of the canvas with a prompt of its own.

    mask: a Box, a Polygon, RunLengths, or the bytes of an image file (PNG, JPEG, WebP, GIF, BMP), white inside; an
    image or run lengths of another size are stretched to the canvas. negative_prompt: None means the background's.
    """

    mask: Box | Polygon | RunLengths | bytes
    prompt: str
    negative_prompt: str | None = None

    @classmethod
    def from_file(cls, path: Path, prompt: str, negative_prompt: str | None = None) -> Region:
        """A region whose mask is an image file. Raises OSError."""
        return cls(path.read_bytes(), prompt, negative_prompt)

    def mask_json(self, width: int, height: int) -> str | dict[str, Any]:
        """The mask as an item of the request's `masks`. Raises ValueError for a box outside of the canvas."""
        if isinstance(self.mask, Box):
            return self.mask.on_canvas(width, height).to_json()
        if isinstance(self.mask, Polygon | RunLengths):
            return self.mask.to_json()
        return base64.b64encode(self.mask).decode("ascii")

    def mask_array(self, width: int, height: int) -> Mask:
        """The mask on the canvas: (height, width) uint8 of 0 and 1.

        Raises ValueError: a box outside of the canvas, run lengths of too large a mask, bytes that are no image.
        """
        if isinstance(self.mask, bytes):
            return masks.read(self.mask, width=width, height=height)
        if isinstance(self.mask, RunLengths):
            return masks.stretch(self.mask.mask(), width=width, height=height)
        return self.mask.mask(width, height)


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
    quality: int | None = None
    preview_every: int | None = None
    deadline_s: float | None = None

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
            "quality": self.quality,
            "preview_every": self.preview_every,
            "deadline_s": self.deadline_s,
        }
        return {
            "bg_prompt": self.prompt,
            "bg_nprompt": self.negative_prompt,
            "fg_prompt": [region.prompt for region in self.regions],
            "fg_nprompt": [self.negative_of(region) for region in self.regions],
            "masks": [region.mask_json(self.width, self.height) for region in self.regions],
            "width": self.width,
            "height": self.height,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def negative_of(self, region: Region) -> str:
        """The negative prompt that holds for a region."""
        return self.negative_prompt if region.negative_prompt is None else region.negative_prompt
