"""The regions phase: it paints as the service does, and asks for the picture that the masks and prompts ask for."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from conditioning import Conditioning
from demo_checkpoint import train_regions
from demo_checkpoint.networks import SCALING_FACTOR, build_scheduler
from demo_checkpoint.region_scenes import RegionScene, random_region_scene
from demo_checkpoint.train_regions import (
    OUTSIDE,
    Canvas,
    Canvases,
    RegionRows,
    RegionsPlan,
    Rehearsal,
    Row,
    noise_levels,
    regions_loss,
)
from row_plan import Regions
from sampling import Bootstrapping, Denoising
from schedulers import make_scheduler
from views import View

PLAN = RegionsPlan(steps=10, canvases=5, rows=24, rehearsed=6, rehearsal=0.7, pictures=1, peak=1e-3)
COLOUR = torch.tensor([0.5, -0.3, 0.1, 0.0])[:, None, None]


def canvas_of(scene: RegionScene, *, steps: int, bootstrapped: int, taught: bool = False) -> Canvas:
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(5)) / 4
    return Canvas(
        scene, noise, noise, noise_levels(steps), bootstrapped=bootstrapped, guidance_scale=7.5, taught=taught
    )


def region_scene(*, plain: bool = True) -> RegionScene:
    """A scene of two objects or more."""
    candidates = (random_region_scene(np.random.default_rng(seed)) for seed in range(100))
    return next(scene for scene in candidates if scene.textured != plain and len(scene.prompts) >= 3)


def velocity(row: Row) -> Tensor:
    """What leads from a row's latents to the picture that is asked for."""
    signal = build_scheduler().alphas_cumprod[row.timestep]
    wanted: Tensor = (signal.sqrt() * row.latents - row.picture) / (1 - signal).sqrt()
    return wanted


def predict(latents: Tensor, timestep: int, text: float) -> Tensor:
    """A network of no parameters: it looks at place, time and text."""
    predicted: Tensor = torch.tanh(latents.roll(1, -1) * (1 + text) + timestep / 1000) - text * latents.mean()
    return predicted


