"""The oracle: the prompted shape, drawn where it fits a mask best. No painter of that shape can do much better.

A mask is (height, width) bool; lengths are pixels. A fit is upright, as stretched as the training's objects at most.
"""

import math
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import signal

from demo_checkpoint.language import COLOURS, PLAIN
from demo_checkpoint.pictures import (
    STRETCH,
    Pixels,
    Placement,
    draw,
    flat_ground,
    outline,
    second_tone,
    shape_coverage,
    texture_coverage,
)
from tests.benchmarks.quality_masks import Mask, rasterise
from tests.benchmarks.quality_requests import Request

TEXTURE_PERIOD = 0.24  # of the picture's longer side: the middle of the training's range
_CELL = 8  # pixels: the coarse search's grid
_STRETCHES = (1 / STRETCH, 1.0, STRETCH)  # width to height


@dataclass(frozen=True)
class Fit:
    """Where a shape is drawn."""

    x: float  # centre
    y: float
    size: float  # geometric mean of width and height
    stretch: float  # width divided by height

    @property
    def radii(self) -> tuple[float, float]:
        """Half its width and half its height."""
        return self.size / 2 * math.sqrt(self.stretch), self.size / 2 / math.sqrt(self.stretch)


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union; 0 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def drawn(shape: str, fit: Fit, height: int, width: int) -> Mask:
    """The pixels of a shape; a polygon's own edge is filled too, so its corners are centres of pixels."""
    radii = np.maximum(np.array(fit.radii) - 0.5, 0.5)
    return rasterise(outline(shape) * radii + (fit.x - 0.5, fit.y - 0.5), height, width)


def best_fit(shape: str, mask: Mask) -> Fit:
    """The fit with the highest IoU: every place on a coarse grid at every size, then uphill from the best.

    The shape lies within the picture as a whole: what the edge cuts off would count for nothing.
    """
    fit, step = _coarse_fit(shape, mask), 1.0
    best = _score(shape, fit, mask)
    while step > 0.1:
        highest, candidate = max(
            ((_score(shape, each, mask), each) for each in _neighbours(fit, step)), key=lambda pair: pair[0]
        )
        if highest > best:
            best, fit = highest, candidate
        else:
            step /= 2
    return fit


def oracle_picture(request: Request) -> Pixels:
    """The request's background and every region's shape at its best fit: (height, width, 3)."""
    side = max(request.height, request.width)
    objects = []
    for region in request.regions:
        fit = best_fit(region.thing.shape, region.mask)
        rx, ry = fit.radii
        place = Placement((fit.x / side, fit.y / side), (rx / side, ry / side))
        objects.append((shape_coverage(region.thing.shape, place, side), COLOURS[region.thing.colour]))
    return draw(_ground(request, side), objects)[: request.height, : request.width]


def filled_picture(request: Request) -> Pixels:
    """The request's background and every mask filled with its region's colour, whatever its shape: (height, width, 3).

    What a painter that knows colours alone would get.
    """
    picture = draw(_ground(request, max(request.height, request.width)), [])[: request.height, : request.width].copy()
    for region in request.regions:
        picture[region.mask] = COLOURS[region.thing.colour]
    return picture


def _ground(request: Request, side: int) -> npt.NDArray[np.float32]:
    colour = COLOURS[request.ground.colour]
    if request.ground.texture == PLAIN:
        return flat_ground(colour, side)
    tones = texture_coverage(request.ground.texture, TEXTURE_PERIOD, 0.0, (0.0, 0.0), side)
    return draw(flat_ground(colour, side), [(tones, second_tone(colour))]).astype(np.float32)


def _score(shape: str, fit: Fit, mask: Mask) -> float:
    """The IoU of a fit with the mask; 0 where it leaves the picture."""
    (rx, ry), (height, width) = fit.radii, mask.shape
    inside = rx <= fit.x <= width - rx and ry <= fit.y <= height - ry
    return iou(drawn(shape, fit, height, width), mask) if inside else 0.0


def _coarse_fit(shape: str, mask: Mask) -> Fit:
    height, width = (side // _CELL for side in mask.shape)
    cells = mask[: height * _CELL, : width * _CELL].reshape(height, _CELL, width, _CELL).mean(axis=(1, 3))
    coarse = cells >= min(0.5, cells.max())
    sizes = np.geomspace(3, max(height, width), 14)
    tried = [_best_place(shape, coarse, float(size), stretch) for size in sizes for stretch in _STRETCHES]
    x, y, size, stretch = astuple(max(tried, key=lambda pair: pair[0])[1])
    return Fit(x * _CELL, y * _CELL, size * _CELL, stretch)


def _best_place(shape: str, mask: Mask, size: float, stretch: float) -> tuple[float, Fit]:
    """The highest IoU of a shape of one size over all places within the picture, and that place; in cells."""
    form = _form(shape, size, stretch)
    if form.shape[0] > mask.shape[0] or form.shape[1] > mask.shape[1]:
        return 0.0, Fit(0.0, 0.0, size, stretch)
    common = np.rint(signal.fftconvolve(mask.astype(float), form[::-1, ::-1].astype(float), mode="valid"))
    scores = common / (form.sum() + mask.sum() - common)
    top, left = np.unravel_index(scores.argmax(), scores.shape)
    return float(scores.max()), Fit(float(left) + form.shape[1] / 2, float(top) + form.shape[0] / 2, size, stretch)


@cache
def _form(shape: str, size: float, stretch: float) -> Mask:
    """A shape in cells, without room around it."""
    side = math.ceil(size * math.sqrt(STRETCH)) + 2
    form = drawn(shape, Fit(side / 2, side / 2, size, stretch), side, side)
    trimmed: Mask = form[form.any(axis=1)][:, form.any(axis=0)]
    return trimmed


def _neighbours(fit: Fit, step: float) -> list[Fit]:
    """Fits a little beside, larger, smaller, or with one edge moved; step 1 is half a cell of the coarse search."""
    shift = step * _CELL / 2
    rx, ry = fit.radii
    moved = [
        *((fit.x + dx, fit.y + dy, rx, ry) for dx, dy in _directions(shift)),
        *((fit.x, fit.y, rx * factor, ry * factor) for factor in (1 + shift / fit.size, 1 - shift / fit.size)),
        *((fit.x + dx / 2, fit.y, rx + grow / 2, ry) for dx in (-shift, shift) for grow in (-shift, shift)),
        *((fit.x, fit.y + dy / 2, rx, ry + grow / 2) for dy in (-shift, shift) for grow in (-shift, shift)),
    ]
    return [_fit(*each) for each in moved if min(each[2:]) > 1 and 1 / STRETCH <= each[2] / each[3] <= STRETCH]


def _fit(x: float, y: float, rx: float, ry: float) -> Fit:
    return Fit(x, y, 2 * math.sqrt(rx * ry), rx / ry)


def _directions(shift: float) -> list[tuple[float, float]]:
    return [(dx, dy) for dx in (-shift, 0.0, shift) for dy in (-shift, 0.0, shift) if dx or dy]
