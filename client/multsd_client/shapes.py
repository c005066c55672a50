"""Regions as shapes instead of images. A mask is (height, width) uint8 of 0 and 1, for a canvas in pixels.

Coordinates run from the canvas's upper left corner, x to the right and y down; pixel (x, y) covers x to x + 1 and y to
y + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]

MIN_POINTS = 3
MAX_PIXELS = 2**31 - 1  # no gRPC message holds more bytes


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the canvas in pixels: x0 <= x < x1, y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    def __post_init__(self) -> None:
        try:
            for name in ("x0", "y0", "x1", "y1"):
                object.__setattr__(self, name, index(getattr(self, name)))  # NumPy's integers are not JSON
        except TypeError:
            raise ValueError(f"box: expected four whole numbers, found {self}") from None
        if self.x0 < 0 or self.y0 < 0 or self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(f"box: expected 0 <= x0 < x1 and 0 <= y0 < y1, found {self}")

    def __str__(self) -> str:
        return f"{self.x0},{self.y0},{self.x1},{self.y1}"

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read "x0,y0,x1,y1". Raises ValueError."""
        try:
            x0, y0, x1, y1 = (int(part) for part in text.split(","))
        except ValueError:
            raise ValueError(f"box: expected four whole numbers x0,y0,x1,y1, found {text!r}") from None
        return cls(x0, y0, x1, y1)

    def on_canvas(self, width: int, height: int) -> Box:
        """The box cut at the canvas's edges. Raises ValueError when it lies outside of the canvas."""
        if self.x0 >= width or self.y0 >= height:
            raise ValueError(f"box: expected it on the {width}x{height} canvas, found {self}")
        return Box(self.x0, self.y0, min(self.x1, width), min(self.y1, height))

    def mask(self, width: int, height: int) -> Mask:
        """The box on the canvas, cut at its edges. Raises ValueError when it lies outside of the canvas."""
        box = self.on_canvas(width, height)
        mask = np.zeros((height, width), np.uint8)
        mask[box.y0 : box.y1, box.x0 : box.x1] = 1
        return mask

    def to_json(self) -> dict[str, Any]:
        """The shape as an item of the request's `masks`."""
        return {"box": [self.x0, self.y0, self.x1, self.y1]}


@dataclass(frozen=True, slots=True)
class Polygon:
    """A closed outline in pixels, fractions allowed; what lies outside of the canvas is cut.

    A pixel is inside where its centre is, by the even-odd rule: where the outline crosses itself, an area that it
    encloses twice is outside.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if len(self.points) < MIN_POINTS:
            raise ValueError(f"polygon: expected at least {MIN_POINTS} points, found {len(self.points)}")

    def mask(self, width: int, height: int) -> Mask:
        """The polygon on the canvas; empty where it covers no pixel's centre."""
        flips = np.zeros((height, width + 1), np.uint8)  # 1 where inside and outside change places along a row
        for (x0, y0), (x1, y1) in zip(self.points, (*self.points[1:], self.points[0]), strict=True):
            low, high = sorted((y0, y1))
            first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (low, high))
            if first < last:
                centres = np.arange(first, last) + 0.5
                crossings = x0 + (centres - y0) * ((x1 - x0) / (y1 - y0))
                flips[np.arange(first, last), np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.intp)] ^= 1
        mask: Mask = np.bitwise_xor.accumulate(flips[:, :width], axis=1)
        return mask

    def to_json(self) -> dict[str, Any]:
        """The shape as an item of the request's `masks`."""
        return {"polygon": [list(point) for point in self.points]}


@dataclass(frozen=True, slots=True)
class RunLengths:
    """A mask as run lengths, row by row: how many pixels are outside, then inside, then outside, and so on.

    COCO's uncompressed object, but along rows (COCO counts along columns). size: (height, width); counts: the first may
    be 0, together they are height * width.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        height, width = self.size
        if min(height, width) < 1:
            raise ValueError(f"size: expected [height, width] of at least 1, found {list(self.size)}")
        if min(self.counts, default=0) < 0 or sum(self.counts) != height * width:
            total = sum(self.counts)
            raise ValueError(f"counts: expected {height * width} pixels in all ({height} x {width}), found {total}")

    @classmethod
    def from_mask(cls, mask: Mask) -> RunLengths:
        """The run lengths of (height, width), non-zero inside."""
        height, width = mask.shape
        inside = mask.ravel() != 0
        changes = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        counts = np.diff(np.concatenate(([0], changes, [inside.size]))).tolist()
        return cls((height, width), tuple([0, *counts] if inside[0] else counts))

    def mask(self) -> Mask:
        """The mask, of its own size. Raises ValueError for one of more than MAX_PIXELS."""
        height, width = self.size
        if height * width > MAX_PIXELS:
            raise ValueError(f"size: expected at most {MAX_PIXELS} pixels, found {height} x {width}")
        values = np.arange(len(self.counts), dtype=np.uint8) & 1
        return np.repeat(values, np.asarray(self.counts, np.int64)).reshape(self.size)

    def to_json(self) -> dict[str, Any]:
        """The shape as an item of the request's `masks`."""
        return {"size": list(self.size), "counts": list(self.counts)}


def polygon(points: Sequence[Sequence[float]]) -> Polygon:
    """A polygon of (x, y) pairs. Raises ValueError."""
    if any(len(point) != 2 for point in points):
        raise ValueError("polygon: expected points of two numbers, found another number of them")
    return Polygon(tuple((float(x), float(y)) for x, y in points))
