"""Samplers as the checkpoint's configuration and the request's steps make them."""

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import schedulers
from conditioning import Conditioning
from demo_checkpoint.networks import build_scheduler
from errors import InvalidRequestError
from row_plan import Regions
from sampling import Bootstrapping, Denoising, UNetRows, step_scheduler
from schedulers import DEFAULT_SAMPLER, SAMPLERS, make_scheduler, max_steps
from tests.unit.repository.tiny import CONFIG, WINDOW, answer
from views import make_views

NAMES = sorted(SAMPLERS)


def one_region(guidance_scale: float = 1.0) -> Regions:
    """The background alone, in one window."""
    return Regions(
        masks=torch.ones(1, WINDOW, WINDOW, dtype=torch.bool),
        views=make_views(WINDOW, WINDOW, window=WINDOW, stride=8),
        window=WINDOW,
        prompt_embedding=[0],
        negative_embedding=[1],
        guidance_scale=guidance_scale,
    )


def loop_of(scheduler: Any, *, regions: Regions, bootstrapping: int = 0) -> Denoising:
    choices = torch.zeros(bootstrapping, len(regions.views), len(regions.masks), dtype=torch.int64)
    return Denoising(
        torch.randn(1, 4, WINDOW, WINDOW, generator=torch.Generator().manual_seed(0)),
        Conditioning(torch.zeros(2, 1, 1)),
        scheduler=scheduler,
        regions=regions,
        bootstrapping=Bootstrapping(palette=torch.full((1, 4, WINDOW, WINDOW), 0.5), choices=choices),
        generator=torch.Generator().manual_seed(1),
    )


@pytest.mark.parametrize("name", NAMES)
def test_step_is_linear_whatever_the_checkpoint_says_of_clipping(name: str) -> None:
    """Clipped or thresholded, samples of this size would not grow in proportion."""
    config = CONFIG | {"clip_sample": True, "thresholding": True}
    generator = torch.Generator().manual_seed(0)
    sample, noise_pred = torch.randn(2, 1, 4, WINDOW, WINDOW, generator=generator) * 100

    def step(factor: float) -> Tensor:
        scheduler = make_scheduler(name, config, 4)
        timestep = scheduler.timesteps[0]
        scheduler.scale_model_input(sample, timestep)
        added = torch.Generator().manual_seed(1)  # the same noise each time, for samplers that add some
        return step_scheduler(scheduler, factor * noise_pred, timestep, factor * sample, added)

    torch.testing.assert_close(step(2) - step(1), step(1) - step(0), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "others",
    [
        {"use_karras_sigmas": True},
        {"use_beta_sigmas": True},
        {"use_exponential_sigmas": True, "use_lu_lambdas": True},
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "predict_x0": False, "solver_type": "bh1"},
        {"timestep_type": "continuous", "interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"},
    ],
)
def test_a_name_is_the_same_sampler_whichever_the_checkpoint_names(others: dict[str, Any]) -> None:
    for name in NAMES:
        plain, other = make_scheduler(name, CONFIG, 8), make_scheduler(name, CONFIG | others, 8)
        assert dict(other.config) == dict(plain.config)
        assert torch.equal(torch.as_tensor(other.timesteps), torch.as_tensor(plain.timesteps))


@pytest.mark.parametrize("steps", [2, 20, 50])
@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_paints_on_the_demo_checkpoints_schedule(name: str, steps: int) -> None:
    """It ends in noise all but alone, where samplers divide by the picture's share."""
    scheduler = make_scheduler(name, build_scheduler().config, steps)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(1, 4, WINDOW, WINDOW, generator=generator)
    latents = torch.randn(picture.shape, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[int(timestep)]
        seen = scheduler.scale_model_input(latents, timestep)
        velocity = (signal.sqrt() * seen - picture) / (1 - signal).sqrt()
        latents = step_scheduler(scheduler, velocity, timestep, latents, generator)
    torch.testing.assert_close(latents, picture, rtol=0, atol=0.05)  # the last of DDIM's noise stays


def test_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequestError, match=r"^scheduler: expected one of ddim, euler, .*, found 'heun'$"):
        make_scheduler("heun", CONFIG, 4)


def test_long_unknown_name_is_told_in_short() -> None:
    with pytest.raises(InvalidRequestError, match=f"found '{'x' * 40}'$"):
        make_scheduler("x" * 10_000, CONFIG, 4)


@pytest.mark.parametrize(("name", "offset", "limit"), [("ddim", 0, 1000), ("ddim", 1, 999), ("lcm", 1, 50)])
def test_limit_is_the_training_schedule_less_the_offset_or_the_samplers_own(name: str, offset: int, limit: int) -> None:
    assert max_steps(name, CONFIG | {"steps_offset": offset}) == limit