def test_a_canvas_is_painted_as_the_service_paints_it() -> None:
    scene = region_scene()
    masks = (scene.masks > 0.5).float()
    masks[0] = 1 - masks[1:].sum(0)
    canvas = canvas_of(replace(scene, masks=masks), steps=5, bootstrapped=3)
    texts = {text: number / 10 for number, text in enumerate(("", *scene.prompts))}
    for _ in range(4):  # of five: the service leaves a little noise in the last
        rows = canvas.rows(lambda: COLOUR)
        assert len(rows) == canvas.count
        canvas.advance(torch.stack([predict(row.latents, row.timestep, texts[row.prompt]) for row in rows]))

    count = len(scene.prompts)
    service = Denoising(
        canvas.noise[None],
        Conditioning(torch.tensor([*texts.values()])[:, None, None]),
        scheduler=make_scheduler("ddim", build_scheduler().config, 5),
        regions=Regions(masks[:, 0] > 0, [View(0, 0)], 16, range(1, count + 1), [0] * count, 7.5),
        bootstrapping=Bootstrapping(COLOUR.expand(1, 4, 16, 16), torch.zeros(3, 1, count, dtype=torch.int16)),
        generator=torch.Generator(),
    )
    while service.step < canvas.step:
        taken = service.take(service.untaken)
        inputs = zip(taken.sample, taken.timestep, taken.encoder_hidden_states, strict=True)
        service.give(taken, torch.stack([predict(x, int(t), float(text)) for x, t, text in inputs]))
        service.advance()
    torch.testing.assert_close(canvas.latents, service.latents[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bootstrapped", [0, 4])
def test_a_network_that_knows_the_picture_paints_it(bootstrapped: int) -> None:
    scene = region_scene()
    canvas = canvas_of(scene, steps=20, bootstrapped=bootstrapped)
    while not canvas.finished:
        canvas.advance(torch.stack([velocity(row) for row in canvas.rows(lambda: COLOUR)]))
    timestep, of_picture, of_noise = canvas.noise_levels[canvas.step]
    assert timestep < train_regions.EARLIEST
    reached = (canvas.latents - of_noise * canvas.noise) / of_picture
    whole = (scene.masks == 1).any(dim=0)[0]  # a cell on a mask's edge has some of the plain grounds' colours
    torch.testing.assert_close(reached[:, whole], SCALING_FACTOR * scene.latents[:, whole], rtol=0, atol=1e-3)


def test_a_bootstrapped_region_sees_its_mask_on_a_plain_ground_and_is_asked_for_its_object_there() -> None:
    scene = region_scene()
    canvas = canvas_of(scene, steps=20, bootstrapped=4)
    canvas.step = 3
    rows = canvas.rows(lambda: COLOUR)
    regions = len(scene.prompts)
    assert [row.prompt for row in rows] == [""] * regions + list(scene.prompts)
    _, of_picture, of_noise = canvas.noise_levels[3]
    for region in range(1, regions):
        row = rows[regions + region]
        outside, inside = (scene.masks[region, 0] == 0), (scene.masks[region, 0] == 1)
        plain = of_picture * COLOUR + of_noise * canvas.noise
        assert torch.allclose(row.latents[:, outside], plain[:, outside])
        assert torch.equal(row.latents[:, inside], canvas.latents[:, inside])
        assert torch.allclose(row.picture[:, inside], SCALING_FACTOR * scene.latents[:, inside])
        assert torch.allclose(row.weights[0, outside], torch.tensor(OUTSIDE))
        assert (row.weights[0, inside] > OUTSIDE).all()


def test_a_small_masks_error_weighs_nearly_as_much_as_a_large_ones() -> None:
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, :2, :2], mask[1, :, 4:14, 4:14] = 1, 1
    scene = replace(region_scene(), masks=torch.cat([1 - mask.sum(0, keepdim=True), mask]))
    scene = replace(scene, prompts=scene.prompts[:3])
    rows = canvas_of(scene, steps=20, bootstrapped=0).rows(lambda: COLOUR)
    small, large = (float((row.weights * each).sum()) for row, each in zip(rows[-2:], mask, strict=True))
    assert 1 < large / small < 4  # they have 100 and 4 cells


def test_nothing_is_asked_of_a_texture_that_does_not_follow_the_picture() -> None:
    scene = region_scene(plain=False)
    ground = scene.masks[0, 0] == 1
    for taught in (False, True):
        rows = canvas_of(scene, steps=20, bootstrapped=0, taught=taught).rows(lambda: COLOUR)
        assert all(bool((row.weights[0, ground] > 0).all()) == taught for row in rows)


def test_a_taught_ground_follows_the_picture_and_the_objects_do_not() -> None:
    scene = region_scene(plain=False)
    canvas = canvas_of(scene, steps=20, bootstrapped=0, taught=True)
    for _ in range(8):
        canvas.advance(torch.zeros(canvas.count, 4, 16, 16))
    _, of_picture, of_noise = canvas.noise_levels[canvas.step]
    given = of_picture * SCALING_FACTOR * scene.latents + of_noise * canvas.noise
    ground, under = scene.masks[0, 0] == 1, scene.masks[0, 0] == 0
    assert torch.allclose(canvas.latents[:, ground], given[:, ground], atol=1e-6)
    assert (canvas.latents[:, under] - given[:, under]).abs().mean() > 0.05


def test_batches_have_one_size_and_every_canvas_has_its_turn() -> None:
    canvases = Canvases(PLAN)
    first, moved = set(canvases._waiting), set()
    for _ in range(4):
        rows = canvases.take()
        assert rows.latents.shape == (24, 4, 16, 16)
        assert rows.input_ids.shape == (24, 77)
        counted = int((rows.weights.amax((1, 2, 3)) > 0).sum())
        assert counted == sum(canvas.count for canvas in canvases._taken)
        moved |= set(canvases._taken)
        canvases.give(torch.zeros(24, 4, 16, 16))
    assert moved >= first


def test_a_finished_canvas_makes_room_for_a_new_one() -> None:
    canvases = Canvases(PLAN)
    first = list(canvases._waiting)
    for _ in range(200):
        canvases.take()
        canvases.give(torch.zeros(24, 4, 16, 16))
    assert len(canvases._waiting) == PLAN.canvases
    assert not any(canvas in first for canvas in canvases._waiting)
    assert not any(canvas.finished for canvas in canvases._waiting)


def batch() -> RegionRows:
    return Canvases(PLAN).take()


def test_the_loss_is_nothing_for_the_right_v_and_counts_what_has_weight_alone() -> None:
    rows, scheduler = batch(), build_scheduler()
    signal = scheduler.alphas_cumprod[rows.timesteps][:, None, None, None]
    right = (signal.sqrt() * rows.latents - rows.pictures) / (1 - signal).sqrt()
    assert regions_loss(right, rows, scheduler) < 1e-10
    unasked = torch.where(rows.weights > 0, right, right + 9)
    assert regions_loss(unasked, rows, scheduler) < 1e-10
    assert regions_loss(right + 0.1, rows, scheduler) > 1e-3


def test_rows_that_fill_the_batch_do_not_thin_the_loss() -> None:
    rows, scheduler = Canvases(replace(PLAN, canvases=1)).take(), build_scheduler()
    counted = rows.weights.amax((1, 2, 3)) > 0
    kept = RegionRows(*(value[counted] for value in vars(rows).values()))
    loss: Callable[[RegionRows], Tensor] = lambda each: regions_loss(torch.zeros_like(each.latents), each, scheduler)  # noqa: E731
    assert not counted.all()
    torch.testing.assert_close(loss(rows), loss(kept))


def test_a_batch_too_small_for_a_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="rows: expected at least 10, those of a canvas, found 9"):
        replace(PLAN, rows=9)


