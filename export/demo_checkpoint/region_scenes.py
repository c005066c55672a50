"""Pictures with masks, drawn by code: what the phases regions and recall of the training ask of MultiDiffusion.

R regions, region 0 is the ground; a window has (c, c) cells of the core. Lengths are fractions of the window's side,
corners (N, 2) are (x, y), y downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image, ImageDraw

from demo_checkpoint.core import POOLED
from demo_checkpoint.language import COLOURS, PLAIN, SHAPES, TEXTURES, Ground, Thing, caption
from demo_checkpoint.networks import WINDOW
from demo_checkpoint.pictures import (
    COLOUR_NAMES,
    MIN_CONTRAST,
    STRETCH,
    Colour,
    Item,
    Pixels,
    Placement,
    Scene,
    draw_scene,
    jittered,
    one_of,
    outline,
    random_waves,
    second_tone,
)

Mask = npt.NDArray[np.bool_]  # (MASK_SIDE, MASK_SIDE)
Corners = npt.NDArray[np.float64]

CELLS = WINDOW // POOLED
MOST_OBJECTS = 4
TEXTURED = 0.35  # of the grounds
FITTING = 0.3  # of the masks have the form of the prompted shape
MASK_SIDE = WINDOW
_DRAWN_SIDE = 2 * WINDOW  # pixels that pictures are drawn with
_MARGIN = 0.02  # between a mask and the window's edge
_GAP = 2  # cells of the window between two masks
_TRIES, _SHRINKINGS, _SHRINK = 12, 6, 0.75  # of a mask's place, and how much smaller it gets when they are spent
_FORMS = {"ellipse": 0.2, "box": 0.2, "blob": 0.15, "strip": 0.22, "small": 0.23}
_FIRST_SIZES = np.geomspace(0.35, 1.2, 10)  # of a fit, over the mask's own
_SPREADS = (1.0, 0.5, 0.25)  # of the tries around the best fit so far
_FITS = 24  # tries of each
_NEAR = np.array([0.25, 0.25, 0.2, 0.1])  # deviations: place over size, logarithms of size and stretch


@dataclass(frozen=True, eq=False)
class RegionScene:
    """A picture of some objects, each under a mask."""

    prompts: tuple[str, ...]  # (R): the ground's, then each object's
    masks: torch.Tensor  # (R, 1, c, c): the share of each cell that is a region's; they sum to 1
    latents: torch.Tensor  # (4, c, c): the picture, unscaled
    textured: bool  # the ground


def random_region_scene(rng: np.random.Generator) -> RegionScene:
    """One to four objects on a ground under masks that do not overlap; each fits its mask as well as its shape can."""
    ground = Ground(one_of(rng, COLOUR_NAMES), one_of(rng, TEXTURES) if rng.random() < TEXTURED else PLAIN)
    colour = jittered(COLOURS[ground.colour], rng)
    waves = None if ground.texture == PLAIN else random_waves(rng, ground.texture, second_tone(colour))
    tones = [colour, *([waves.tone] if waves else [])]
    things: list[Thing] = []
    masks: list[Mask] = []
    items: list[Item] = []
    for name in _colours_apart(rng, tones, 1 + int(rng.integers(MOST_OBJECTS))):
        thing = Thing(name, one_of(rng, SHAPES))
        placed = _random_mask(rng, thing.shape, masks)
        if placed is None:
            break
        mask, place = placed
        things.append(thing)
        masks.append(mask)
        items.append(Item(thing.shape, place, jittered(COLOURS[name], rng)))
    scene = Scene(colour, waves, tuple(items), caption(tuple(things), ground))
    prompts = (ground.phrase(), *(thing.phrase() for thing in things))
    return RegionScene(prompts, _shares(masks), _latents(draw_scene(scene, _DRAWN_SIDE)), waves is not None)


def best_fit(shape: str, mask: Mask, rng: np.random.Generator) -> Placement:
    """Where an upright shape covers a mask best, by IoU, as far as some tries tell; no more stretched than STRETCH."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    size = math.sqrt(math.prod(high - low)) / 2 / MASK_SIDE
    centres = ((low + high) / 2 / MASK_SIDE, (np.argwhere(mask).mean(axis=0)[::-1] + 0.5) / MASK_SIDE)

    def score(fit: npt.NDArray[np.float64]) -> float:
        place = _placement(fit)
        covered = _covered(outline(shape) * place.radii + place.centre)
        return np.count_nonzero(covered & mask) / np.count_nonzero(covered | mask)

    fits = [np.array([x, y, math.log(size * factor), 0.0]) for x, y in centres for factor in _FIRST_SIZES]
    best = max(fits, key=score)
    for spread in _SPREADS:
        near = spread * _NEAR * (size, size, 1, 1)
        best = max([best, *(best + near * rng.standard_normal((_FITS, 4)))], key=score)
    return _placement(best)


