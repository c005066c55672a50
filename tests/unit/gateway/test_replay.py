"""Pictures that carry their own request: through the gateway and back."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from multsd_client import replay
from multsd_gateway.app import create_app
from tests.unit.gateway.fakes import FakePainter, ask, image_base64, mask_base64, post, seed_request, settings


def _picture(reply: Any) -> bytes:
    assert reply.status_code == 200, reply.text
    return base64.b64decode(reply.json()["image"])


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_paints_itself_again(output_format: str) -> None:
    first, second = FakePainter(), FakePainter()
    body = seed_request(
        output_format=output_format,
        quality=80,
        fg_prompt=["a", "b", "c"],
        fg_nprompt=["n"],
        masks=[mask_base64(), {"box": [0, 0, 20, 30]}, {"polygon": [[0, 0], [64, 0], [32, 64]]}],
    )

    picture = _picture(post(body, painter=first))
    request, checkpoint = replay.read(picture)
    again = _picture(post(request, path="/multsd?strict=1", painter=second))

    assert checkpoint == {"name": "fake", "digest": "sha256:00"}
    [asked], [asked_again] = first.requests, second.requests
    assert asked.masks is not None
    assert asked_again.masks is not None
    assert (asked.masks == asked_again.masks).all()
    assert (asked.prompts, asked.negative_prompts, asked.seed) == (
        asked_again.prompts,
        asked_again.negative_prompts,
        asked_again.seed,
    )
    assert again == picture


def test_bytes_by_accept_carry_it_too() -> None:
    app = create_app(settings(), FakePainter())

    reply = ask(app, "POST", "/multsd", json=seed_request(), headers={"Accept": "image/webp"})

    assert replay.read(reply.content)[0]["output_format"] == "webp"


def test_it_can_be_switched_off() -> None:
    with pytest.raises(ValueError, match="found none"):
        replay.read(_picture(post(seed_request(bg_prompt="a secret wish"), embed_parameters=False)))


def _noise() -> str:
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 2, (512, 512), np.uint8) * np.uint8(255)
    return image_base64(Image.fromarray(noise))


@pytest.mark.parametrize(
    ("output_format", "changes"),
    [("jpeg", {}), ("png", {"max_embedded_bytes": 1000}), ("webp", {"max_embedded_bytes": 9})],
)
def test_what_does_not_fit_is_left_out_with_a_warning(output_format: str, changes: dict[str, Any]) -> None:
    body = seed_request(width=512, height=512, masks=[_noise()], output_format=output_format)

    reply = post(body, **changes)

    assert reply.json()["warnings"][0]["field"] == "output_format"
    assert "does not carry its parameters" in reply.json()["warnings"][0]["message"]
    with pytest.raises(ValueError, match="found none"):
        replay.read(_picture(reply))


def test_quality_is_of_jpeg_and_webp() -> None:
    body = seed_request(masks=[_noise()], fg_prompt=["a"], quality=5)

    assert post(body).json()["warnings"] == []
    assert post(body | {"output_format": "png"}).json()["warnings"] == [
        {"field": "quality", "message": "not used, PNG keeps every pixel as it is"}
    ]


def test_a_deadline_of_the_requests_own_is_a_504() -> None:
    painter = FakePainter(forever=True)

    reply = post(seed_request(deadline_s=0.2), painter=painter)

    assert reply.status_code == 504
    assert reply.json()["message"] == "expected a picture within 0.2 s, it was not ready"
    assert len(painter.cancelled) == 1


def test_the_model_is_told_what_is_left_of_a_deadline() -> None:
    painter = FakePainter()

    assert post(seed_request(deadline_s="20"), painter=painter).status_code == 200
    told = painter.requests[0].deadline_s
    assert told is not None
    assert 15 < told < 20


def test_a_request_without_a_deadline_tells_the_model_the_gateways_own() -> None:
    painter = FakePainter()

    assert post(seed_request(), painter=painter, request_seconds=40.0).status_code == 200
    told = painter.requests[0].deadline_s
    assert told is not None
    assert 30 < told < 40
