"""The rows of algorithm.md's table, and that each pair of view and region is counted exactly once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regions import make_canvas, region_masks
from row_plan import Regions, count_reference_rows, make_plan, plan_rows, row_weight
from views import make_views

Box = tuple[int, int, int, int]  # top, left, bottom, right in pixels


def regions_of(
    height: int, width: int, boxes: list[Box], *, guidance_scale: float = 7.5, window: int = 64, stride: int = 8
) -> Regions:
    """One shared negative prompt, one prompt per region."""
    masks = np.zeros((len(boxes), height, width), dtype=np.bool_)
    for mask, (top, left, bottom, right) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    canvas = make_canvas(height, width, window=window, cell=8)
    count = len(boxes) + 1
    return Regions(
        masks=torch.from_numpy(region_masks(masks, canvas)),
        views=make_views(canvas.height, canvas.width, window=window, stride=stride),
        window=window,
        prompt_embedding=list(range(1, count + 1)),
        negative_embedding=[0] * count,
        guidance_scale=guidance_scale,
    )


CENTRE = [(128, 128, 384, 384)]
QUADRANTS = [(0, 0, 256, 256), (0, 256, 256, 512), (256, 0, 512, 256)]
DOUBLED = [(2 * top, 2 * left, 2 * bottom, 2 * right) for top, left, bottom, right in QUADRANTS]
STACKED = [(0, 128, 256, 384), (256, 128, 512, 384), (512, 128, 768, 384)]
THIRDS = [(0, 0, 256, 512), (256, 0, 512, 512), (512, 0, 768, 512)]
COLUMNS = [(0, left, 512, left + 256) for left in (0, 512, 1024, 1536)]


@pytest.mark.parametrize(
    ("regions", "steps", "reference", "necessary"),
    [
        pytest.param(regions_of(512, 512, CENTRE), 35, 140, 125, id="512x512, centre quarter, 35 steps"),
        pytest.param(regions_of(512, 512, CENTRE), 50, 200, 170, id="512x512, centre quarter"),
        pytest.param(regions_of(512, 512, QUADRANTS), 50, 400, 310, id="512x512, 3 quadrants"),
        pytest.param(regions_of(512, 512, QUADRANTS, guidance_scale=1), 50, 400, 200, id="3 quadrants, guidance 1"),
        pytest.param(regions_of(768, 512, STACKED), 50, 2000, 1410, id="768 high, stacked boxes"),
        pytest.param(regions_of(768, 512, THIRDS), 50, 2000, 1060, id="768 high, full-width thirds"),
        pytest.param(regions_of(512, 2048, COLUMNS), 50, 12500, 4880, id="2048 wide, 4 columns"),
        pytest.param(
            regions_of(1024, 1024, DOUBLED, window=128, stride=16),
            50,
            400,
            310,
            id="SDXL, 3 quadrants",
        ),
    ],
)
def test_rows_are_those_of_the_table(regions: Regions, steps: int, reference: int, necessary: int) -> None:
    assert count_reference_rows(regions, num_inference_steps=steps) == reference
    assert make_plan(regions).total(num_inference_steps=steps, bootstrapping=20) == necessary


def test_region_that_fills_the_picture_shares_the_unconditional_row_from_the_first_step() -> None:
    picture = (0, 0, 512, 512)
    assert len(plan_rows(regions_of(512, 512, [picture]), bootstrapping=True)) == 2
    # Two of them see the same canvas; with backgrounds of their own they would take four rows.
    assert len(plan_rows(regions_of(512, 512, [picture, picture]), bootstrapping=True)) == 3


def test_equal_prompts_share_a_row_after_bootstrapping() -> None:
    regions = regions_of(512, 512, CENTRE)
    same = Regions(**{**vars(regions), "prompt_embedding": [1, 1]})
    assert len(plan_rows(same, bootstrapping=False)) == 2
    assert len(plan_rows(same, bootstrapping=True)) == 4


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(64, 200),
    width=st.integers(64, 200),
    boxes=st.lists(st.tuples(*[st.integers(0, 190)] * 4), max_size=3),
    guidance_scale=st.sampled_from([1.0, 7.5]),
    bootstrapping=st.booleans(),
    stride=st.integers(1, 8),
)
def test_weights_sum_to_one_in_every_cell(
    height: int, width: int, boxes: list[Box], guidance_scale: float, bootstrapping: bool, stride: int
) -> None:
    regions = regions_of(height, width, boxes, guidance_scale=guidance_scale, window=8, stride=stride)
    total = torch.zeros(regions.masks.shape[1:], dtype=torch.float64)
    rows = plan_rows(regions, bootstrapping=bootstrapping)
    for row in rows:
        top, left = regions.views[row.view]
        total[top : top + 8, left : left + 8] += row_weight(row, regions)
    torch.testing.assert_close(total / regions.counts(), torch.ones_like(total))
    assert len({(row.view, row.source, row.embedding) for row in rows}) == len(rows)
