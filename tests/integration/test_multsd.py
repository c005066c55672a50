"""POST /multsd through the gateway and a real Triton."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.integration.requests_and_pictures import mask_png, picture, request_body

# The example of the original API's page, raw line breaks inside the strings and all; only the mask is filled in.
SEED_EXAMPLE = """{
"bg_prompt" : "futuristic sci fi spaceship, star citizen, star atlas, render,",
"bg_nprompt" : "(deformed iris, deformed pupils, semi-realistic, cgi, 3d, render, sketch, cartoon,
drawing, anime:1.4), text, close up, cropped, out of frame, worst quality, low quality, jpeg artifacts,
ugly, duplicate, morbid, mutilated, extra fingers, mutated hands",
"fg_prompt" : ["a Husky dog"],
"fg_nprompt" : ["(deformed iris, deformed pupils, semi-realistic, cgi, 3d, render, sketch,
cartoon, drawing, anime:1.4), text, close up, cropped, out of frame, worst quality, low quality, jpeg
artifacts, ugly, duplicate, morbid, mutilated, extra fingers, mutated hands"],
"width" : "512",
"height" : "512",
"ddim_steps" : "35",
"bootstrapping" : "20",
"seed" : "22312",
"masks" :
["base64StringImage"]
}"""


def post(gateway: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = gateway.post("/multsd", json=body)
    assert response.status_code == 200, response.text
    reply: dict[str, Any] = response.json()
    return reply


def test_the_original_pages_example_becomes_a_picture(gateway: httpx.Client) -> None:
    body = SEED_EXAMPLE.replace("base64StringImage", mask_png(512, 512, (128, 128, 384, 384)))
    response = gateway.post("/multsd", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    reply = response.json()
    with Image.open(io.BytesIO(base64.b64decode(reply["image"]))) as image:
        assert (image.format, image.size) == ("JPEG", (512, 512))
    assert reply["seed"] == 22312
    assert (reply["unet_rows"], reply["unet_rows_reference"]) == (125, 140)
    assert {warning["field"] for warning in reply["warnings"]} >= {"bg_nprompt", "fg_nprompt[0]"}


def strips(image: npt.NDArray[np.uint8]) -> dict[str, float]:
    """How much the picture varies in its interior and along each edge: standard deviation of levels."""
    parts = {
        "interior": image[64:-64, 64:-64],
        "top": image[:16],
        "bottom": image[-16:],
        "left": image[:, :16],
        "right": image[:, -16:],
    }
    return {name: float(part.std()) for name, part in parts.items()}


@pytest.mark.parametrize(
    ("width", "height"), [(512, 512), (768, 512), (568, 512), (640, 448), (520, 520), (500, 300), (512, 768), (64, 64)]
)
def test_every_size_is_painted_to_the_edges(gateway: httpx.Client, width: int, height: int) -> None:
    reply = post(gateway, request_body(width, height))
    image = picture(reply)
    assert image.shape == (height, width, 3)
    if min(width, height) > 128:
        varies = strips(image)
        assert all(varies[edge] > varies["interior"] / 4 for edge in ("top", "bottom", "left", "right")), varies


def test_two_overlapping_masks_warn_and_change_the_picture(gateway: httpx.Client) -> None:
    one, two = (post(gateway, request_body(regions=regions)) for regions in (1, 2))
    assert [warning["field"] for warning in two["warnings"]] == ["masks[1]"]
    assert "overlaps masks[0]" in two["warnings"][0]["message"]
    assert one["image"] != two["image"]


def test_no_mask_is_plain_text_to_image(gateway: httpx.Client) -> None:
    reply = post(gateway, request_body(regions=0))
    assert picture(reply).shape == (512, 512, 3)
    assert reply["unet_rows"] == 8  # one pair of rows a step


def test_same_request_gives_the_same_bytes(gateway: httpx.Client) -> None:
    assert post(gateway, request_body())["image"] == post(gateway, request_body())["image"]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"bg_prompt": "pink dots background"},
        {"fg_prompt": ["a white heart"]},
        {"bg_nprompt": "a red circle"},
        {"ddim_steps": 5},
        {"bootstrapping": 0},
        {"guidance_scale": 1},
        {"scheduler": "euler"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_is_asked_for_changes_the_picture(gateway: httpx.Client, change: dict[str, Any]) -> None:
    changed = post(gateway, request_body() | change)
    assert not np.array_equal(picture(post(gateway, request_body())), picture(changed))


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "lcm"])
def test_every_scheduler_paints(gateway: httpx.Client, scheduler: str) -> None:
    reply = post(gateway, request_body(scheduler=scheduler))
    assert reply["parameters"]["scheduler"] == scheduler
    assert picture(reply).std() > 5


def test_image_bytes_by_accept_header(gateway: httpx.Client) -> None:
    response = gateway.post("/multsd", json=request_body(), headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert response.content.startswith(b"\x89PNG")


def test_stream_tells_each_step_and_ends_with_the_same_picture(gateway: httpx.Client) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    with gateway.stream("POST", "/multsd/stream", json=request_body()) as response:
        name = ""
        for line in response.iter_lines():
            if line.startswith("event:"):
                name = line.removeprefix("event:").strip()
            elif line.startswith("data:"):
                events.append((name, json.loads(line.removeprefix("data:"))))
    steps = [data["step"] for name, data in events if name == "progress"]
    assert steps == [1, 2, 3, 4]
    name, result = events[-1]
    assert name == "result"
    assert result["image"] == post(gateway, request_body())["image"]


def test_healthz_and_readyz(gateway: httpx.Client) -> None:
    assert gateway.get("/healthz").status_code == 200
    assert gateway.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"height": 50}, "height"),
        ({"masks": []}, "masks"),
        ({"fg_prompt": "a red circle"}, "fg_prompt"),
        ({"ddim_steps": 0}, "ddim_steps"),
        ({"scheduler": "lcm", "ddim_steps": 51}, "ddim_steps"),
        ({"scheduler": "plms"}, "scheduler"),
    ],
)
def test_bad_fields_are_named(gateway: httpx.Client, change: dict[str, Any], field: str) -> None:
    response = gateway.post("/multsd", json=request_body() | change)
    assert response.status_code == 400, response.text
    assert field in {error["field"] for error in response.json()["errors"]}
