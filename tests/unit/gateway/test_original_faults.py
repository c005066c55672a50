"""What the original API did wrong with a request from outside, by its number in tests/unit/test_original_faults.py."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from multsd_client.errors import FieldNote
from multsd_client.shapes import Mask
from multsd_gateway.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    ModelFailedError,
    ModelUnavailableError,
    OverloadedError,
)
from multsd_gateway.settings import Settings
from tests.unit.gateway.fakes import FakePainter, image_base64, mask_base64, post, seed_request


def painted_masks(*masks: str) -> Mask:
    """What the model gets: (R, 64, 64) of 0 and 1."""
    painter = FakePainter()
    prompts = ["a dog"] * len(masks)
    reply = post(seed_request(masks=list(masks), fg_prompt=prompts, fg_nprompt=[]), painter=painter)
    assert reply.status_code == 200, reply.text
    (request,) = painter.requests
    assert request.masks is not None
    return request.masks


@pytest.mark.parametrize("field", ["fg_prompt", "fg_nprompt", "masks"])
def test_fault_9_a_string_for_a_list_is_not_read_by_character(field: str) -> None:
    painter = FakePainter()
    reply = post(seed_request(**{field: "a dog"}), painter=painter)
    assert reply.status_code == 400
    assert {"field": field, "message": 'expected a list, found "a dog"'} in reply.json()["errors"]
    assert painter.requests == []


def test_fault_11_alpha_is_not_ignored() -> None:
    """Transparent white was a full mask."""
    image = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (0, 0, 16, 64))
    (mask,) = painted_masks(image_base64(image))
    assert mask[:, :16].all()
    assert not mask[:, 16:].any()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255)], ids=["red", "green", "blue"])
def test_fault_11_a_pure_colour_does_not_count_as_empty(colour: tuple[int, int, int]) -> None:
    """By its grey level pure red and blue are dark; the rule here is the brightest channel."""
    image = Image.new("RGB", (64, 64))
    image.paste(colour, (0, 0, 64, 32))
    (mask,) = painted_masks(image_base64(image))
    assert mask[:32].all()
    assert not mask[32:].any()


def test_fault_11_a_data_url_is_a_mask() -> None:
    plain, as_url = painted_masks(mask_base64(), f"data:image/png;base64,{mask_base64()}")
    np.testing.assert_array_equal(as_url, plain)


FAILURES = [
    (InvalidRequestError([FieldNote("seed", "expected a, found b")]), 400),
    (ModelFailedError("unet: out of memory"), 500),
    (RuntimeError("secret of the house"), 500),
    (OverloadedError("full"), 503),
    (ModelUnavailableError("away"), 503),
    (DeadlineExceededError("too late"), 504),
]


@pytest.mark.parametrize(("error", "status"), FAILURES, ids=[type(error).__name__ for error, _ in FAILURES])
def test_fault_14_not_every_failure_is_a_400_with_the_exceptions_text(error: Exception, status: int) -> None:
    reply = post(seed_request(), painter=FakePainter(error=error))
    assert reply.status_code == status
    assert "Traceback" not in reply.text
    assert "secret of the house" not in reply.text
    assert reply.json()["message"]


def test_fault_14_nothing_listens_beyond_this_machine_unless_it_is_told_to() -> None:
    """The original's debug server listened on all interfaces."""
    assert Settings.model_fields["host"].default == "127.0.0.1"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"width": 10**6}, 400),
        ({"width": 4096, "height": 4096}, 400),
        ({"ddim_steps": 10**6}, 400),
        ({"bg_prompt": "x" * 10**6}, 400),
        ({"fg_prompt": ["x"] * 100, "masks": ["x"] * 100}, 400),
        ({"bg_prompt": "x" * 70 * 2**20}, 413),
    ],
    ids=["side", "pixels", "steps", "prompt", "regions", "body"],
)
def test_fault_14_what_a_request_may_ask_for_has_limits(changes: dict[str, object], status: int) -> None:
    painter = FakePainter()
    reply = post(seed_request(**changes), painter=painter)
    assert reply.status_code == status
    assert "expected" in reply.json()["message"]
    assert painter.requests == []


def test_fault_16_a_mask_of_other_proportions_is_not_stretched_without_a_word() -> None:
    """It still is stretched: callers rely on it."""
    painter = FakePainter()
    reply = post(seed_request(masks=[mask_base64(100, 64)]), painter=painter)
    remarks = [note for note in reply.json()["warnings"] if note["field"] == "masks[0]"]
    assert remarks == [{"field": "masks[0]", "message": "stretched from 100x64 to 64x64, other proportions"}]
    assert painter.requests[0].masks is not None
    assert painter.requests[0].masks.shape == (1, 64, 64)
