"""Every size from 64 pixels to the limit in steps of 1, any masks: what is covered, weighed and cropped.

Sizes are tried out one side at a time, all of them: a canvas and its views are those of both sides, combined.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pipeline
from conditioning import Conditioning
from parameters import MIN_SIDE
from regions import make_canvas, region_masks
from row_plan import CANVAS, Regions, Row, make_plan, row_weight
from sampling import Bootstrapping, Denoising
from views import View, make_views, offsets

CONTRACT = Path(pipeline.__file__).parents[1] / "config.pbtxt"
WINDOW, CELL = 64, 8
STRIDES = (1, 7, 8, 32, 64)


def longest_side() -> int:
    """Of a picture as narrow as may be, by the limit of the committed contract: pixels."""
    limit = re.search(r'"max_pixels" value \{ string_value: "(\d+)"', CONTRACT.read_text())
    assert limit is not None
    return int(limit[1]) // MIN_SIDE


def test_every_side_is_on_the_smallest_canvas_that_holds_it_and_cropped_to_its_last_pixel() -> None:
    for side in range(MIN_SIDE, longest_side() + 1):
        canvas = make_canvas(side, MIN_SIDE, window=WINDOW, cell=CELL)
        rows = canvas.crop[0]
        assert rows.stop - rows.start == side
        assert rows.start >= 0
        assert rows.stop <= canvas.height * CELL
        assert canvas.height == max(WINDOW, (side + CELL - 1) // CELL)


@pytest.mark.parametrize("stride", STRIDES)
def test_views_along_every_side_cover_each_cell_and_lie_on_the_canvas_once(stride: int) -> None:
    longest = -(-longest_side() // CELL)
    sides = range(WINDOW, longest + 1) if stride >= 8 else [*range(WINDOW, 5 * WINDOW), longest]
    for side in sides:
        tops = np.array(offsets(side, WINDOW, stride))
        gaps = np.diff(tops)
        assert tops[0] == 0
        assert tops[-1] + WINDOW == side
        assert (gaps > 0).all()  # none twice
        assert (gaps <= stride).all()  # no cell between two views


def test_views_of_a_canvas_are_those_of_both_sides() -> None:
    views = make_views(70, 83, window=WINDOW, stride=8)
    assert views == [View(top, left) for top in offsets(70, WINDOW, 8) for left in offsets(83, WINDOW, 8)]


@st.composite
def any_regions(draw: st.DrawFn) -> Regions:
    """Windows of 8 cells on any canvas of up to three by three; masks of any form, of which none need cover a cell."""
    height, width, count = draw(st.integers(8, 24)), draw(st.integers(8, 24)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    shares = [draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0])) for _ in range(count)]
    texts = st.lists(st.integers(0, 2), min_size=count, max_size=count)
    return Regions(
        masks=torch.stack([torch.rand(height, width, generator=generator) < share for share in shares]),
        views=make_views(height, width, window=8, stride=draw(st.integers(2, 8))),
        window=8,
        prompt_embedding=draw(texts),
        negative_embedding=draw(texts),
        guidance_scale=draw(st.sampled_from([1.0, 7.5])),
    )


def rows_of(regions: Regions, *, bootstrapping: bool) -> tuple[Row, ...]:
    plan = make_plan(regions)
    return plan.bootstrapped if bootstrapping else plan.plain


@settings(max_examples=60, deadline=None)
@given(regions=any_regions(), bootstrapping=st.booleans())
def test_weights_sum_to_one_where_any_mask_applies(regions: Regions, bootstrapping: bool) -> None:
    total = torch.zeros(regions.masks.shape[1:], dtype=torch.float64)
    for row in rows_of(regions, bootstrapping=bootstrapping):
        top, left = regions.views[row.view]
        total[top : top + 8, left : left + 8] += row_weight(row, regions)
    masked = regions.masks.any(dim=0)
    torch.testing.assert_close((total / regions.counts())[masked], torch.ones(int(masked.sum()), dtype=torch.float64))
    assert not total[~masked].any()


@settings(max_examples=60, deadline=None)
@given(regions=any_regions(), bootstrapping=st.booleans())
def test_no_row_is_dropped_or_doubled(regions: Regions, bootstrapping: bool) -> None:
    """Written out pair by pair: what every (view, region) needs, and no more."""
    needed: dict[tuple[int, int, int], dict[int, float]] = {}
    guidance = regions.guidance_scale
    for view in range(len(regions.views)):
        for region in range(len(regions.masks)):
            mask = regions.mask(view, region)
            if mask.any():
                source = region if bootstrapping and region and not mask.all() else CANVAS
                texts = {regions.prompt_embedding[region]: guidance}
                if guidance != 1:
                    negative = regions.negative_embedding[region]
                    texts[negative] = texts.get(negative, 0) + 1 - guidance
                for text, factor in texts.items():
                    needed.setdefault((view, source, text), {})[region] = factor
    rows = rows_of(regions, bootstrapping=bootstrapping)
    assert len(rows) == len(needed)
    assert {(row.view, row.source, row.embedding): dict(row.coefficients) for row in rows} == needed


class OneStep:
    """A scheduler of one step that keeps the fused prediction it is given."""

    timesteps = torch.tensor([999])
    init_noise_sigma = 1.0

    def __init__(self) -> None:
        self.fused = torch.empty(0)

    def scale_model_input(self, sample: Tensor, _timestep: Tensor) -> Tensor:
        return sample

    def add_noise(self, sample: Tensor, noise: Tensor, _timestep: Tensor) -> Tensor:
        return sample + noise

    def step(self, noise_pred: Tensor, _timestep: Tensor, latents: Tensor, **_options: Any) -> tuple[Tensor]:
        self.fused = noise_pred
        return (latents,)


@settings(max_examples=60, deadline=None)
@given(regions=any_regions(), bootstrapping=st.integers(0, 1), data=st.data())
def test_each_row_is_asked_for_once_however_a_step_is_divided(
    regions: Regions, bootstrapping: int, data: st.DataObject
) -> None:
    """A network that answers every row alike is answered alike wherever a mask applies, in portions of any order."""
    height, width = regions.masks.shape[1:]
    scheduler = OneStep()
    denoising = Denoising(
        torch.zeros(1, 4, height, width),
        Conditioning(torch.zeros(3, 5, 16)),
        scheduler=scheduler,
        regions=regions,
        bootstrapping=Bootstrapping(
            torch.zeros(1, 4, 8, 8),
            torch.zeros(bootstrapping, len(regions.views), len(regions.masks), dtype=torch.int64),
        ),
        generator=torch.Generator(),
    )
    portions = []
    while denoising.untaken:
        portions.append(denoising.take(data.draw(st.integers(1, 7))))
    for rows in data.draw(st.permutations(portions)):
        denoising.give(rows, torch.full_like(rows.sample, 0.25))
    assert denoising.complete
    assert denoising.rows == len(rows_of(regions, bootstrapping=bool(bootstrapping)))
    denoising.advance()
    masked = regions.masks.any(dim=0).expand(1, 4, -1, -1)
    torch.testing.assert_close(scheduler.fused[masked], torch.full((int(masked.sum()),), 0.25), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(64, 700), width=st.integers(64, 700), seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_every_cell_has_a_region_whatever_the_masks(height: int, width: int, seed: int, share: float) -> None:
    masks = np.random.default_rng(seed).random((2, height, width)) < share
    regions = region_masks(masks, make_canvas(height, width, window=WINDOW, cell=CELL))
    assert regions.any(axis=0).all()
    np.testing.assert_array_equal(regions[0], ~regions[1:].any(axis=0))
