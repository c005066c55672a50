"""Scenes drawn as latents: the same as the pictures that the encoder would see."""

import numpy as np
import pytest
import torch

from demo_checkpoint.language import COLOURS, SHAPES, TEXTURES
from demo_checkpoint.pictures import Item, Placement, Scene, Waves, draw_scene, random_scene
from demo_checkpoint.scene_batches import SceneBatch, draw_latents
from demo_checkpoint.train_vae import cell_colours, to_tensor

CELLS = 64


def encoded(scene: Scene) -> torch.Tensor:
    """What the encoder makes of the scene's picture, (4, c, c)."""
    latents: torch.Tensor = cell_colours(to_tensor([draw_scene(scene)]))[0]
    return latents


def scene_of(shape: str = "star", waves: Waves | None = None, *, tilt: float = 0.2) -> Scene:
    place = Placement((0.4, 0.55), (0.25, 0.3), tilt)
    return Scene((30, 60, 90), waves, (Item(shape, place, COLOURS["yellow"]),), "a yellow star")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_lies_where_the_picture_has_it(shape: str) -> None:
    scene = scene_of(shape)
    drawn, shown = draw_latents(SceneBatch.of([scene]), CELLS, 8)
    apart = (drawn[0] - encoded(scene)).abs()
    assert apart.mean() < 0.003
    assert apart.max() < 0.35  # a fifth of the contrast, in a cell that an edge runs through
    assert torch.equal(drawn, shown)  # nothing is veiled


@pytest.mark.parametrize("texture", TEXTURES)
def test_every_texture_lies_where_the_picture_has_it(texture: str) -> None:
    scene = scene_of(waves=Waves(texture, (200, 10, 10), 0.25, 0.25 * np.pi, (0.1, 0.7)))
    apart = (draw_latents(SceneBatch.of([scene]), CELLS, 8)[0][0] - encoded(scene)).abs()
    assert apart.mean() < 0.01


def test_fewer_cells_show_the_mean_of_more() -> None:
    batch = SceneBatch.of([random_scene(np.random.default_rng(i)) for i in range(20)])
    few, many = draw_latents(batch, 16, 8)[0], draw_latents(batch, CELLS, 2)[0]
    assert few.shape == (20, 4, 16, 16)
    torch.testing.assert_close(few, torch.nn.functional.avg_pool2d(many, 4))


def test_a_veil_hides_the_object_and_nothing_else() -> None:
    scenes = [random_scene(np.random.default_rng(i), veiled=1.0) for i in range(20)]
    batch = SceneBatch.of(scenes)
    drawn, shown = draw_latents(batch, CELLS)
    assert batch.veiled.all()
    for scene, true, seen in zip(scenes, drawn, shown, strict=True):
        assert scene.veil is not None
        tone = torch.tensor(scene.veil.colour) / 127.5 - 1
        x, y = (min(CELLS - 1, int(CELLS * each)) for each in scene.veil.placement.centre)
        assert torch.allclose(seen[:3, y, x], tone, atol=1e-4)
        ground = torch.tensor(scene.ground) / 127.5 - 1
        untouched = torch.isclose(seen[:3], true[:3]).all(dim=0)
        assert torch.allclose(true[:3, untouched].median(dim=1).values, ground, atol=1e-4)


def test_a_batch_keeps_what_it_says_of_its_scenes() -> None:
    batch = SceneBatch.of([scene_of("heart"), scene_of("cross")])
    assert batch.shapes.tolist() == [[SHAPES.index("heart"), -1, -1], [SHAPES.index("cross"), -1, -1]]
    assert not batch.veiled.any()
    assert batch.to(torch.device("cpu")).places.shape == (2, 3, 5)