def _placement(fit: npt.NDArray[np.float64]) -> Placement:
    """fit: centre x and y, logarithms of half a side and of the stretch."""
    x, y, log_size, log_stretch = fit.tolist()
    most = math.log(STRETCH) / 2
    size, stretch = math.exp(log_size), math.exp(min(most, max(-most, log_stretch)))
    return Placement((x, y), (size * stretch, size / stretch))


def _random_mask(rng: np.random.Generator, shape: str, others: Sequence[Mask]) -> tuple[Mask, Placement] | None:
    """A mask apart from others and the place of the object in it; None where there is no room."""
    taken = _grown(np.any([np.zeros((MASK_SIDE, MASK_SIDE), np.bool_), *others], axis=0))
    fitting = rng.random() < FITTING
    form = str(rng.choice(list(_FORMS), p=list(_FORMS.values())))
    size = rng.uniform(0.35, 1.0)
    for attempt in range(_SHRINKINGS * _TRIES):
        corners = outline(shape) * _radii(rng, size, STRETCH) if fitting else _outline(form, rng, size)
        low, high = corners.min(axis=0), corners.max(axis=0)
        room = 1 - 2 * _MARGIN - (high - low)
        if (room >= 0).all():
            corners = corners + _MARGIN - low + room * rng.random(2)
            mask = _covered(corners)
            if mask.any() and not (mask & taken).any():
                return mask, _box_placement(corners) if fitting else best_fit(shape, mask, rng)
        if attempt % _TRIES == _TRIES - 1:
            size *= _SHRINK
    return None


def _outline(form: str, rng: np.random.Generator, size: float) -> Corners:
    """The corners of a random mask around (0, 0); size 1 is large."""
    if form == "ellipse":
        return outline("circle") * _radii(rng, size, STRETCH)
    if form == "box":
        return outline("square") * _radii(rng, size, 1.9)
    if form == "small":
        return outline(one_of(rng, ("circle", "square"))) * rng.uniform(0.055, 0.11)
    return _blob(rng, size) if form == "blob" else _strip(rng, size)


def _blob(rng: np.random.Generator, size: float) -> Corners:
    """A circle whose radius swings a few times on the way round."""
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    swings = [rng.uniform(0, 0.28) * np.cos(waves * angles + rng.uniform(0, 2 * math.pi)) for waves in (2, 3, 4)]
    radii = 0.3 * size * (1 + np.sum(swings, axis=0))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _strip(rng: np.random.Generator, size: float) -> Corners:
    """A stroke along an arc, of any direction."""
    length, half_width, bend = rng.uniform(0.3, 0.75) * max(size, 0.5), rng.uniform(0.028, 0.05), rng.uniform(0.02, 1.8)
    along = np.linspace(-bend / 2, bend / 2, 24)
    arc = np.stack([np.sin(along), np.cos(along)], axis=1)
    corners = np.concatenate([(length / bend + half_width) * arc, (length / bend - half_width) * arc[::-1]])
    turn = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(turn), math.sin(turn)
    turned: Corners = corners @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _radii(rng: np.random.Generator, size: float, stretch: float) -> Corners:
    """Half a width and half a height, (2); their quotient is between 1 / stretch and stretch."""
    root = stretch ** rng.uniform(-0.5, 0.5)
    return np.array([root, 1 / root]) * rng.uniform(0.28, 0.42) * size


def _box_placement(corners: Corners) -> Placement:
    low, high = corners.min(axis=0), corners.max(axis=0)
    (x, y), (radius_x, radius_y) = ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
    return Placement((x, y), (radius_x, radius_y))


def _covered(corners: Corners) -> Mask:
    """The cells of a polygon."""
    canvas = Image.new("1", (MASK_SIDE, MASK_SIDE))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners * MASK_SIDE - 0.5], fill=1)
    return np.asarray(canvas, np.bool_)


def _grown(mask: Mask) -> Mask:
    """A mask and what is next to it, as far as _GAP."""
    padded = np.pad(mask, _GAP)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * _GAP + 1, 2 * _GAP + 1))
    grown: Mask = windows.any(axis=(2, 3))
    return grown


def _colours_apart(rng: np.random.Generator, seen: Sequence[Colour], count: int) -> list[str]:
    """Up to count colours that stand out from those seen and, by name, from each other."""
    names = [str(name) for name in rng.permutation(COLOUR_NAMES)]
    return [n for n in names if all(math.dist(COLOURS[n], other) > MIN_CONTRAST for other in seen)][:count]


def _shares(masks: Sequence[Mask]) -> torch.Tensor:
    """The share of each of the core's cells that is the ground's and each mask's: (R, 1, c, c)."""
    objects = _cell_means(torch.from_numpy(np.stack(masks)).float()[:, None])
    return torch.cat([1 - objects.sum(0, keepdim=True), objects])


def _latents(pixels: Pixels) -> torch.Tensor:
    """What the encoder makes of a picture, averaged over the core's cells: (4, c, c)."""
    colours = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    means = _cell_means(colours)
    return torch.cat([means, torch.zeros_like(means[:1])])


def _cell_means(pictures: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(pictures, pictures.shape[-1] // CELLS)
