import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regions import latent_mask, make_canvas, overlaps, region_masks


def pixels(height: int, width: int, *boxes: tuple[int, int, int, int]) -> npt.NDArray[np.bool_]:
    """A mask with boxes (top, left, bottom, right) marked."""
    mask = np.zeros((height, width), dtype=np.bool_)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    ("size", "cells"),
    [
        ((512, 512), (64, 64)),
        ((500, 300), (64, 64)),
        ((513, 512), (65, 64)),
        ((568, 512), (71, 64)),
        ((640, 448), (80, 64)),
        ((64, 2048), (64, 256)),
    ],
)
def test_canvas_is_the_smallest_that_holds_picture_and_window(size: tuple[int, int], cells: tuple[int, int]) -> None:
    canvas = make_canvas(*size, window=64, cell=8)
    assert (canvas.height, canvas.width) == cells


@given(height=st.integers(64, 900), width=st.integers(64, 900))
def test_picture_lies_centred_on_its_canvas(height: int, width: int) -> None:
    canvas = make_canvas(height, width, window=64, cell=8)
    (above, below), (left, right) = canvas.padding
    assert min(above, below, left, right) >= 0
    assert abs(above - below) <= 1
    assert abs(left - right) <= 1
    rows, columns = canvas.crop
    assert (rows.stop - rows.start, columns.stop - columns.start) == (height, width)


def test_aligned_box_becomes_its_cells() -> None:
    canvas = make_canvas(512, 512, window=64, cell=8)
    reduced = latent_mask(pixels(512, 512, (128, 64, 384, 448)), canvas)
    expected = np.zeros((64, 64), dtype=np.bool_)
    expected[16:48, 8:56] = True
    np.testing.assert_array_equal(reduced, expected)


def test_half_a_cell_is_masked_and_less_beside_a_masked_cell_is_not() -> None:
    canvas = make_canvas(512, 512, window=64, cell=8)
    assert latent_mask(pixels(512, 512, (0, 0, 512, 12)), canvas)[:, 1].all()  # 12 px = 1.5 cells
    assert not latent_mask(pixels(512, 512, (0, 0, 512, 11)), canvas)[:, 1].any()


def test_stroke_thinner_than_a_cell_survives() -> None:
    canvas = make_canvas(512, 512, window=64, cell=8)
    reduced = latent_mask(pixels(512, 512, (3, 0, 4, 512)), canvas)
    assert reduced[0].all()
    assert not reduced[1:].any()


def test_single_pixel_marks_its_cell_alone() -> None:
    canvas = make_canvas(512, 512, window=64, cell=8)
    assert np.argwhere(latent_mask(pixels(512, 512, (100, 200, 101, 201)), canvas)).tolist() == [[12, 25]]


def test_mask_edge_is_repeated_outside_the_picture() -> None:
    canvas = make_canvas(64, 64, window=64, cell=8)
    reduced = latent_mask(pixels(64, 64, (0, 0, 64, 32)), canvas)
    assert reduced[:, :32].all()
    assert not reduced[:, 32:].any()


def test_background_is_what_no_region_marks() -> None:
    canvas = make_canvas(512, 512, window=64, cell=8)
    masks = np.stack([pixels(512, 512, (0, 0, 256, 256)), pixels(512, 512, (128, 128, 384, 384))])
    regions = region_masks(masks, canvas)
    np.testing.assert_array_equal(regions[0], ~(regions[1] | regions[2]))


@settings(max_examples=50)
@given(data=st.data(), height=st.integers(64, 700), width=st.integers(64, 700))
def test_every_cell_has_a_region_and_no_mask_with_a_pixel_is_lost(data: st.DataObject, height: int, width: int) -> None:
    boxes = []
    for _ in range(data.draw(st.integers(0, 3))):
        top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
        boxes.append(pixels(height, width, (top, left, bottom, right)))
    masks = np.array(boxes, dtype=np.bool_).reshape(len(boxes), height, width)
    regions = region_masks(masks, make_canvas(height, width, window=64, cell=8))
    assert regions.any(axis=0).all()
    assert all(region.any() for region in regions[1:])


def test_overlaps_counts_shared_pixels() -> None:
    masks = np.stack([pixels(64, 64, (0, 0, 32, 32)), pixels(64, 64, (16, 16, 64, 64)), pixels(64, 64, (40, 0, 64, 8))])
    assert overlaps(masks) == [(0, 1, 256)]
