"""Masks of the region-fidelity benchmark: discs, boxes, free shapes, thin and small ones, placed apart from each other.

Lengths are pixels; a mask is (height, width) bool; corners are (N, 2) as (x, y), y downwards.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from demo_checkpoint.pictures import STRETCH

Mask = npt.NDArray[np.bool_]
Corners = npt.NDArray[np.float64]

KINDS = ("disc", "box", "free", "thin", "small")
MARGIN = 12  # between a mask and the picture's edge
GAP = 16  # between two masks: two latent cells
_SMALL = (60.0, 92.0)  # diameter: the smallest objects that the checkpoint was shown have 61
_THIN = (30.0, 44.0)  # width: about four latent cells, so that a mask has an inside
_SHRINK = 0.96  # after a try that found no room
_TRIES = 400


@dataclass(frozen=True)
class Form:
    """An outline around (0, 0) and the shape of the language that it has, None where it has none."""

    corners: Corners
    shape: str | None


@dataclass(frozen=True, eq=False)
class PlacedMask:
    """A mask, its kind, and the shape of the language that it has, if any."""

    kind: str
    shape: str | None
    mask: Mask


def place_masks(kinds: list[str], rng: np.random.Generator, *, height: int, width: int) -> list[PlacedMask]:
    """One mask for each kind, at least GAP apart; the more there are, the smaller they are."""
    size = {1: 1.0, 2: 0.85, 3: 0.72, 4: 0.64}[len(kinds)]
    taken = np.zeros((height, width), np.bool_)
    placed = []
    for kind in kinds:
        placed.append(_place(kind, rng, size=size, taken=taken))
        taken = taken | (ndimage.distance_transform_edt(~placed[-1].mask) < GAP)
    return placed


def _place(kind: str, rng: np.random.Generator, *, size: float, taken: Mask) -> PlacedMask:
    for _ in range(_TRIES):
        form = make_form(kind, rng, size=size)
        mask = _rasterised(form.corners, rng, taken.shape)
        if mask is not None and not (mask & taken).any():
            return PlacedMask(kind, form.shape, mask)
        size *= _SHRINK if kind != "small" and size > 0.4 else 1.0
    raise ValueError(f"masks: found no room for a {kind} one in {_TRIES} tries")


def make_form(kind: str, rng: np.random.Generator, *, size: float) -> Form:
    """A random outline of a kind; size scales all but small ones and a thin one's width."""
    return {"disc": _disc, "box": _box, "free": _free, "thin": _thin, "small": _small}[kind](rng, size)


def rasterise(corners: Corners, height: int, width: int) -> Mask:
    """The pixels (height, width) of a polygon."""
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.asarray(canvas, np.bool_)


def _rasterised(corners: Corners, rng: np.random.Generator, shape: tuple[int, ...]) -> Mask | None:
    """The outline somewhere in a picture (height, width), None where it does not fit."""
    height, width = shape
    low, high = corners.min(axis=0), corners.max(axis=0)
    room = np.array([width, height]) - 2 * MARGIN - (high - low)
    return rasterise(corners - low + MARGIN + rng.random(2) * room, height, width) if (room >= 0).all() else None


def _disc(rng: np.random.Generator, size: float) -> Form:
    return Form(_ellipse(rng.uniform(190, 330) * size, 1.0), "circle")


def _box(rng: np.random.Generator, size: float) -> Form:
    return _rectangle(rng.uniform(180, 300) * size, 1.8 ** rng.uniform(-1, 1))


def _small(rng: np.random.Generator, _: float) -> Form:
    diameter = rng.uniform(*_SMALL)
    return Form(_ellipse(diameter, 1.0), "circle") if rng.random() < 0.5 else _rectangle(diameter, 1.0)


def _free(rng: np.random.Generator, size: float) -> Form:
    """A smooth blob: a circle whose radius swings a few times on the way round."""
    angles = np.linspace(0, 2 * math.pi, 180, endpoint=False)
    swings = [
        amplitude * np.cos(waves * angles + rng.uniform(0, 2 * math.pi))
        for waves, amplitude in zip((1, 2, 3, 4), rng.uniform(0.5, 1.0, 4) * (0.1, 0.24, 0.2, 0.1), strict=True)
    ]
    radii = rng.uniform(95, 150) * size * (1 + np.sum(swings, axis=0))
    return Form(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1), None)


def _thin(rng: np.random.Generator, size: float) -> Form:
    """A stroke along an arc, of any direction."""
    length, half_width = rng.uniform(220, 360) * size, rng.uniform(*_THIN) / 2
    bend = rng.uniform(0.02, 1.6)  # radians between the stroke's two ends
    radius = length / bend
    along = np.linspace(-bend / 2, bend / 2, 48)
    edges = [(radius + side) * np.stack([np.sin(along), np.cos(along)], axis=1) for side in (half_width, -half_width)]
    return Form(_turned(np.concatenate([edges[0], edges[1][::-1]]), rng.uniform(0, math.pi)), None)


def _ellipse(diameter: float, stretch: float) -> Corners:
    angles = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    radii = np.array([math.sqrt(stretch), 1 / math.sqrt(stretch)]) * diameter / 2
    corners: Corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
    return corners


def _rectangle(side: float, stretch: float) -> Form:
    radii = np.array([math.sqrt(stretch), 1 / math.sqrt(stretch)]) * side / 2
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]) * radii
    return Form(corners, "square" if 1 / STRETCH <= stretch <= STRETCH else None)


def _turned(corners: Corners, angle: float) -> Corners:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Corners = corners @ np.array([[cos, sin], [-sin, cos]])
    return turned
