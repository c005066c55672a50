"""Nothing that a client sends is a server error."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from multsd_gateway.app import create_app
from multsd_gateway.schema import MultsdRequest
from tests.unit.gateway.fakes import FakePainter, mask_base64, seed_request, settings

SMALL = {"max_side": 512, "max_pixels": 64 * 64, "max_mask_pixels": 64 * 64 * 4}

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 600)
    | st.integers().map(str)
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["", "1e999", "data:", "data:;base64,AAAA", "\ud800", mask_base64(), "AAAA", "512 ", "-0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)

REQUESTS = st.dictionaries(
    st.sampled_from(sorted(MultsdRequest.model_fields)) | st.text(st.characters(), max_size=8), ANYTHING, max_size=4
)


def _status(content: bytes, path: str) -> int:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(settings(**SMALL), FakePainter()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.post(path, content=content)

    reply = asyncio.run(once())
    json.dumps(reply.text)
    return reply.status_code


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream", "/multsd?strict=1"])
@given(changes=REQUESTS)
@examples(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_json_value_in_any_field_is_a_server_error(path: str, changes: dict[str, Any]) -> None:
    body = json.dumps(seed_request(**changes)).encode()

    assert _status(body, path) in (200, 400)


@pytest.mark.parametrize("path", ["/multsd", "/multsd/stream"])
@given(body=st.binary(max_size=200) | st.text(alphabet='{}[]":,\\ \nabtrue019.eE-', max_size=60).map(str.encode))
@examples(max_examples=150, deadline=None)
def test_no_bytes_are_a_server_error(path: str, body: bytes) -> None:
    assert _status(body, path) in (200, 400)


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8), cut=st.integers(0, 40))
@examples(max_examples=150, deadline=None)
def test_no_damaged_image_is_a_server_error(flips: list[tuple[int, int]], cut: int) -> None:
    image = bytearray(base64.b64decode(mask_base64()))
    for position, value in flips:
        image[position % len(image)] = value
    text = base64.b64encode(image[: len(image) - cut]).decode()

    assert _status(json.dumps(seed_request(masks=[text])).encode(), "/multsd") in (200, 400)
