"""Shapes as masks: which pixels they cover."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from multsd_client import Box, Polygon, RunLengths

COORDINATE = st.floats(-20, 40, allow_nan=False) | st.integers(-5, 20).map(float)


def crossings(points: tuple[tuple[float, float], ...], x: float, y: float) -> int:
    """How many edges a ray from (x, y) to the left crosses: the even-odd rule as it is defined."""
    found = 0
    for (x0, y0), (x1, y1) in zip(points, (*points[1:], points[0]), strict=True):
        if (y0 <= y) != (y1 <= y):
            found += x0 + (y - y0) * ((x1 - x0) / (y1 - y0)) <= x
    return found


@settings(deadline=None)
@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=7))
def test_a_polygon_covers_the_pixels_whose_centres_it_encloses(points: list[tuple[float, float]]) -> None:
    outline = tuple(points)
    mask = Polygon(outline).mask(12, 9)

    expected = [[crossings(outline, x + 0.5, y + 0.5) % 2 for x in range(12)] for y in range(9)]
    assert mask.tolist() == expected


def test_a_rectangle_is_the_same_as_a_box_and_as_a_polygon() -> None:
    polygon = Polygon(((2.0, 1.0), (7.0, 1.0), (7.0, 5.0), (2.0, 5.0)))

    assert (polygon.mask(10, 8) == Box(2, 1, 7, 5).mask(10, 8)).all()
    assert Box(2, 1, 7, 5).mask(10, 8).sum() == 5 * 4


def test_a_box_is_without_its_far_edges_and_cut_at_the_canvas() -> None:
    assert Box(1, 0, 3, 2).mask(4, 3).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert Box(2, 2, 99, 99).mask(4, 3).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]
    with pytest.raises(ValueError, match="expected it on the 4x4 canvas, found 4,0,5,1"):
        Box(4, 0, 5, 1).mask(4, 4)


@pytest.mark.parametrize("side", [256.0, np.float32(256), "256", None])
def test_a_box_is_of_whole_numbers(side: object) -> None:
    with pytest.raises(ValueError, match=f"^box: expected four whole numbers, found 0,0,{side},512$"):
        Box(0, 0, side, 512)  # type: ignore[arg-type]
    box = Box(*np.array([0, 1, 2, 255], np.uint8))
    assert box == Box(0, 1, 2, 255)
    assert box.mask(3, 300).sum() == 2 * 254


def test_what_a_polygon_encloses_twice_is_outside() -> None:
    square = ((0.0, 0.0), (8.0, 0.0), (8.0, 8.0), (0.0, 8.0))

    assert Polygon(square).mask(8, 8).all()
    assert not Polygon(square * 2).mask(8, 8).any()


def test_a_polygon_outside_of_the_canvas_is_empty_and_one_around_it_full() -> None:
    def square(low: float, high: float) -> Polygon:
        return Polygon(((low, low), (high, low), (high, high), (low, high)))

    assert not square(50, 60).mask(8, 8).any()
    assert square(-1e5, 1e5).mask(8, 8).all()


def test_a_polygon_needs_three_points() -> None:
    with pytest.raises(ValueError, match="polygon: expected at least 3 points, found 2"):
        Polygon(((0.0, 0.0), (1.0, 1.0)))


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)))
def test_run_lengths_and_masks_are_each_others_inverse(mask: np.ndarray) -> None:  # type: ignore[type-arg]
    runs = RunLengths.from_mask(mask)

    assert (runs.mask() == mask).all()
    assert runs.mask().dtype == np.uint8
    assert all(runs.counts[1:]), "no run but the first is empty"


def test_run_lengths_go_along_rows_and_begin_outside() -> None:
    assert RunLengths.from_mask(np.array([[1, 1, 0], [0, 0, 1]], np.uint8)).to_json() == {
        "size": [2, 3],
        "counts": [0, 2, 3, 1],
    }


@pytest.mark.parametrize(("size", "counts"), [((0, 2), ()), ((2, 2), (5,)), ((2, 2), (5, -1)), ((1, 1), ())])
def test_run_lengths_that_fill_no_mask_are_refused(size: tuple[int, int], counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected .*, found"):
        RunLengths(size, counts)
