"""Pictures and captions: what is drawn is what is said, and the recogniser agrees."""

import numpy as np
import pytest

from demo_checkpoint.language import COLOURS, SHAPES, TEXTURES, Ground, Thing, caption
from demo_checkpoint.networks import vocabulary
from demo_checkpoint.pictures import (
    Placement,
    draw,
    flat_ground,
    outline,
    random_picture,
    second_tone,
    shape_coverage,
    texture_coverage,
)
from demo_checkpoint.recognise import colour_mask, ground_share, recognise, recognise_shape


def test_captions_read_as_english() -> None:
    star, heart = Thing("orange", "star"), Thing("red", "heart")
    assert caption((star,), None) == "an orange star"
    assert caption((), Ground("green", "stripes")) == "green stripes background"
    assert caption((heart, star), Ground("yellow")) == "a red heart and an orange star on a yellow background"


def test_every_caption_is_made_of_words_of_the_vocabulary() -> None:
    captions = [random_picture(np.random.default_rng((1, i)), side=32).caption for i in range(200)]
    assert {word for text in captions for word in text.split()} <= set(vocabulary())


def test_the_same_seed_draws_the_same_picture() -> None:
    first, second = (random_picture(np.random.default_rng(3), side=64) for _ in range(2))
    assert first.caption == second.caption
    assert np.array_equal(first.pixels, second.pixels)


def test_a_square_covers_its_area_with_soft_edges() -> None:
    coverage = shape_coverage("square", Placement((0.5, 0.5), (0.26, 0.26)), side=50)
    assert coverage.mean() == pytest.approx(0.52**2, rel=0.04)
    assert coverage[25, 25] == 1
    assert coverage[0, 0] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_an_outline_fills_its_box(shape: str) -> None:
    points = outline(shape)
    assert points.min(axis=0) == pytest.approx([-1, -1])
    assert points.max(axis=0) == pytest.approx([1, 1])


@pytest.mark.parametrize("texture", TEXTURES)
def test_a_textured_ground_has_its_colour_in_two_tones(texture: str) -> None:
    coverage = texture_coverage(texture, 0.25, 0.0, (0.1, 0.2), 128)
    pixels = draw(flat_ground(COLOURS["green"], 128), [(coverage, second_tone(COLOURS["green"]))])
    assert ground_share(pixels, "green") > 0.98
    assert 0.1 < colour_mask(pixels, "green").mean() < 0.9


@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_is_told_from_all_others(colour: str) -> None:
    pixels = flat_ground(COLOURS[colour], 8).astype(np.uint8)
    assert [name for name in COLOURS if colour_mask(pixels, name).all()] == [colour]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("radii", "tilt"), [((0.4, 0.4), 0.0), ((0.08, 0.08), 0.1), ((0.3, 0.25), -0.2)])
def test_a_shape_is_told_from_all_others(shape: str, radii: tuple[float, float], tilt: float) -> None:
    mask = shape_coverage(shape, Placement((0.5, 0.5), radii, tilt), side=256) >= 0.5
    name, iou = recognise_shape(mask)
    assert name == shape
    assert iou > 0.85


def test_no_shape_is_seen_in_nothing_or_in_noise() -> None:
    assert recognise_shape(np.zeros((64, 64), bool)) == (None, 0.0)
    assert recognise_shape(np.random.default_rng(0).random((64, 64)) < 0.4)[0] is None


def test_the_recogniser_agrees_with_the_training_pictures() -> None:
    pictures = [random_picture(np.random.default_rng((5, i)), side=256) for i in range(110)]
    single = [p for p in pictures if p.caption.split()[0] in ("a", "an") and " and " not in p.caption]
    things = [Thing(*picture.caption.split()[1:3]) for picture in single]
    found = [recognise(picture.pixels, thing) for picture, thing in zip(single, things, strict=True)]
    assert len(single) > 60
    assert np.mean([one.colour_right for one in found]) >= 0.98
    # A few objects are cropped by the picture's edge so far that their shape cannot be told.
    assert np.mean([one.shape == thing.shape for one, thing in zip(found, things, strict=True)]) >= 0.93


def test_a_ground_is_not_taken_for_an_object() -> None:
    pixels = draw(flat_ground(COLOURS["red"], 128), [])
    assert not recognise(pixels, Thing("red", "circle")).colour_right