def before(latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
    """The network that must not be forgotten."""
    texts = input_ids.float().mean(1) / 10
    pairs = zip(latents, timesteps, texts, strict=True)
    return torch.stack([predict(x, int(t), float(text)) for x, t, text in pairs])


def test_a_rehearsed_canvas_is_painted_without_masks() -> None:
    rehearsal, generator = Rehearsal(before, replace(PLAN, rehearsed=1)), torch.Generator()
    (canvas,) = rehearsal._canvases
    scheduler = build_scheduler()
    scheduler.set_timesteps(len(canvas.noise_levels))
    latents = canvas.latents[None]
    for timestep in scheduler.timesteps[:5]:
        rows = rehearsal.take()
        without, prompted = before(rows.latents, rows.timesteps, rows.input_ids)
        guided = without + canvas.guidance_scale * (prompted - without)
        latents = scheduler.step(guided[None], timestep, latents, generator=generator).prev_sample
        rehearsal.give(torch.full_like(rows.latents, torch.nan))  # the first canvas follows the network before
        torch.testing.assert_close(canvas.latents, latents[0], rtol=1e-4, atol=1e-4)


def test_what_is_rehearsed_is_what_the_network_before_would_do_there() -> None:
    rehearsal, scheduler = Rehearsal(before, PLAN), build_scheduler()
    for _ in range(3):
        rows = rehearsal.take()
        assert rows.latents.shape == (12, 4, 16, 16)
        assert torch.equal(rows.weights, torch.full_like(rows.weights, PLAN.rehearsal))
        right = before(rows.latents, rows.timesteps, rows.input_ids)
        assert regions_loss(rehearsal.guided(right), rows, scheduler) < 1e-6
        assert regions_loss(rehearsal.guided(right + 0.1), rows, scheduler) > 1e-3
        rehearsal.give(right)


def test_what_guidance_multiplies_counts_as_often_in_what_is_rehearsed() -> None:
    rehearsal, scheduler = Rehearsal(before, PLAN), build_scheduler()
    rows = rehearsal.take()
    right = before(rows.latents, rows.timesteps, rows.input_ids)
    wrong = right + 0.1
    of_prompts = right.clone()
    of_prompts[1::2] += 0.1
    both, alone = (regions_loss(rehearsal.guided(each), rows, scheduler) for each in (wrong, of_prompts))
    least = min(canvas.guidance_scale for canvas in rehearsal._canvases)
    assert alone > (least**2 / 2) * both  # of each pair one row or the other is wrong, or both are


def test_half_of_the_rehearsed_canvases_follow_the_network_that_learns() -> None:
    led = [Rehearsal(before, PLAN) for _ in range(2)]
    for rehearsal, value in zip(led, (0.0, 1.0), strict=True):
        rehearsal.give(torch.full_like(rehearsal.take().latents, value))
    same = [
        torch.equal(one.latents, other.latents) for one, other in zip(*(each._canvases for each in led), strict=True)
    ]
    assert same == [True, False] * 3


def test_a_rehearsed_canvas_that_is_finished_makes_room_for_a_new_one() -> None:
    rehearsal = Rehearsal(before, PLAN)
    first = list(rehearsal._canvases)
    for _ in range(50):
        rehearsal.give(torch.zeros_like(rehearsal.take().latents))
    assert len(rehearsal._canvases) == PLAN.rehearsed
    assert not any(canvas in first or canvas.finished for canvas in rehearsal._canvases)
