import asyncio
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from batching import UNetBatcher
from checkpoint import TextEncoder
from pipeline import Observer
from pipeline import paint as paint_as_served
from sampling import UNetRows, draw_bootstrapping
from tests.benchmarks.quality_painting import VARIANTS, Painter, Variant, draw_fixed
from tests.benchmarks.quality_report import TITLES
from tests.benchmarks.quality_requests import Request, make_request
from tests.benchmarks.quality_sheet import TILE, contact_sheet, draw_masks
from tests.unit.repository.tiny import EMBEDDING, make_checkpoint

STEPS = 5
CHECKPOINT = replace(make_checkpoint(window=64, unet_max_batch_size=16), view_stride=8)
BY_NAME = {variant.name: variant for variant in VARIANTS}


class Networks:
    """Closed forms: the prediction depends on sample, timestep and prompt, a cell's pixels on its latents."""

    def __init__(self) -> None:
        self.complete_step = UNetBatcher(self.unet, max_batch_size=CHECKPOINT.unet_max_batch_size).complete_step

    async def encode(self, _: TextEncoder, input_ids: npt.NDArray[np.int32]) -> dict[str, Tensor]:
        return {"last_hidden_state": torch.from_numpy(input_ids).to(torch.float32)[..., None].expand(-1, -1, EMBEDDING)}

    async def unet(self, rows: UNetRows) -> Tensor:
        shift = torch.sin(rows.encoder_hidden_states.mean(dim=(1, 2)) + rows.timestep / 100)
        smooth = rows.sample.mean(dim=(2, 3), keepdim=True)  # what is outside of a mask matters inside
        return 0.2 * rows.sample + smooth + shift[:, None, None, None]

    async def vae_decoder(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def painted(request: Request, variant: Variant) -> tuple[npt.NDArray[np.uint8], int]:
    return Painter(CHECKPOINT, Networks(), STEPS).paint(request, variant)


@pytest.mark.parametrize("index", [2, 8])
@pytest.mark.parametrize("name", ["text", "0", "20", "40"])
def test_a_variant_with_the_published_draw_is_the_served_picture(name: str, index: int) -> None:
    request = make_request(index)
    parameters = BY_NAME[name].parameters(request, num_inference_steps=STEPS, view_stride=CHECKPOINT.view_stride)
    served = asyncio.run(paint_as_served(parameters, checkpoint=CHECKPOINT, networks=Networks(), observer=Observer()))
    pixels, rows = painted(request, BY_NAME[name])
    assert pixels.shape == (request.height, request.width, 3)
    assert np.array_equal(pixels, served.image)
    assert rows == served.report["unet_rows"]


def test_a_fixed_background_is_another_picture_once_two_steps_are_bootstrapped() -> None:
    request = make_request(2)

    def same(bootstrapping: float) -> bool:
        variants = (replace(BY_NAME[name], bootstrapping=bootstrapping) for name in ("20", "20_fixed"))
        published, fixed = (painted(request, variant)[0] for variant in variants)
        return np.array_equal(published, fixed)

    assert same(1 / STEPS)
    assert not same(2 / STEPS)


def test_a_fixed_draw_repeats_the_first_step_of_the_published_one() -> None:
    published, fixed = (
        draw(CHECKPOINT.palette, steps=6, views=3, regions=4, generator=torch.Generator().manual_seed(7)).choices
        for draw in (draw_bootstrapping, draw_fixed)
    )
    assert fixed.shape == published.shape == (6, 3, 4)
    assert torch.equal(fixed, published[:1].expand(6, -1, -1))
    assert not torch.equal(fixed, published)


def test_a_fixed_draw_of_no_steps_bootstraps_none() -> None:
    drawn = draw_fixed(CHECKPOINT.palette, steps=0, views=1, regions=2, generator=torch.Generator().manual_seed(0))
    assert drawn.steps == 0


def test_variants_bootstrap_0_7_and_14_of_35_steps() -> None:
    request = make_request(2)
    steps = {
        name: variant.parameters(request, num_inference_steps=35, view_stride=8).bootstrapping
        for name, variant in BY_NAME.items()
    }
    assert steps == {"text": 0, "0": 0, "20": 7, "20_fixed": 7, "40": 14}


def test_text_alone_has_all_prompts_in_one_and_no_masks() -> None:
    request = make_request(2)
    parameters = BY_NAME["text"].parameters(request, num_inference_steps=35, view_stride=8)
    assert parameters.prompt == (request.joined_prompt,)
    assert parameters.masks.shape == (0, request.height, request.width)


def test_the_contact_sheet_has_a_row_a_request_and_a_tile_a_variant() -> None:
    requests = [make_request(2), make_request(8)]
    pictures = [
        {name: np.full((request.height, request.width, 3), 90, np.uint8) for name in TITLES} for request in requests
    ]
    sheet = contact_sheet(requests, pictures, TITLES)
    assert sheet.width > (len(TITLES) + 1) * TILE
    assert sheet.height > 2 * TILE
    assert max(draw_masks(requests[1]).size) == TILE
