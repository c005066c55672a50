"""Fuse the predictions, step once: equal to the published loop, which steps every view and averages."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from conditioning import Conditioning
from row_plan import Regions
from sampling import Bootstrapping, Denoising
from schedulers import SAMPLERS, make_scheduler
from tests.unit.repository.reference import copy_of, paint_with_plain_loop
from tests.unit.repository.tiny import CONFIG, WINDOW, answer, network
from views import make_views

STOCHASTIC = {"euler_a": "scheduling_euler_ancestral_discrete", "lcm": "scheduling_lcm"}  # add noise after every step
LEAVES_FLOAT64 = {"euler", "euler_a", "unipc"}  # cast to float32 inside diffusers


def random_masks(count: int, height: int, width: int) -> Tensor:
    """`count` random boxes and the background before them: (R, height, width) bool."""
    generator = torch.Generator().manual_seed(count * 1000 + height)
    masks = torch.zeros(count + 1, height, width, dtype=torch.bool)
    for mask in masks[1:]:
        top, left = (int(torch.randint(0, side - 3, (), generator=generator)) for side in (height, width))
        mask[top : top + height // 2, left : left + width // 2] = True
    masks[0] = ~masks[1:].any(dim=0)
    return masks


def both(
    unet: Any,
    *,
    sampler: str,
    masks: Tensor,
    stride: int = 4,
    steps: int = 6,
    bootstrapping: int = 3,
    guidance_scale: float = 7.5,
    config: dict[str, Any] = CONFIG,
    prompts: Sequence[int] | None = None,
    negatives: Sequence[int] | None = None,
    added_noise: Sequence[Tensor] | None = None,
    dtype: torch.dtype = torch.float64,
    max_batch_size: int = 16,
) -> tuple[Tensor, Tensor]:
    """Latents of the published loop and of ours, from the same noise, backgrounds and choices.

    prompts, negatives: of each region, by the place among 2R embeddings. added_noise: what a sampler adds after each
    step, (1, 4, h, w); the loop's views see their part of it.
    """
    generator = torch.Generator().manual_seed(7)
    unet = unet.to(dtype)
    count, height, width = masks.shape
    noise = torch.randn(1, 4, height, width, generator=generator, dtype=dtype)
    embeds = torch.randn(2 * count, 5, 16, generator=generator, dtype=dtype)
    prompt, negative = list(prompts or range(count)), list(negatives or [count] * count)
    palette = torch.randn(6, 4, 1, 1, generator=generator, dtype=dtype).expand(6, 4, WINDOW, WINDOW)
    corners = make_views(height, width, window=WINDOW, stride=stride)
    choices = torch.randint(6, (bootstrapping, len(corners), count), generator=generator)
    scheduler = make_scheduler(sampler, config, steps)

    expected = paint_with_plain_loop(
        noise,
        masks=masks,
        prompt_embeds=[embeds[r : r + 1] for r in prompt],
        negative_embeds=[embeds[r : r + 1] for r in negative],
        corners=corners,
        window=WINDOW,
        make_scheduler=copy_of(scheduler),
        unet=lambda *row: unet(*row).sample,
        guidance_scale=guidance_scale,
        bootstrapping=bootstrapping,
        background=lambda step, view, region: palette[choices[step, view, region]][None],
        added_noise=None if added_noise is None else lambda step, view: crop(added_noise[step], corners[view]),
    )
    regions = Regions(
        masks=masks,
        views=corners,
        window=WINDOW,
        prompt_embedding=prompt,
        negative_embedding=negative,
        guidance_scale=guidance_scale,
    )
    loop = Denoising(
        noise,
        Conditioning(embeds),
        scheduler=scheduler,
        regions=regions,
        bootstrapping=Bootstrapping(palette=palette, choices=choices),
        generator=iter(added_noise or ()),  # type: ignore[arg-type]  # see `noise_that_is_given`
    )
    return expected, answer(loop, network(unet), max_batch_size)


def crop(canvas: Tensor, corner: tuple[int, int]) -> Iterator[Tensor]:
    """A window of a canvas, to be drawn once."""
    top, left = corner
    return iter([canvas[..., top : top + WINDOW, left : left + WINDOW]])


@pytest.fixture
def noise_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samplers that add noise draw it from an iterator instead of a generator."""

    def drawn(shape: Sequence[int], *, generator: Iterator[Tensor], dtype: torch.dtype, **_options: Any) -> Tensor:
        noise = next(generator)
        assert noise.shape == torch.Size(shape)
        return noise.to(dtype)

    for module in STOCHASTIC.values():
        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", drawn)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - set(STOCHASTIC)))
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("bootstrapping", [0, 3])
def test_fused_predictions_equal_averaged_steps(
    unet: Any, sampler: str, prediction_type: str, bootstrapping: int
) -> None:
    single = sampler in LEAVES_FLOAT64
    expected, found = both(
        unet,
        sampler=sampler,
        masks=random_masks(2, 12, 11),
        bootstrapping=bootstrapping,
        config=CONFIG | {"prediction_type": prediction_type},
        dtype=torch.float32 if single else torch.float64,
    )
    assert relative_error(found, expected) <= (1e-5 if single else 1e-10)


