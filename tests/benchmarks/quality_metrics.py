"""What a picture shows of what a request asked for, by rule.

A picture is (height, width, 3) uint8, a mask (height, width) bool; all figures are shares, 0 to 1.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from demo_checkpoint.language import COLOURS
from demo_checkpoint.pictures import Pixels, second_tone
from demo_checkpoint.recognise import MAX_DISTANCE, largest_component, recognise_shape
from tests.benchmarks.quality_masks import Mask
from tests.benchmarks.quality_oracle import iou
from tests.benchmarks.quality_requests import Region, Request

Labels = npt.NDArray[np.int64]

COLOUR_NAMES = tuple(COLOURS)
NO_COLOUR = -1
# Of the pixels that the oracle has under the mask: with fewer a colour is a speck, not what the region shows.
MIN_COLOUR_SHARE = 0.25


@dataclass(frozen=True)
class RegionScore:
    """One region of one picture."""

    iou: float  # of the object with the mask
    oracle_iou: float  # of the oracle's object with the mask
    over_oracle: float  # their quotient, at most 1: to fill a mask more than the shape can is no better
    shape_iou: float  # of the object with the oracle's
    colour_right: bool
    shape_recognised: bool


@dataclass(frozen=True)
class PictureScore:
    """One picture."""

    regions: tuple[RegionScore, ...]
    background_kept: float


def segment(pixels: Pixels) -> Labels:
    """Each pixel's nearest colour: an index of COLOUR_NAMES, plus their number for a second tone; -1 far from all.

    The same rule as `recognise.colour_mask`, for all colours at once.
    """
    tones = [*COLOURS.values(), *(second_tone(colour) for colour in COLOURS.values())]
    palette = np.array(tones, np.float32)
    values = pixels.astype(np.float32)
    # Squared distances (height, width, 2 * colours), less the pixel's own square, by way of a matrix product.
    squares = (palette**2).sum(-1) - 2 * values @ palette.T
    nearest = squares.min(axis=-1) + (values**2).sum(-1)
    return np.where(nearest < MAX_DISTANCE**2, squares.argmin(axis=-1), NO_COLOUR)


def object_mask(labels: Labels, colour: str) -> Mask:
    """Every pixel of an object's colour, wherever it is, without specks and hairs."""
    mask: Mask = ndimage.binary_opening(labels == COLOUR_NAMES.index(colour), iterations=2)
    return mask


def background_kept(labels: Labels, request: Request) -> float:
    """The share of what no mask marks that has the background's colour, in either tone."""
    outside = labels[request.outside]
    return float((_names(outside) == COLOUR_NAMES.index(request.ground.colour)).mean())


def majority_colour(labels: Labels, mask: Mask, *, background: str, least: float) -> str | None:
    """The most common colour under a mask, the background's left out; None with fewer than `least` pixels.

    The background's own colour may surround a star in a round mask, so it does not count; a second tone is no colour.
    """
    inside = labels[mask]
    counts = np.bincount(inside[(inside >= 0) & (inside < len(COLOURS))], minlength=len(COLOURS))
    counts[COLOUR_NAMES.index(background)] = 0
    most = int(counts.argmax())
    return COLOUR_NAMES[most] if counts[most] >= max(least, 1.0) else None


def score_picture(pixels: Pixels, oracle: Pixels, request: Request) -> PictureScore:
    """Every region's figures and the background's."""
    labels, ideal = segment(pixels), segment(oracle)
    regions = tuple(_score_region(labels, ideal, request, region) for region in request.regions)
    return PictureScore(regions, background_kept(labels, request))


def _score_region(labels: Labels, ideal: Labels, request: Request, region: Region) -> RegionScore:
    thing = region.thing
    found, wanted = object_mask(labels, thing.colour), object_mask(ideal, thing.colour)
    oracle_iou, own_iou = iou(wanted, region.mask), iou(found, region.mask)
    least = MIN_COLOUR_SHARE * np.count_nonzero(wanted & region.mask)
    majority = majority_colour(labels, region.mask, background=request.ground.colour, least=least)
    return RegionScore(
        iou=own_iou,
        oracle_iou=oracle_iou,
        over_oracle=min(own_iou / oracle_iou, 1.0) if oracle_iou else 0.0,
        shape_iou=iou(found, wanted),
        colour_right=majority == thing.colour,
        shape_recognised=recognise_shape(largest_component(found))[0] == thing.shape,
    )


def _names(labels: Labels) -> Labels:
    """Labels with a second tone counted as its colour."""
    return np.where(labels >= len(COLOURS), labels - len(COLOURS), labels)
