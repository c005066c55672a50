"""Pictures with masks: what their prompts say is under the masks, and fits them as the benchmark's oracle does."""

import numpy as np
import pytest
import torch

from demo_checkpoint.language import COLOURS, SHAPES
from demo_checkpoint.pictures import STRETCH, Placement, outline
from demo_checkpoint.region_scenes import MASK_SIDE, MOST_OBJECTS, Mask, best_fit, random_region_scene
from tests.benchmarks import quality_oracle
from tests.benchmarks.quality_masks import make_form, rasterise


def covered(shape: str, place: Placement) -> Mask:
    corners = outline(shape) * place.radii + place.centre
    return rasterise(corners * MASK_SIDE - 0.5, MASK_SIDE, MASK_SIDE)


def test_every_prompt_has_a_mask_and_they_divide_each_cell() -> None:
    counts = set()
    for seed in range(60):
        scene = random_region_scene(np.random.default_rng(seed))
        counts.add(len(scene.prompts) - 1)
        assert scene.masks.shape == (len(scene.prompts), 1, 16, 16)
        assert torch.allclose(scene.masks.sum(0), torch.ones(1, 16, 16))
        assert scene.masks.min() >= 0
        assert scene.latents.shape == (4, 16, 16)
        assert scene.prompts[0].endswith("background")
        assert all(mask.sum() > 0 for mask in scene.masks[1:])
        assert scene.textured == (len(scene.prompts[0].split()) == 3)
    assert counts == set(range(1, MOST_OBJECTS + 1))


def test_a_mask_that_fills_cells_shows_its_prompts_colour_there_and_the_ground_its_own() -> None:
    grounds: list[bool] = []
    objects: list[bool] = []
    for seed in range(60):
        scene = random_region_scene(np.random.default_rng(seed))
        for number, (prompt, mask) in enumerate(zip(scene.prompts, scene.masks[:, 0], strict=True)):
            if number == 0 and scene.textured:
                continue
            colour = torch.tensor(COLOURS[prompt.split()[0 if number == 0 else 1]]) / 127.5 - 1
            distances = (scene.latents[:3, mask > 0.99] - colour[:, None]).norm(dim=0)
            (objects if number else grounds).extend((distances < 0.3).tolist())
    assert np.mean(grounds) > 0.9  # a shape may reach beyond its mask, or leave its corners
    assert np.mean(objects) > 0.7


def test_a_seed_makes_one_scene() -> None:
    one, same, other = (random_region_scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one.prompts == same.prompts
    assert torch.equal(one.latents, same.latents)
    assert not torch.equal(one.latents, other.latents)


@pytest.mark.parametrize("kind", ["disc", "box", "free", "small"])
def test_a_shape_fits_its_mask_about_as_well_as_the_benchmarks_oracle_draws_it(kind: str) -> None:
    rng = np.random.default_rng(11)
    ours, oracles = [], []
    for shape in SHAPES:
        corners = make_form(kind, rng, size=MASK_SIDE / 512).corners * (3 if kind == "small" else 1)
        middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
        mask = rasterise(corners - middle + MASK_SIDE / 2, MASK_SIDE, MASK_SIDE)
        place = best_fit(shape, mask, rng)
        assert 1 / STRETCH - 1e-6 <= place.radii[0] / place.radii[1] <= STRETCH + 1e-6
        ours.append(quality_oracle.iou(covered(shape, place), mask))
        oracle = quality_oracle.drawn(shape, quality_oracle.best_fit(shape, mask), MASK_SIDE, MASK_SIDE)
        oracles.append(quality_oracle.iou(oracle, mask))
    assert np.mean(ours) > 0.93 * np.mean(oracles)