@pytest.mark.usefixtures("noise_that_is_given")
@pytest.mark.parametrize("sampler", sorted(STOCHASTIC))
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("bootstrapping", [0, 3])
def test_fused_predictions_equal_averaged_steps_where_a_sampler_adds_noise(
    unet: Any, sampler: str, prediction_type: str, bootstrapping: int
) -> None:
    """Every view's step adds its part of the noise that ours adds to the canvas."""
    steps, generator = 6, torch.Generator().manual_seed(5)
    expected, found = both(
        unet,
        sampler=sampler,
        masks=random_masks(2, 12, 11),
        steps=steps,
        bootstrapping=bootstrapping,
        config=CONFIG | {"prediction_type": prediction_type},
        added_noise=[torch.randn(1, 4, 12, 11, generator=generator) for _ in range(steps)],
        dtype=torch.float32 if sampler in LEAVES_FLOAT64 else torch.float64,
    )
    assert relative_error(found, expected) <= (1e-5 if sampler in LEAVES_FLOAT64 else 1e-10)


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])  # of one step, and one that remembers its last
@pytest.mark.parametrize("bootstrapping", [0, 3, 6])
@pytest.mark.parametrize(
    ("prompts", "negatives"),
    [([0, 0, 0], [3, 3, 3]), ([0, 1, 1], [3, 3, 4]), ([0, 1, 0], [1, 1, 1]), ([0, 0, 0], [0, 0, 0])],
    ids=["one prompt", "one for both regions", "prompts that are negative elsewhere", "one text for all"],
)
def test_equal_prompts_share_rows_only_where_they_see_the_same(
    unet: Any, sampler: str, bootstrapping: int, prompts: list[int], negatives: list[int]
) -> None:
    """While bootstrapping, regions of one prompt still see grounds of their own."""
    single = sampler in LEAVES_FLOAT64
    expected, found = both(
        unet,
        sampler=sampler,
        masks=random_masks(2, 9, 11),
        bootstrapping=bootstrapping,
        prompts=prompts,
        negatives=negatives,
        dtype=torch.float32 if single else torch.float64,
    )
    assert relative_error(found, expected) <= (1e-5 if single else 1e-10)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 8), (13, 17), (8, 24)])
@pytest.mark.parametrize("regions", [0, 1, 3])
def test_sizes_and_region_counts(unet: Any, height: int, width: int, regions: int) -> None:
    masks = random_masks(regions, height, width)
    expected, found = both(unet, sampler="ddim", masks=masks, steps=4, bootstrapping=2)
    assert relative_error(found, expected) <= 1e-10


@pytest.mark.parametrize("bootstrapping", [0, 2, 4, 6])
@pytest.mark.parametrize(("height", "width"), [(13, 17), (8, 24)])
def test_masks_of_any_form_and_regions_that_fill_a_view(unet: Any, height: int, width: int, bootstrapping: int) -> None:
    generator = torch.Generator().manual_seed(height)
    masks = torch.zeros(3, height, width, dtype=torch.bool)
    masks[1, :, :10] = True  # the whole of the first view
    masks[2] = torch.rand(height, width, generator=generator) < 0.3
    masks[0] = ~masks[1:].any(dim=0)
    expected, found = both(unet, sampler="ddim", masks=masks, steps=4, bootstrapping=bootstrapping)
    assert relative_error(found, expected) <= 1e-10


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0, 7.3])
def test_guidance(unet: Any, guidance_scale: float) -> None:
    expected, found = both(unet, sampler="ddim", masks=random_masks(2, 10, 10), guidance_scale=guidance_scale)
    assert relative_error(found, expected) <= 1e-10


def test_negative_prompts_of_their_own(unet: Any) -> None:
    expected, found = both(unet, sampler="ddim", masks=random_masks(2, 10, 10), negatives=[3, 4, 5])
    assert relative_error(found, expected) <= 1e-10


def test_checkpoint_that_clips_samples_is_painted_without(unet: Any) -> None:
    plain, _ = both(unet, sampler="ddim", masks=random_masks(2, 10, 10))
    _, clipping = both(unet, sampler="ddim", masks=random_masks(2, 10, 10), config=CONFIG | {"clip_sample": True})
    assert relative_error(clipping, plain) <= 1e-10


@pytest.mark.parametrize("max_batch_size", [1, 3])
def test_size_of_the_calls_does_not_change_the_picture(unet: Any, max_batch_size: int) -> None:
    _, found = both(unet, sampler="ddim", masks=random_masks(2, 10, 10), max_batch_size=max_batch_size)
    _, other = both(unet, sampler="ddim", masks=random_masks(2, 10, 10), max_batch_size=5)
    assert relative_error(found, other) <= 1e-12
