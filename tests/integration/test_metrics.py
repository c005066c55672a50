"""The method's own counters, among Triton's, through the gateway."""

import re

import httpx

from tests.integration.requests_and_pictures import picture, request_body

NAMES = ("unet_rows", "unet_rows_reference", "embedding_cache_hits", "embedding_cache_misses")


def counters(gateway: httpx.Client) -> dict[str, float]:
    text = gateway.get("/metrics").text
    found = {name: re.findall(rf"^multsd_{name}_total(?:{{.*}})? (\S+)$", text, re.MULTILINE) for name in NAMES}
    return {name: float(values[0]) for name, values in found.items()}


def test_rows_are_counted_as_the_replies_tell_them(gateway: httpx.Client) -> None:
    before = counters(gateway)
    replies = [gateway.post("/multsd", json=request_body(regions=regions)).json() for regions in (0, 2)]
    after = counters(gateway)
    for name in ("unet_rows", "unet_rows_reference"):
        assert after[name] - before[name] == sum(reply[name] for reply in replies)


def test_prompts_seen_before_are_not_encoded_again(gateway: httpx.Client) -> None:
    body = request_body(bg_prompt="orange dots background", fg_prompt=["a pink cross"])
    first = gateway.post("/multsd", json=body).json()
    before = counters(gateway)
    second = gateway.post("/multsd", json=body).json()
    after = counters(gateway)
    assert after["embedding_cache_misses"] == before["embedding_cache_misses"]
    assert after["embedding_cache_hits"] - before["embedding_cache_hits"] == 3  # two prompts and ""
    assert first["image"] == second["image"]


def test_picture_larger_than_a_vae_tile_is_painted_whole(gateway: httpx.Client) -> None:
    image = picture(gateway.post("/multsd", json=request_body(1100, 512, ddim_steps=1, bootstrapping=0)).json())
    assert image.shape == (512, 1100, 3)
    assert min(float(image[:, left : left + 50].std()) for left in range(0, 1100, 50)) > 5
