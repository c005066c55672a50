"""What counts as inside, and what is read leniently."""

from __future__ import annotations

import base64
import io
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from multsd_client.masks import inside, stretch
from multsd_gateway.errors import InvalidRequestError
from multsd_gateway.masks import MaskError, decode_base64, decode_masks, open_image, same_proportions
from tests.unit.gateway.fakes import image_base64, mask_base64, settings


def _pixel(mode: str, colour: object) -> bool:
    return bool(inside(Image.new(mode, (1, 1), colour))[0, 0])  # type: ignore[arg-type]


@pytest.mark.parametrize(("grey", "expected"), [(0, False), (127, False), (128, True), (255, True)])
def test_grey_counts_from_its_middle(grey: int, expected: bool) -> None:
    assert _pixel("L", grey) is expected


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((255, 0, 0), True), ((0, 0, 255), True), ((127, 127, 127), False), ((0, 128, 0), True)],
)
def test_the_brightest_channel_counts(colour: tuple[int, int, int], expected: bool) -> None:
    assert _pixel("RGB", colour) is expected


@pytest.mark.parametrize(
    ("colour", "expected"),
    [((255, 255, 255, 0), False), ((255, 255, 255, 127), False), ((255, 255, 255, 128), True), ((0, 0, 0, 255), False)],
)
def test_what_is_transparent_is_not_masked(colour: tuple[int, int, int, int], expected: bool) -> None:
    assert _pixel("RGBA", colour) is expected


def test_other_modes_follow_the_same_rule() -> None:
    assert _pixel("1", 1)
    assert _pixel("LA", (255, 255))
    assert not _pixel("LA", (255, 0))
    assert _pixel("CMYK", (0, 0, 0, 0))
    assert not _pixel("CMYK", (0, 0, 0, 255))


def test_sixteen_bit_grey_counts_from_its_middle() -> None:
    grey = np.array([[0, 127, 255, 32767, 32768, 65535]], np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")

    assert inside(open_image(buffer.getvalue(), max_pixels=10)).tolist() == [[0, 0, 0, 0, 1, 1]]


def test_a_transparent_palette_colour_is_not_masked() -> None:
    """Fault 11: alpha was ignored, transparent white was a full mask."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 255, 255, 255, 255, 255])
    image.putpixel((1, 0), 1)
    data = base64.b64decode(image_base64(image, transparency=0))

    assert inside(open_image(data, max_pixels=10)).tolist() == [[0, 1]]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_documented_format_is_read(image_format: str) -> None:
    data = base64.b64decode(image_base64(Image.new("L", (8, 8), 255), image_format))

    assert inside(open_image(data, max_pixels=64)).all()


@pytest.mark.parametrize(
    "dress",
    [
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"DATA:image/png;charset=x;BASE64,{text}",
        lambda text: f"data:;base64,\n{text}",
        lambda text: "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: f"  {text}\n",
    ],
)
def test_data_urls_and_white_space_are_read(dress: object) -> None:
    text = mask_base64()

    assert decode_base64(dress(text)) == base64.b64decode(text)  # type: ignore[operator]


def test_a_mask_is_stretched_by_the_nearest_pixel() -> None:
    mask = np.array([[0, 1], [1, 0]], np.uint8)

    assert stretch(mask, width=4, height=2).tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


@pytest.mark.parametrize(("size", "to"), [(10, 1429), (672, 1967), (512, 512), (640, 64), (1, 70)])
def test_stretching_follows_the_centres_of_pixels_to_the_last_digit(size: int, to: int) -> None:
    numbers = np.arange(size) % 251
    expected = [numbers[int(Fraction(2 * pixel + 1, 2 * to) * size)] for pixel in range(to)]

    mask = numbers.astype(np.uint8)
    assert stretch(mask[None, :], width=to, height=1)[0].tolist() == expected
    assert stretch(mask[:, None], width=1, height=to)[:, 0].tolist() == expected


@pytest.mark.parametrize("shape", [(1, 300_000), (300_000, 1)])
def test_a_long_mask_on_a_long_canvas_is_stretched_in_no_more_memory_than_both(shape: tuple[int, int]) -> None:
    width, height = (64, 8192) if shape[0] == 1 else (8192, 64)
    tracemalloc.start()
    try:
        stretched = stretch(np.ones(shape, np.uint8), width=width, height=height)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert stretched.shape == (height, width)
    assert stretched.all()
    assert peak < 4_000_000


def test_masks_are_stacked_at_the_canvas_size_with_a_warning_where_proportions_differ() -> None:
    """Fault 16: a mask of other proportions was stretched without a word."""
    texts = [mask_base64(64, 64), mask_base64(128, 128), mask_base64(100, 64)]

    masks, warnings = decode_masks(texts, width=64, height=64, settings=settings())

    assert masks is not None
    assert masks.shape == (3, 64, 64)
    assert masks.dtype == np.uint8
    assert masks[:, :, :32].all()
    assert not masks[:, :, 32:].any()
    assert [str(warning) for warning in warnings] == [
        "masks[2]: stretched from 100x64 to 64x64, other proportions",
    ]


def test_no_masks_are_none() -> None:
    assert decode_masks([], width=64, height=64, settings=settings()) == (None, [])


def test_rounded_proportions_are_the_same() -> None:
    assert same_proportions((333, 250), (666, 500))
    assert same_proportions((511, 512), (512, 512))
    assert not same_proportions((500, 512), (512, 512))


def test_the_pixels_of_all_masks_together_are_bounded() -> None:
    with pytest.raises(InvalidRequestError, match=r"masks\[1\]: expected an image of at most 904 pixels, found 64x64"):
        decode_masks([mask_base64()] * 2, width=8, height=8, settings=settings(max_mask_pixels=5000))


def test_a_bomb_is_refused_by_its_header_before_it_is_decoded() -> None:
    data = base64.b64decode(image_base64(Image.new("L", (3000, 3000))))

    with pytest.raises(MaskError, match="found 3000x3000"):
        open_image(data[:100], max_pixels=1000)
