"""Picture files and the text inside them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from multsd_client import pictures
from multsd_client.pictures import TextTooLongError

RANDOM = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_text_comes_back_out_of_every_format(output_format: str) -> None:
    data = pictures.encode(RANDOM, output_format, text='{"a":"\\u00e4"}')

    assert pictures.read_text(data) == '{"a":"\\u00e4"}'
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == (output_format.upper(), (40, 24))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_without_a_text_there_is_none(output_format: str) -> None:
    assert pictures.read_text(pictures.encode(RANDOM, output_format)) is None


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_text_changes_no_pixel(output_format: str) -> None:
    plain, carrying = (
        np.asarray(Image.open(io.BytesIO(pictures.encode(RANDOM, output_format, text=text)))) for text in (None, "x")
    )

    assert (plain == carrying).all()


def test_the_longest_text_of_a_jpeg_fits_into_its_segment_and_one_more_byte_does_not() -> None:
    def fits(length: int) -> bool:
        try:
            return pictures.read_text(pictures.encode(RANDOM, "jpeg", text="x" * length)) == "x" * length
        except TextTooLongError:
            return False

    longest = max(length for length in range(65_400, 65_534) if fits(length))
    assert not fits(longest + 1)
    assert fits(0)


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_other_formats_hold_a_mebibyte_and_no_more(output_format: str) -> None:
    text = "x" * pictures.MAX_TEXT

    assert pictures.read_text(pictures.encode(RANDOM, output_format, text=text)) == text
    with pytest.raises(TextTooLongError):
        pictures.encode(RANDOM, output_format, text=f"{text}x")


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_a_lower_quality_is_a_smaller_file(output_format: str) -> None:
    small, large = (len(pictures.encode(RANDOM, output_format, quality=quality)) for quality in (20, 95))

    assert small < large
    assert len(pictures.encode(RANDOM, output_format)) == large


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="picture: expected a PNG, JPEG or WebP file"):
        pictures.read_text(data)


def test_a_picture_of_too_many_pixels_is_refused_by_its_header() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(buffer, "PNG")

    with pytest.raises(ValueError, match="picture: expected one small enough to decode, found a larger one"):
        pictures.read_text(buffer.getvalue()[:64])
