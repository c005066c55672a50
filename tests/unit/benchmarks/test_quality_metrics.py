from dataclasses import replace

import numpy as np
import pytest

from demo_checkpoint.language import COLOURS, Ground
from demo_checkpoint.pictures import Pixels, random_picture, second_tone
from demo_checkpoint.recognise import colour_mask
from tests.benchmarks.quality_metrics import (
    COLOUR_NAMES,
    background_kept,
    majority_colour,
    object_mask,
    score_picture,
    segment,
)
from tests.benchmarks.quality_oracle import oracle_picture
from tests.benchmarks.quality_requests import Request, make_request

PLAIN_FIT = 0  # a black circle under a disc, on red
TEXTURED = 2  # three masks on dots


def flat(request: Request, colour: str) -> Pixels:
    return np.full((request.height, request.width, 3), COLOURS[colour], np.uint8)


def filled(request: Request) -> Pixels:
    """Every mask filled with its colour, whatever the shape."""
    pixels = flat(request, request.ground.colour)
    for region in request.regions:
        pixels[region.mask] = COLOURS[region.thing.colour]
    return pixels


def test_segmentation_is_the_recogniser_s_rule_for_all_colours() -> None:
    pixels = random_picture(np.random.default_rng(5), 128).pixels
    labels = segment(pixels)
    for index, colour in enumerate(COLOUR_NAMES):
        assert np.array_equal(labels == index, colour_mask(pixels, colour))
        both = (labels == index) | (labels == index + len(COLOURS))
        assert np.array_equal(both, colour_mask(pixels, colour, tones=2))


def test_the_oracle_s_own_picture_is_perfect() -> None:
    request = make_request(PLAIN_FIT)
    oracle = oracle_picture(request)
    score = score_picture(oracle, oracle, request)
    (region,) = score.regions
    assert region.over_oracle == 1
    assert region.shape_iou == 1
    assert region.iou == region.oracle_iou > 0.97
    assert region.colour_right
    assert region.shape_recognised
    assert score.background_kept > 0.995


def test_on_a_texture_the_oracle_keeps_both_tones_and_loses_only_what_its_objects_hide() -> None:
    request = make_request(TEXTURED)
    oracle = oracle_picture(request)
    score = score_picture(oracle, oracle, request)
    assert all(region.over_oracle == 1 and region.colour_right for region in score.regions)
    assert 0.9 < score.background_kept < 1


def test_an_empty_background_has_no_object_and_is_kept() -> None:
    request = make_request(PLAIN_FIT)
    score = score_picture(flat(request, request.ground.colour), oracle_picture(request), request)
    (region,) = score.regions
    assert region.over_oracle == region.shape_iou == 0
    assert not region.colour_right
    assert not region.shape_recognised
    assert score.background_kept == 1


def test_noise_scores_next_to_nothing() -> None:
    request = make_request(TEXTURED)
    noise = np.random.default_rng(0).integers(0, 256, (request.height, request.width, 3)).astype(np.uint8)
    score = score_picture(noise, oracle_picture(request), request)
    assert all(region.over_oracle < 0.02 and not region.shape_recognised for region in score.regions)
    assert score.background_kept < 0.3


def test_a_picture_of_another_request_scores_low() -> None:
    request, other = make_request(3), make_request(4)
    score = score_picture(oracle_picture(other), oracle_picture(request), request)
    assert np.mean([region.over_oracle for region in score.regions]) < 0.1
    assert score.background_kept < 0.1


def test_a_filled_mask_counts_no_more_than_the_shape_and_is_told_by_the_oracle_s_object() -> None:
    request = make_request(TEXTURED)
    plain = replace(request, ground=Ground(request.ground.colour))
    score = score_picture(filled(plain), oracle_picture(plain), plain)
    unfit = [got for got, region in zip(score.regions, plain.regions, strict=True) if not region.fits]
    assert unfit
    for region in unfit:
        assert region.iou > 0.95 > region.oracle_iou
        assert region.over_oracle == 1
        assert region.shape_iou < 0.85
        assert not region.shape_recognised


def test_the_object_s_colour_elsewhere_lowers_its_iou() -> None:
    request = make_request(PLAIN_FIT)
    oracle = oracle_picture(request)
    spilled = oracle.copy()
    spilled[:40, :40] = COLOURS[request.regions[0].thing.colour]
    score = score_picture(spilled, oracle, request)
    assert score.regions[0].iou < score.regions[0].oracle_iou
    assert score.background_kept < 0.995


def test_specks_are_no_object() -> None:
    pixels = np.full((64, 64, 3), COLOURS["red"], np.uint8)
    pixels[10:13, 10:13] = COLOURS["blue"]
    pixels[30:50, 30:50] = COLOURS["blue"]
    found = object_mask(segment(pixels), "blue")
    assert not found[:20, :20].any()
    assert found[40, 40]


@pytest.mark.parametrize(("blue", "expected"), [(300, "blue"), (90, "green"), (0, "green")])
def test_the_majority_leaves_the_background_out(blue: int, expected: str) -> None:
    pixels = np.full((1, 1000, 3), COLOURS["red"], np.uint8)
    pixels[0, :100] = COLOURS["green"]
    pixels[0, 200 : 200 + blue] = COLOURS["blue"]
    everywhere = np.ones((1, 1000), np.bool_)
    assert majority_colour(segment(pixels), everywhere, background="red", least=50) == expected
    assert majority_colour(segment(pixels), everywhere, background="red", least=400) is None


def test_a_second_tone_is_the_background_but_no_object() -> None:
    request = make_request(PLAIN_FIT)
    tone = second_tone(COLOURS[request.ground.colour])
    pixels = np.full((request.height, request.width, 3), tone, np.uint8)
    labels = segment(pixels)
    assert background_kept(labels, request) == 1
    assert majority_colour(labels, request.regions[0].mask, background="white", least=0) is None
