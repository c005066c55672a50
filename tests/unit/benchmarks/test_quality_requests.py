import math

import numpy as np
import pytest
from scipy import ndimage

from demo_checkpoint.language import COLOURS, PLAIN, words
from demo_checkpoint.pictures import MIN_CONTRAST
from tests.benchmarks.quality_masks import GAP, KINDS, make_form, place_masks, rasterise
from tests.benchmarks.quality_requests import COUNT, SEED, Request, ground_tones, make_request, make_requests


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return make_requests()


def test_the_list_is_made_by_its_seed_alone(requests: list[Request]) -> None:
    again = make_request(37)
    assert again.prompts == requests[37].prompts
    assert np.array_equal(again.masks, requests[37].masks)


def test_the_published_list_has_not_changed(requests: list[Request]) -> None:
    assert requests[0].prompts == ("red background", "a black circle")
    assert requests[2].prompts == ("red dots background", "a yellow square", "a cyan triangle", "a pink circle")
    assert requests[2].joined_prompt == (
        "a yellow square and a cyan triangle and a pink circle on a red dots background"
    )


def test_its_seeds_are_no_seeds_of_the_training(requests: list[Request]) -> None:
    seeds = {SEED, *(request.seed for request in requests)}
    assert len(seeds) == COUNT
    assert min(seeds) > 1_000_000  # training's are 0, its checks' 1 and 1000; its noise is seeded by its steps


def test_at_least_half_of_the_requests_have_a_mask_of_another_form_than_the_shape(requests: list[Request]) -> None:
    other = [any(not region.fits for region in request.regions) for request in requests]
    assert len(requests) >= 100
    assert np.mean(other) >= 0.5
    assert sum(region.fits for request in requests for region in request.regions) >= 30


def test_all_kinds_numbers_sizes_and_backgrounds_occur(requests: list[Request]) -> None:
    counts = np.bincount([len(request.regions) for request in requests], minlength=5)
    sizes = [(request.height, request.width) for request in requests]
    kinds = [region.placed.kind for request in requests for region in request.regions]
    textured = np.mean([request.ground.texture != PLAIN for request in requests])
    assert counts[0] == 0
    assert counts[1:].min() >= 20
    assert sizes.count((512, 512)) > 50
    assert len(set(sizes)) == 3
    assert min(kinds.count(kind) for kind in KINDS) >= 40
    assert 0.25 < textured < 0.5


def test_masks_have_the_picture_s_size_and_lie_apart(requests: list[Request]) -> None:
    for request in requests[:20]:
        assert request.masks.shape == (len(request.regions), request.height, request.width)
        for i, mask in enumerate(request.masks):
            assert mask.any()
            others = np.delete(request.masks, i, axis=0).any(axis=0)
            assert not (others & (ndimage.distance_transform_edt(~mask) < GAP)).any()


def test_colours_stand_out_from_the_background_and_from_each_other(requests: list[Request]) -> None:
    for request in requests:
        colours = [*ground_tones(request.ground), *(COLOURS[region.thing.colour] for region in request.regions)]
        objects = colours[len(ground_tones(request.ground)) :]
        assert all(math.dist(one, other) > MIN_CONTRAST for one in objects for other in colours if one is not other)


def test_prompts_are_of_the_closed_language(requests: list[Request]) -> None:
    known = set(words())
    assert all(set(request.joined_prompt.split()) <= known for request in requests)


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_s_area_is_as_its_kind_says(kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        corners = make_form(kind, rng, size=1.0).corners
        width, height = np.ptp(corners, axis=0)
        area = rasterise(corners - corners.min(axis=0) + 2, int(height) + 6, int(width) + 6).sum()
        if kind == "thin":
            assert area < 46 * 380
            assert max(width, height) > 150
        if kind == "small":
            assert max(width, height) <= 93
        if kind in ("disc", "box", "free"):
            assert area > 15_000


def test_a_mask_that_finds_no_room_is_an_error() -> None:
    with pytest.raises(ValueError, match="found no room for a thin one"):
        place_masks(["thin"], np.random.default_rng(0), height=64, width=64)
