"""One region in one window is text-to-image: equal to diffusers' own pipeline, whatever the sampler."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from conditioning import Conditioning
from row_plan import Regions
from sampling import Bootstrapping, Denoising
from schedulers import SAMPLERS, make_scheduler
from tests.unit.repository.tiny import CONFIG, EMBEDDING, WINDOW, answer, network
from views import make_views

STEPS = 4
GUIDANCE_SCALE = 7.5
IN_FLOAT64 = {"ddim", "dpmpp_2m", "dpmpp_2m_karras"}  # the others cast to float32 inside diffusers


def noise_and_generator(height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, torch.Generator]:
    """The noise of a seed, and its generator as it is after that."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(1, 4, height, width, generator=generator, dtype=dtype), generator


def embeddings(dtype: torch.dtype) -> Tensor:
    """A prompt's and a negative prompt's: (2, 5, EMBEDDING)."""
    return torch.randn(2, 5, EMBEDDING, generator=torch.Generator().manual_seed(3), dtype=dtype)


def paint(unet: Any, sampler: str, masks: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents of ours; every region has the same prompt and negative prompt, none is bootstrapped."""
    count, height, width = masks.shape
    views = make_views(height, width, window=WINDOW, stride=4)
    noise, generator = noise_and_generator(height, width, dtype)
    regions = Regions(
        masks=masks,
        views=views,
        window=WINDOW,
        prompt_embedding=[0] * count,
        negative_embedding=[1] * count,
        guidance_scale=GUIDANCE_SCALE,
    )
    bootstrapping = Bootstrapping(
        palette=torch.zeros(1, 4, WINDOW, WINDOW, dtype=dtype),
        choices=torch.zeros(0, len(views), count, dtype=torch.int64),
    )
    loop = Denoising(
        noise,
        Conditioning(embeddings(dtype)),
        scheduler=make_scheduler(sampler, CONFIG, STEPS),
        regions=regions,
        bootstrapping=bootstrapping,
        generator=generator,
    )
    return answer(loop, network(unet.to(dtype)))


def paint_with_diffusers(unet: Any, sampler: str, dtype: torch.dtype) -> Tensor:
    """Latents of the released text-to-image pipeline."""
    pipeline = StableDiffusionPipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=unet.to(dtype),
        scheduler=make_scheduler(sampler, CONFIG, STEPS),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise, generator = noise_and_generator(WINDOW, WINDOW, dtype)
    prompt, negative = embeddings(dtype)
    latents: Tensor = pipeline(
        prompt_embeds=prompt[None],
        negative_prompt_embeds=negative[None],
        latents=noise,
        generator=generator,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE_SCALE,
        output_type="latent",
    ).images
    return latents


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_one_region_in_one_window_is_the_picture_of_diffusers(unet: Any, sampler: str) -> None:
    dtype, error = (torch.float64, 1e-10) if sampler in IN_FLOAT64 else (torch.float32, 1e-5)
    found = paint(unet, sampler, torch.ones(1, WINDOW, WINDOW, dtype=torch.bool), dtype)
    expected = paint_with_diffusers(unet, sampler, dtype)
    assert float((found - expected).abs().max() / expected.abs().max()) <= error


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("width", [WINDOW, WINDOW + 3])
def test_two_regions_of_one_prompt_are_one_region(unet: Any, sampler: str, width: int) -> None:
    halves = torch.zeros(2, WINDOW, width, dtype=torch.bool)
    halves[0, :, :3], halves[1, :, 3:] = True, True
    whole = torch.ones(1, WINDOW, width, dtype=torch.bool)
    torch.testing.assert_close(
        paint(unet, sampler, halves, torch.float32), paint(unet, sampler, whole, torch.float32), rtol=0, atol=0
    )