@pytest.mark.parametrize("name", NAMES)
def test_steps_beyond_the_limit_are_refused(name: str) -> None:
    limit = max_steps(name, CONFIG)
    for steps in (-1, 0, limit + 1, 1000, 2**31 - 1):
        with pytest.raises(InvalidRequestError) as refusal:
            make_scheduler(name, CONFIG, steps)
        assert refusal.value.field == "num_inference_steps"
        assert f"expected 1 to {limit} for scheduler {name}, found {steps}" in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_most_steps_stay_within_the_training_schedule(name: str, spacing: str, offset: int) -> None:
    config = CONFIG | {"timestep_spacing": spacing, "steps_offset": offset}
    limit = max_steps(name, config)
    timesteps = make_scheduler(name, config, limit).timesteps
    assert len(timesteps) == limit
    assert 0 <= float(timesteps[-1]) < float(timesteps[0]) <= 999


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", None])
def test_most_steps_can_be_noised_and_taken(name: str, spacing: str | None) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "timestep_spacing"}
    config |= {"timestep_spacing": spacing} if spacing else {}
    scheduler = make_scheduler(name, config, max_steps(name, config))
    generator = torch.Generator().manual_seed(0)
    latents = torch.ones(1, 4, WINDOW, WINDOW)
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents, timestep)
        assert torch.isfinite(scheduler.add_noise(latents, latents, timestep[None])).all()
        latents = step_scheduler(scheduler, 0.1 * sample, timestep, latents, generator)
        assert torch.isfinite(latents).all()


def alpha_and_sigma(scheduler: Any, step: int) -> tuple[float, float]:
    """x_t = alpha x_0 + sigma epsilon at a step, looked up by its index."""
    ratio = float(scheduler.sigmas[step])
    return 1 / (1 + ratio**2) ** 0.5, ratio / (1 + ratio**2) ** 0.5


def knowing(picture: Tensor, scheduler: Any) -> Callable[[UNetRows], Tensor]:
    """The noise that a perfect network finds when `picture` is all that it was ever shown; for one call a step."""
    steps = count()

    def predict(rows: UNetRows) -> Tensor:
        alpha, sigma = alpha_and_sigma(scheduler, next(steps))
        return (rows.sample - alpha * picture) / sigma

    return predict


def test_repeated_timesteps_of_karras_schedules_are_told_apart_by_their_index() -> None:
    scheduler = make_scheduler("dpmpp_2m_karras", CONFIG, 200)
    assert len(set(scheduler.timesteps.tolist())) < 200
    picture = torch.randn(1, 4, WINDOW, WINDOW, generator=torch.Generator().manual_seed(3))
    latents = answer(loop_of(scheduler, regions=one_region()), knowing(picture, scheduler))
    torch.testing.assert_close(latents, picture, rtol=0, atol=1e-3)


def test_backgrounds_at_repeated_timesteps_have_the_noise_of_their_own_step() -> None:
    steps = 200
    scheduler = make_scheduler("dpmpp_2m_karras", CONFIG, steps)
    whole = one_region()
    masks = torch.zeros(2, WINDOW, WINDOW, dtype=torch.bool)
    masks[1, :, :4], masks[0, :, 4:] = True, True
    regions = Regions(**{**vars(whole), "masks": masks, "prompt_embedding": [0, 0], "negative_embedding": [1, 1]})
    noise = torch.randn(1, 4, WINDOW, WINDOW, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []

    def record(rows: UNetRows) -> Tensor:
        seen.append(rows.sample[1, :, :, 4:])  # the region's row, where its mask leaves the background
        return torch.zeros_like(rows.sample)

    answer(loop_of(scheduler, regions=regions, bootstrapping=steps), record)
    for step, background in enumerate(seen):
        alpha, sigma = alpha_and_sigma(scheduler, step)
        torch.testing.assert_close(background, 0.5 * alpha + sigma * noise[0, :, :, 4:], rtol=1e-4, atol=1e-5)
    assert len(seen) == steps


def test_steps_that_a_spacing_cannot_lay_are_refused() -> None:
    """Trailing spacing rounds 998 steps to 999, the last before the start of the schedule."""
    with pytest.raises(InvalidRequestError, match="num_inference_steps: expected a number that scheduler dpmpp_2m"):
        make_scheduler("dpmpp_2m", CONFIG | {"timestep_spacing": "trailing"}, 998)


def test_the_models_configuration_tells_the_samplers_the_default_first() -> None:
    config = (Path(schedulers.__file__).parents[1] / "config.pbtxt").read_text()
    (told,) = re.findall(r'key: "samplers" value \{ string_value: "([^"]*)" \}', config)
    assert told.split(",") == list(SAMPLERS)
    assert told.split(",")[0] == DEFAULT_SAMPLER
