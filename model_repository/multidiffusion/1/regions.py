"""Regions: from pixel masks to binary masks of latent cells on a canvas.

R regions, region 0 is the background; height x width picture in pixels; h x w canvas in latent cells.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

MASKED_COVERAGE = 0.5  # of a cell's pixels; the paper's threshold of a mask resized to latent cells


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the canvas that is painted: never smaller than one window, in whole cells.

    A picture that is smaller, or whose side is no multiple of a cell, is painted larger, centred, and cropped.
    """

    height: int  # latent cells
    width: int  # latent cells
    top: int  # pixels above the picture
    left: int  # pixels left of the picture
    picture_height: int  # pixels
    picture_width: int  # pixels
    cell: int  # pixels per latent cell and side

    @property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns of the picture within the decoded canvas, in pixels."""
        return (
            slice(self.top, self.top + self.picture_height),
            slice(self.left, self.left + self.picture_width),
        )

    @property
    def padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels (above, below), (left, right) of the picture on the canvas."""
        below = self.height * self.cell - self.top - self.picture_height
        right = self.width * self.cell - self.left - self.picture_width
        return (self.top, below), (self.left, right)


def make_canvas(height: int, width: int, *, window: int, cell: int) -> Canvas:
    """Place a picture of `height` x `width` pixels on the smallest canvas that holds it and one window."""
    h, w = (max(-(-side // cell), window) for side in (height, width))
    return Canvas(
        height=h,
        width=w,
        top=(h * cell - height) // 2,
        left=(w * cell - width) // 2,
        picture_height=height,
        picture_width=width,
        cell=cell,
    )


def cell_coverage(mask: npt.NDArray[np.bool_], canvas: Canvas) -> npt.NDArray[np.float32]:
    """Share of each canvas cell's pixels that `mask` (height, width) marks: (h, w) float32 in [0, 1].

    Outside the picture the mask's edge is repeated.
    """
    padded = np.pad(mask, canvas.padding, mode="edge")  # (h * cell, w * cell)
    blocks = padded.reshape(canvas.height, canvas.cell, canvas.width, canvas.cell)
    coverage: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3), dtype=np.float32)
    return coverage


def latent_mask(mask: npt.NDArray[np.bool_], canvas: Canvas) -> npt.NDArray[np.bool_]:
    """Reduce a pixel mask (height, width) to canvas cells: (h, w) bool.

    A cell belongs to the region when at least half of it is masked. A cell with less belongs to it too when none
    of its eight neighbours reaches a half, so that strokes thinner than a cell survive and edges do not grow.
    """
    coverage = cell_coverage(mask, canvas)
    solid = coverage >= MASKED_COVERAGE
    return solid | ((coverage > 0) & ~_beside(solid))


def _beside(solid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Cells with at least one of their eight neighbours in `solid` (h, w)."""
    h, w = solid.shape
    padded = np.pad(solid, 1)
    shifts = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    beside: npt.NDArray[np.bool_] = np.logical_or.reduce([padded[dy : dy + h, dx : dx + w] for dy, dx in shifts])
    return beside


def region_masks(masks: npt.NDArray[np.bool_], canvas: Canvas) -> npt.NDArray[np.bool_]:
    """Binary latent masks of all regions, the background first: (R, h, w) bool from (R - 1, height, width).

    The background is what no region marks, so every cell belongs to at least one region.
    """
    foreground = [latent_mask(mask, canvas) for mask in masks]
    marked = np.logical_or.reduce([*foreground, np.zeros((canvas.height, canvas.width), dtype=np.bool_)])
    return np.stack([~marked, *foreground])


def overlaps(masks: npt.NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """Pairs of regions that share pixels: (i, j, pixels) for masks (R - 1, height, width), regions counted from 0."""
    counted = ((i, j, int(np.count_nonzero(masks[i] & masks[j]))) for i, j in combinations(range(len(masks)), 2))
    return [overlap for overlap in counted if overlap[2]]
