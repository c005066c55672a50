"""The thing under a mask has the colour of its prompt, through the whole stack, with the checkpoint that is shipped."""

import httpx
import numpy as np
import pytest

from demo_checkpoint.language import Thing
from demo_checkpoint.recognise import colour_mask, recognise
from tests.integration.requests_and_pictures import mask_png, picture

LEFT, RIGHT = (40, 146, 230, 366), (290, 146, 480, 366)  # left, top, right, bottom in pixels
MARGIN = 16  # pixels beside an edge, where two cells of different colours meet


def share(found: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], box: tuple[int, int, int, int]) -> float:
    """Share of a box's pixels that are marked, its margin left out."""
    left, top, right, bottom = box
    return float(found[top + MARGIN : bottom - MARGIN, left + MARGIN : right - MARGIN].mean())


def test_two_regions_and_the_background_have_their_colours(gateway: httpx.Client) -> None:
    body = {
        "bg_prompt": "yellow background",
        "fg_prompt": ["a blue square", "a red square"],
        "masks": [mask_png(512, 512, LEFT), mask_png(512, 512, RIGHT)],
        "ddim_steps": 35,
        "bootstrapping": 7,
        "seed": 1,
    }
    response = gateway.post("/multsd", json=body)
    assert response.status_code == 200, response.text
    image = picture(response.json())
    assert share(colour_mask(image, "blue"), LEFT) > 0.6
    assert share(colour_mask(image, "red"), RIGHT) > 0.6
    outside = np.ones((512, 512), dtype=np.bool_)
    for left, top, right, bottom in (LEFT, RIGHT):
        outside[top - MARGIN : bottom + MARGIN, left - MARGIN : right + MARGIN] = False
    assert float(colour_mask(image, "yellow")[outside].mean()) > 0.8


@pytest.mark.parametrize("thing", [Thing("red", "heart"), Thing("blue", "cross"), Thing("yellow", "triangle")])
def test_a_prompt_without_masks_is_painted_in_its_colour_and_shape(gateway: httpx.Client, thing: Thing) -> None:
    body = {"bg_prompt": thing.phrase(), "ddim_steps": 20, "guidance_scale": 3, "seed": 1, "output_format": "png"}
    response = gateway.post("/multsd", json=body)
    assert response.status_code == 200, response.text
    found = recognise(picture(response.json()), thing)
    assert (found.colour_right, found.shape) == (True, thing.shape)
