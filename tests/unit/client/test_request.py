"""Requests as JSON, and boxes as masks."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from multsd_client import Box, GenerationRequest, Region


def test_a_typed_request_becomes_the_apis_json() -> None:
    request = GenerationRequest(
        prompt="a beach",
        negative_prompt="blurry",
        regions=(Region(b"image", "a dog"), Region(b"other", "a cat", "cartoon")),
        width=640,
        num_inference_steps=35,
        seed=0,
    )

    assert request.to_json() == {
        "bg_prompt": "a beach",
        "bg_nprompt": "blurry",
        "fg_prompt": ["a dog", "a cat"],
        "fg_nprompt": ["blurry", "cartoon"],
        "masks": [base64.b64encode(b"image").decode(), base64.b64encode(b"other").decode()],
        "width": 640,
        "height": 512,
        "ddim_steps": 35,
        "seed": 0,
    }


def test_a_box_is_painted_on_the_canvas_without_its_far_edges() -> None:
    body = GenerationRequest(prompt="", regions=(Region(Box(1, 2, 3, 5), "a dog"),), width=4, height=6).to_json()

    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(body["masks"][0]))))
    expected = np.zeros((6, 4), np.uint8)
    expected[2:5, 1:3] = 255
    assert (pixels == expected).all()


def test_a_box_beyond_the_canvas_is_cut_and_one_outside_refused() -> None:
    assert Image.open(io.BytesIO(Box(2, 2, 99, 99).png(4, 4))).size == (4, 4)
    with pytest.raises(ValueError, match="expected it on the 4x4 canvas, found 4,0,5,1"):
        Box(4, 0, 5, 1).png(4, 4)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "", "3,0,3,1", "-1,0,2,2", "0,2,1,1"])
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="box: expected"):
        Box.parse(text)


def test_a_region_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"image")

    assert Region.from_file(tmp_path / "mask.png", "a dog") == Region(b"image", "a dog")
