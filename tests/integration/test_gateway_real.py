"""What the gateway adds, through the real models: shapes, pictures that carry their request, limits."""

import io
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from multsd_client import Box, Client, GenerationRequest, InvalidRequestError, Progress, Region, replay
from multsd_client.triton import TritonClient
from multsd_gateway.stack.supervisor import Stack
from tests.integration.requests_and_pictures import mask_png, picture, request_body
from tests.integration.test_gateway_operations import errors_of

BOX = (128, 128, 384, 384)
REQUEST = GenerationRequest(
    prompt="green stripes background",
    regions=(Region(Box(*BOX), "a red circle"),),
    num_inference_steps=4,
    bootstrapping=2,
    seed=7,
    output_format="png",
)


def test_a_box_a_polygon_and_an_image_of_the_same_pixels_give_the_same_picture(gateway: httpx.Client) -> None:
    x0, y0, x1, y1 = BOX
    masks = [mask_png(512, 512, BOX), {"box": list(BOX)}, {"polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}]
    pictures = [picture(gateway.post("/multsd", json=request_body(masks=[mask])).json()) for mask in masks]

    assert all(np.array_equal(pictures[0], other) for other in pictures[1:])


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "image/webp"])
def test_a_picture_paints_itself_again_to_the_byte(gateway: httpx.Client, media_type: str) -> None:
    accept = {"Accept": media_type}
    first = gateway.post("/multsd", json=request_body(regions=2, quality=90), headers=accept).content
    request, checkpoint = replay.read(first)

    assert gateway.post("/multsd", json=request, headers=accept).content == first
    assert str(checkpoint["digest"]).startswith("sha256:")


def test_the_command_replay_paints_the_same_pixels(gateway: httpx.Client, stack: Stack, tmp_path: Path) -> None:
    body = request_body(scheduler="euler_a", guidance_scale=3.3)
    (tmp_path / "first.png").write_bytes(gateway.post("/multsd", json=body, headers={"Accept": "image/png"}).content)
    command = [sys.executable, "-m", "multsd_client", "replay", "first.png", "-o", "second.png", "--url", stack.url]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)

    assert (done.returncode, done.stdout) == (0, "second.png\n"), done.stderr
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("first.png", "second.png"))
    assert np.array_equal(first, second)


def test_limits_tell_the_checkpoint_of_the_last_picture(gateway: httpx.Client) -> None:
    reply = gateway.post("/multsd", json=request_body()).json()
    told = gateway.get("/limits").json()

    assert told["checkpoint"]["digest"] == reply["checkpoint"]["digest"]
    assert told["limits"]["max_regions"] == 32


def test_limits_tell_the_samplers_that_the_model_takes(gateway: httpx.Client) -> None:
    told = gateway.get("/limits").json()
    refused = gateway.post("/multsd", json=request_body(scheduler="plms"))

    assert refused.status_code == 400
    assert refused.json()["errors"] == [
        {"field": "scheduler", "message": f'expected one of {", ".join(told["schedulers"])}, found "plms"'}
    ]
    used = gateway.post("/multsd", json=request_body()).json()["parameters"]
    assert told["defaults"]["scheduler"] == used["scheduler"]


def test_a_deadline_ends_the_work(gateway: httpx.Client) -> None:
    reply = gateway.post("/multsd", json=request_body(ddim_steps=150, deadline_s=0.5))

    assert reply.status_code == 504
    message = reply.json()["message"]
    assert "within 0.5 s" in message or "cannot be ready in time" in message, "the gateway's own words, or the model's"


def test_what_the_model_refuses_writes_no_error_into_tritons_log(gateway: httpx.Client, stack: Stack) -> None:
    before = errors_of(stack.triton.log)
    for path in ("/multsd", "/multsd/stream"):
        reply = gateway.post(path, json=request_body(scheduler="plms"))
        assert "scheduler" in reply.text
        assert gateway.post(path, json=request_body(64, 64)).status_code == 200

    assert errors_of(stack.triton.log) == before


def test_the_client_straight_to_triton_gets_the_same_picture(stack: Stack, triton_grpc: str) -> None:
    told: list[Progress] = []
    with TritonClient(triton_grpc) as direct, Client(stack.url) as http:
        straight = direct.generate(REQUEST, on_progress=told.append)
        over_http = http.generate(REQUEST)

    assert told == [Progress(step, 4) for step in (1, 2, 3, 4)]
    assert straight.image == over_http.image
    assert (straight.parameters, straight.checkpoint) == (over_http.parameters, over_http.checkpoint)
    assert Image.open(io.BytesIO(straight.image)).size == (512, 512)


def test_the_client_straight_to_triton_names_the_field_that_is_refused(triton_grpc: str) -> None:
    with TritonClient(triton_grpc) as direct, pytest.raises(InvalidRequestError) as caught:
        direct.generate(GenerationRequest(prompt="a", scheduler="plms"))

    assert [note.field for note in caught.value.errors] == ["scheduler"]
