"""What is known to be at fault is refused at once, and does not wait for a place first."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from multsd_gateway.app import create_app
from multsd_gateway.inference import ModelDescription
from multsd_gateway.limits import TIMEOUT
from tests.unit.gateway.fakes import FakePainter, mask_base64, post, seed_request, settings

TOLD = {
    "max_pixels": "16384",
    "max_mask_pixels": "16384",
    "max_steps": "100",
    "max_prompt_bytes": "50",
    "max_regions": "4",
    "window": "64",
}


def _regions(number: int, **changes: Any) -> dict[str, Any]:
    return seed_request(fg_prompt=["a"] * number, masks=[mask_base64()] * number) | changes


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        (seed_request(ddim_steps=101), "ddim_steps", "expected 1 to 100, found 101"),
        (seed_request(preview_every=101), "preview_every", "expected 0 to 100, found 101"),
        (seed_request(bootstrapping=101), "bootstrapping", "expected 0 to 100, found 101"),
        (seed_request(view_stride=65), "view_stride", "expected 1 to 64, found 65"),
        (seed_request(bg_prompt="x" * 51), "bg_prompt", "expected at most 50 bytes, found 51"),
        (_regions(4), "fg_prompt", "expected at most 3 prompts, found 4"),
        (
            seed_request(width=256, height=128),
            "width",
            "expected width x height of at most 16384 pixels, found 256 x 128",
        ),
        (_regions(3, width=128), "masks", "expected at most 16384 mask pixels, found 3 masks of 128 x 64"),
        (
            seed_request(masks=[{"box": [0, 64, 8, 72]}]),
            "masks[0]",
            "box: expected it on the 64x64 canvas, found 0,64,8,72",
        ),
        (
            seed_request(masks=[{"size": [200, 300], "counts": [60000]}]),
            "masks[0]",
            "expected a mask of at most 50000 pixels, found 300x200",
        ),
    ],
)
def test_a_fault_that_settings_or_model_tell_of_waits_for_no_place(
    body: dict[str, Any], field: str, message: str
) -> None:
    async def scenario() -> httpx.Response:
        painter = FakePainter(forever=True, description=ModelDescription(frozenset(), TOLD))
        app = create_app(settings(max_running=1, max_image_pixels=50_000), painter)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            working = asyncio.create_task(client.post("/multsd", json=seed_request()))
            await painter.started.wait()
            reply = await client.post("/multsd", json=body, headers={TIMEOUT: "5"})
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        return reply

    reply = asyncio.run(scenario())
    assert (reply.status_code, reply.json()["errors"]) == (400, [{"field": field, "message": message}])


def test_what_is_within_the_models_limits_is_painted() -> None:
    painter = FakePainter(description=ModelDescription(frozenset(), TOLD))
    large = {"size": [100, 200], "counts": [0, 20000]}  # stretched before the model sees it
    edges = {"ddim_steps": 100, "bootstrapping": 100, "view_stride": 64, "bg_prompt": "x" * 50, "masks": [large] * 3}

    assert post(_regions(3, **edges), painter=painter).status_code == 200


def test_what_is_within_the_settings_limits_is_painted_whatever_the_model() -> None:
    corners = [[0, 0], [64, 0], [64, 64], [0, 64]] * 250  # as many points as may be
    edges = {"view_stride": 1024, "guidance_scale": 100, "quality": 100, "masks": [{"polygon": corners}]}

    assert post(seed_request(**edges)).status_code == 200
    assert post(seed_request(**edges | {"view_stride": 1025})).status_code == 400


def test_a_default_is_not_above_the_models_limit() -> None:
    painter = FakePainter(description=ModelDescription(frozenset(), {"max_steps": "9"}))

    assert post({"bg_prompt": "a beach"}, painter=painter).status_code == 200
    assert (painter.requests[0].num_inference_steps, painter.requests[0].bootstrapping) == (9, 9)


def test_of_several_models_the_highest_limit_holds_and_none_that_one_does_not_tell() -> None:
    class Several(FakePainter):
        def descriptions(self) -> tuple[ModelDescription, ...]:
            told = ({"max_steps": "10", "window": "64"}, {"max_steps": "30", "max_regions": "1"})
            return tuple(ModelDescription(frozenset(), each) for each in told)

    assert post(seed_request(ddim_steps=30, view_stride=200), painter=Several()).status_code == 200
    assert post(seed_request(ddim_steps=31), painter=Several()).status_code == 400
