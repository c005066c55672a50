"""A picture becomes a file, and what the file lacks is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from multsd_client import replay
from multsd_client.encoding import Output, encode
from multsd_client.errors import FieldNote
from multsd_client.tensors import ModelRequest, Picture

IMAGE = np.zeros((512, 512, 3), np.uint8)
PICTURE = Picture(IMAGE, (), {"parameters": {"seed": 7}, "checkpoint": {"name": "c"}})
ASKED = ModelRequest(prompts=("a beach",), height=512, width=512)
NOISE = np.random.default_rng(0).integers(0, 2, (1, 512, 512), np.uint8)
CROWDED = replace(ASKED, prompts=("a beach", "sand"), negative_prompts=("", ""), masks=NOISE)


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_what_fits_is_embedded_without_a_note(output_format: str) -> None:
    image, notes = encode(ASKED, PICTURE, Output(output_format=output_format))

    assert notes == []
    assert replay.read(image)[0]["bg_prompt"] == "a beach"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (Output(output_format="jpeg"), "expected at most 65533 bytes"),
        (Output(output_format="png", max_embedded_bytes=1000), "expected at most 1000 bytes"),
        (Output(output_format="webp", max_embedded_bytes=9), "expected at most 9 bytes"),
    ],
)
def test_what_does_not_fit_is_left_out_with_a_note(output: Output, reason: str) -> None:
    image, [note] = encode(CROWDED, PICTURE, output)

    assert note.field == "output_format"
    assert note.message.startswith(f"the picture does not carry its parameters: {reason}, found ")
    with pytest.raises(ValueError, match="found none"):
        replay.read(image)


def test_what_is_not_to_be_embedded_is_not_missed() -> None:
    image, notes = encode(CROWDED, PICTURE, Output(output_format="jpeg", embed=False))

    assert notes == []
    with pytest.raises(ValueError, match="found none"):
        replay.read(image)


def test_a_png_has_no_quality_and_says_so() -> None:
    expected = [FieldNote("quality", "not used, PNG keeps every pixel as it is")]
    assert encode(ASKED, PICTURE, Output(output_format="png", quality=5))[1] == expected
    assert encode(ASKED, PICTURE, Output(output_format="webp", quality=5))[1] == []
