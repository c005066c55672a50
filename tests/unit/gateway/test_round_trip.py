"""The client against the gateway, without a network."""

import asyncio

import httpx
import pytest

from multsd_client import (
    AsyncClient,
    Box,
    GenerationRequest,
    InvalidRequestError,
    Progress,
    Region,
    ServiceUnavailableError,
)
from multsd_gateway.app import create_app
from multsd_gateway.errors import ModelFullError
from tests.unit.gateway.fakes import FakePainter, settings


def test_client_and_gateway_understand_each_other() -> None:
    painter = FakePainter()
    told: list[Progress] = []
    request = GenerationRequest(
        prompt="a beach", regions=(Region(Box(0, 0, 32, 64), "a dog"),), width=64, height=64, seed=2**64 - 1
    )

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(settings(), painter))
        async with AsyncClient("http://gateway", transport=transport) as client:
            assert await client.ready()
            result = await client.generate(request, on_progress=told.append, request_id="job-7")
            assert (result.seed, result.request_id, result.warnings) == (2**64 - 1, "job-7", ())
            assert result.image[:2] == b"\xff\xd8"
            with pytest.raises(InvalidRequestError) as refused:
                await client.generate({"bg_prompt": 1})
            assert [str(note) for note in refused.value.errors] == ["bg_prompt: expected a string, found 1"]

    asyncio.run(scenario())

    assert told == [Progress(1, 2), Progress(2, 2)]
    assert painter.requests[0].masks is not None
    assert painter.requests[0].masks.sum() == 32 * 64


def test_a_full_model_is_asked_again_although_its_stream_has_begun() -> None:
    painter = FakePainter(error=ModelFullError("full", retry_after=0), updates=())

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(settings(), painter))
        async with AsyncClient("http://gateway", retries=2, transport=transport) as client:
            with pytest.raises(ServiceUnavailableError):
                await client.generate(GenerationRequest(prompt="a beach"))

    asyncio.run(scenario())

    assert len(painter.requests) == 3
