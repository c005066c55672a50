"""Requests as JSON, and their masks in it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multsd_client import Box, GenerationRequest, Polygon, Region, RunLengths


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


def _body(mask: Box | Polygon | RunLengths, *, side: int) -> dict[str, Any]:
    return GenerationRequest(prompt="", regions=(Region(mask, "a dog"),), width=side, height=side).to_json()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Box(1, 2, 3, 5), {"box": [1, 2, 3, 5]}),
        (Box(*np.array([1, 2, 3, 5])), {"box": [1, 2, 3, 5]}),
        (Box(2, 2, 10**7, 99), {"box": [2, 2, 6, 6]}),
        (Polygon(((0, 0), (2.5, 0), (0, 9))), {"polygon": [[0, 0], [2.5, 0], [0, 9]]}),
        (RunLengths((1, 2), (1, 1)), {"size": [1, 2], "counts": [1, 1]}),
    ],
)
def test_shapes_are_sent_as_shapes_and_boxes_cut_at_the_canvas(
    mask: Box | Polygon | RunLengths, expected: dict[str, Any]
) -> None:
    assert json.loads(json.dumps(_body(mask, side=6)))["masks"] == [expected]


def test_a_box_outside_of_the_canvas_is_refused() -> None:
    with pytest.raises(ValueError, match="expected it on the 4x4 canvas, found 4,0,5,1"):
        _body(Box(4, 0, 5, 1), side=4)


def test_a_picture_of_any_size_can_be_asked_for() -> None:
    assert _body(Box(0, 0, 4, 4), side=10**7)["masks"] == [{"box": [0, 0, 4, 4]}]


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "", "3,0,3,1", "-1,0,2,2", "0,2,1,1"])
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="box: expected"):
        Box.parse(text)


def test_a_region_can_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"image")

    assert Region.from_file(tmp_path / "mask.png", "a dog") == Region(b"image", "a dog")
