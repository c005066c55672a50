"""Tell by rule what a picture shows: which pixels have a colour of the language, and which shape they form.

A picture is (H, W, 3) uint8, a mask is (H, W) bool. The rule knows nothing about how the picture was made; it is
tested on the training data's pictures.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from demo_checkpoint.language import COLOURS, SHAPES, Thing
from demo_checkpoint.pictures import TILT, Pixels, Placement, second_tone, shape_coverage

Mask = npt.NDArray[np.bool_]

MAX_DISTANCE = 90.0  # Euclidean, in 1/255: farther from every colour of the language is no colour of it
MIN_AREA = 0.003  # of the picture: less than half of the smallest star
MIN_SHAPE_IOU = 0.75  # a square's with a circle is 0.79: below, the form is of no shape at all
_TEMPLATE_SIDE = 48
_TILTS = (-TILT, -TILT / 2, 0.0, TILT / 2, TILT)


@dataclass(frozen=True)
class Recognition:
    """What a rule saw where an object was asked for."""

    colour_right: bool
    shape: str | None
    mask: Mask


def colour_mask(pixels: Pixels, colour: str, *, tones: int = 1) -> Mask:
    """Pixels whose nearest colour is the named one; two tones take a texture's darker tone as the colour too."""
    names, palette = _palette()
    values = pixels.astype(np.float32)
    # Squared distances (H, W, 2 * colours), by way of a matrix product.
    squares = (values**2).sum(-1, keepdims=True) - 2 * values @ palette.T + (palette**2).sum(-1)
    wanted = [i for i, name in enumerate(names) if name == colour][:tones]
    mask: Mask = np.isin(squares.argmin(axis=-1), wanted) & (squares.min(axis=-1) < MAX_DISTANCE**2)
    return mask


def largest_component(mask: Mask) -> Mask:
    """The largest connected part of a mask, without specks and hairs; empty if there is none."""
    labels, count = ndimage.label(ndimage.binary_opening(mask, iterations=2))
    if count == 0:
        return np.zeros_like(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def recognise_shape(mask: Mask) -> tuple[str | None, float]:
    """The shape that fits a mask best inside its bounding box, and their IoU; None if nothing fits well."""
    if not mask.any():
        return None, 0.0
    form = _normalised(mask)
    scores = {shape: max(_iou(form, template) for template in _templates(shape)) for shape in SHAPES}
    best = max(scores, key=lambda shape: scores[shape])
    return (best if scores[best] >= MIN_SHAPE_IOU else None), scores[best]


def recognise(pixels: Pixels, thing: Thing) -> Recognition:
    """Look for an object of the thing's colour, and name its shape."""
    mask = largest_component(colour_mask(pixels, thing.colour))
    visible = bool(mask.mean() >= MIN_AREA) and not _is_ground(mask)
    return Recognition(visible, recognise_shape(mask)[0] if visible else None, mask)


def ground_share(pixels: Pixels, colour: str, *, outside: Mask | None = None) -> float:
    """The share of the picture, or of what lies outside a mask, that has a ground's colour in either tone."""
    ground = colour_mask(pixels, colour, tones=2)
    return float(ground[~outside].mean() if outside is not None else ground.mean())


def _is_ground(mask: Mask) -> bool:
    """Whether a mask holds most of the picture's edge, which an object never does."""
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return bool(edge.mean() > 0.6)


def _normalised(mask: Mask) -> Mask:
    """A mask's bounding box, scaled to the templates' side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray(box.astype(np.uint8) * 255).resize((_TEMPLATE_SIDE,) * 2, Image.Resampling.BOX)
    return np.asarray(image) >= 128


@cache
def _templates(shape: str) -> tuple[Mask, ...]:
    placements = [Placement((0.5, 0.5), (0.3, 0.3), tilt) for tilt in _TILTS]
    return tuple(_normalised(shape_coverage(shape, place, 4 * _TEMPLATE_SIDE) >= 0.5) for place in placements)


@cache
def _palette() -> tuple[list[str], npt.NDArray[np.float32]]:
    """Every colour, then every colour's second tone: names and sRGB."""
    tones = [*COLOURS.values(), *(second_tone(colour) for colour in COLOURS.values())]
    return [*COLOURS, *COLOURS], np.array(tones, np.float32)


def _iou(a: Mask, b: Mask) -> float:
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else math.nan
