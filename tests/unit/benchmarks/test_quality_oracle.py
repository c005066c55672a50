import math

import numpy as np
import pytest

from demo_checkpoint.language import SHAPES
from tests.benchmarks.quality_masks import Mask, rasterise
from tests.benchmarks.quality_metrics import score_picture
from tests.benchmarks.quality_oracle import Fit, best_fit, drawn, filled_picture, iou, oracle_picture
from tests.benchmarks.quality_requests import make_request

SIDE = 256


def box(left: int, top: int, right: int, bottom: int) -> Mask:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def oracle_iou(shape: str, mask: Mask) -> float:
    return iou(drawn(shape, best_fit(shape, mask), *mask.shape), mask)


def test_iou_of_half_overlapping_boxes_is_a_third() -> None:
    assert iou(box(0, 0, 100, 100), box(50, 0, 150, 100)) == pytest.approx(1 / 3)
    assert iou(box(0, 0, 9, 9), box(0, 0, 9, 9)) == 1
    assert iou(box(0, 0, 9, 9), box(20, 20, 29, 29)) == 0
    assert iou(box(0, 0, 0, 0), box(0, 0, 0, 0)) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fits_a_mask_of_its_own_form(shape: str) -> None:
    mask = drawn(shape, Fit(143, 107, 120, 1.1), SIDE, SIDE)
    assert oracle_iou(shape, mask) > 0.97


def test_a_circle_fits_a_square_slightly_better_than_its_inscribed_circle() -> None:
    # A circle that is a little larger than the inscribed one (pi / 4 = 0.785) gains more than it spills.
    def closed_form(radius: float) -> float:  # of a circle around the middle of a square of side 2, 1 <= r <= sqrt(2)
        half = math.acos(1 / radius)
        common = math.pi * radius**2 - 4 * (half * radius**2 - math.sqrt(radius**2 - 1))
        return common / (4 + math.pi * radius**2 - common)

    best = max(closed_form(radius) for radius in np.linspace(1, 1.4, 401))
    assert math.pi / 4 < best < 0.84
    assert oracle_iou("circle", box(60, 60, 188, 188)) == pytest.approx(best, abs=0.01)


def test_a_square_of_the_same_area_fits_a_disc_as_a_circle_fits_a_square() -> None:
    disc = drawn("circle", Fit(128, 128, 128, 1.0), SIDE, SIDE)
    assert oracle_iou("square", disc) == pytest.approx(oracle_iou("circle", box(60, 60, 188, 188)), abs=0.02)


def test_no_shape_fits_a_thin_mask_well() -> None:
    thin = box(20, 120, 240, 140)
    assert 0.05 < oracle_iou("circle", thin) < 0.35


def test_a_fit_stays_within_the_picture() -> None:
    mask = drawn("circle", Fit(190, 66, 120, 1.0), SIDE, SIDE)
    fit = best_fit("triangle", mask)
    rx, ry = fit.radii
    assert rx <= fit.x <= SIDE - rx
    assert ry <= fit.y <= SIDE - ry


def test_a_mask_smaller_than_a_cell_of_the_search_has_a_fit() -> None:
    assert oracle_iou("square", box(100, 100, 103, 103)) > 0.0


def test_a_fit_is_at_least_as_good_as_any_random_one() -> None:
    rng = np.random.default_rng(0)
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    radii = 60 + 15 * np.cos(2 * angles) + 10 * np.cos(3 * angles + 1)
    blob = rasterise(np.stack([120 + radii * np.cos(angles), 130 + radii * np.sin(angles)], axis=1), SIDE, SIDE)
    best = oracle_iou("heart", blob)
    for _ in range(300):
        fit = Fit(rng.uniform(90, 160), rng.uniform(90, 160), rng.uniform(80, 160), rng.uniform(0.8, 1.25))
        assert iou(drawn("heart", fit, SIDE, SIDE), blob) <= best + 0.005


def test_the_oracle_s_picture_has_the_request_s_size() -> None:
    request = make_request(9)
    assert oracle_picture(request).shape == (request.height, request.width, 3)


@pytest.mark.parametrize("index", range(3))
def test_filled_masks_have_every_colour_and_are_wholly_filled(index: int) -> None:
    request = make_request(index)
    score = score_picture(filled_picture(request), oracle_picture(request), request)
    assert score.background_kept == 1
    for region, of_region in zip(request.regions, score.regions, strict=True):
        assert of_region.colour_right
        assert of_region.iou > 0.95
        assert of_region.over_oracle > 0.95
        assert region.fits or of_region.shape_iou < 0.95
