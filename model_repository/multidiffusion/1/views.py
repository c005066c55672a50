"""Views: the windows that the UNet sees of the canvas.

h x w canvas in latent cells, V views, each one window of `window` x `window` cells.
"""

from typing import NamedTuple


class View(NamedTuple):
    """The upper left corner of a window, in latent cells."""

    top: int
    left: int


def offsets(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side: every `stride` cells, and a last one flush with the edge."""
    last = side - window
    return [*range(0, last, stride), last]


def make_views(height: int, width: int, *, window: int, stride: int) -> list[View]:
    """Cover a canvas of `height` x `width` latent cells with windows, row-major.

    Source: MultiDiffusion, App. B, with the last window of each row and column clamped to the canvas, so that
    every cell is covered whatever the size.

    Raises ValueError where the canvas is smaller than a window or the stride would leave gaps.
    """
    if min(height, width) < window:
        raise ValueError(f"canvas: expected at least {window} x {window} cells, found {height} x {width}")
    if not 1 <= stride <= window:
        raise ValueError(f"view_stride: expected 1 to {window}, found {stride}")
    return [View(t, s) for t in offsets(height, window, stride) for s in offsets(width, window, stride)]
