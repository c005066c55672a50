"""The record of a picture: what it holds, and what is not taken for one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from multsd_client import pictures, replay
from multsd_client.pictures import TextTooLongError
from multsd_client.tensors import ModelRequest, Picture

IMAGE = np.zeros((4, 6, 3), np.uint8)
PARAMETERS = {"height": 4, "width": 6, "num_inference_steps": 3, "seed": 2**64 - 1, "guidance_scale": 2.5, "regions": 1}
PICTURE = Picture(IMAGE, (), {"parameters": PARAMETERS, "checkpoint": {"name": "c", "digest": "d"}})


def _asked(mask: np.ndarray) -> ModelRequest:  # type: ignore[type-arg]
    return ModelRequest(
        prompts=("a beach", "ein H\u00fcndchen"),
        negative_prompts=("blurry", "cgi"),
        masks=mask[None],
        height=4,
        width=6,
    )


def test_a_record_is_the_request_that_paints_the_picture_again() -> None:
    mask = np.zeros((4, 6), np.uint8)
    mask[1, 2:5] = 1
    record = replay.record(_asked(mask), PICTURE, output_format="png", quality=None)

    assert replay.read(pictures.encode(IMAGE, "png", text=replay.to_text(record))) == (
        {
            "bg_prompt": "a beach",
            "bg_nprompt": "blurry",
            "fg_prompt": ["ein H\u00fcndchen"],
            "fg_nprompt": ["cgi"],
            "masks": [{"size": [4, 6], "counts": [8, 3, 13]}],
            "height": 4,
            "width": 6,
            "ddim_steps": 3,
            "seed": 2**64 - 1,
            "guidance_scale": 2.5,
            "output_format": "png",
        },
        {"name": "c", "digest": "d"},
    )


def test_masks_of_more_runs_than_any_file_holds_are_refused_before_they_are_listed() -> None:
    mask = np.tile(np.array([0, 1], np.uint8), (1024, 1024))

    with pytest.raises(TextTooLongError, match="runs of mask pixels"):
        replay.record(_asked(mask), PICTURE, output_format="png", quality=None)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "{",
        "[]",
        "7",
        "{}",
        "[" * 100_000,
        json.dumps({"multsd": 1, "request": 7, "checkpoint": {}}),
        json.dumps({"multsd": 2, "request": {}, "checkpoint": {}}),
    ],
    ids=range(8),
)
def test_a_picture_without_a_record_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match=r"picture: expected .* found"):
        replay.read(pictures.encode(IMAGE, "png", text=text))
