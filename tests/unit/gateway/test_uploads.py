"""Bodies are bounded together, and a slow one keeps nobody out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from multsd_gateway.app import create_app
from multsd_gateway.errors import OverloadedError
from multsd_gateway.uploads import Uploads
from tests.unit.gateway.fakes import FakePainter, seed_request, settings


def test_all_bodies_together_are_bounded() -> None:
    uploads = Uploads(10)
    with uploads.receive() as first, uploads.receive() as second:
        first.add(b"123456")
        with pytest.raises(OverloadedError):
            second.add(b"12345")
        second.add(b"1234")
        assert (bytes(first), bytes(second), uploads.bytes) == (b"123456", b"1234", 10)
    assert uploads.bytes == 0


def test_a_released_body_makes_room_once() -> None:
    uploads = Uploads(10)
    with uploads.receive() as first:
        first.add(b"1234567890")
        first.release()
        with uploads.receive() as second:
            second.add(b"1234567890")
    assert uploads.bytes == 0


def test_the_bodies_of_one_token_leave_room_for_others() -> None:
    uploads = Uploads(12, most_of_one=5)
    with uploads.receive("a") as first, uploads.receive("a") as second, uploads.receive("b") as third:
        first.add(b"123")
        with pytest.raises(OverloadedError, match="of this token's"):
            second.add(b"456")
        third.add(b"12345")
        first.release()
        second.add(b"12345")
        with pytest.raises(OverloadedError, match="of this token's"):
            first.add(b"1")
    assert uploads.bytes == 0
    assert not any(uploads.owned.values())


def test_one_token_cannot_keep_the_others_out_by_bodies_that_do_not_end(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a:aaaaaaaaaaaaaaaa\nb:bbbbbbbbbbbbbbbb\n")

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 1000
        await asyncio.sleep(3600)

    async def scenario() -> int:
        app = create_app(settings(max_uploaded_bytes=20_000, max_body_bytes=10_000, token_file=tokens), FakePainter())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:

            async def ask(token: str, content: bytes | AsyncIterator[bytes]) -> httpx.Response:
                return await client.post("/multsd", content=content, headers={"Authorization": f"Bearer {token * 16}"})

            slow = [asyncio.ensure_future(ask("a", endless())) for _ in range(2)]
            await asyncio.sleep(0.1)
            reply = await ask("b", json.dumps(seed_request()).encode())
            for each in slow:
                each.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        return reply.status_code

    assert asyncio.run(scenario()) == 200


def test_slow_bodies_keep_nobody_out() -> None:
    async def never_ending() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(3600)

    async def scenario() -> int:
        app = create_app(settings(max_running=1, max_waiting=0), FakePainter())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            slow = [asyncio.ensure_future(client.post("/multsd", content=never_ending())) for _ in range(20)]
            await asyncio.sleep(0)
            reply = await client.post("/multsd", json=seed_request())
            for each in slow:
                each.cancel()
            await asyncio.gather(*slow, return_exceptions=True)
        return reply.status_code

    assert asyncio.run(scenario()) == 200


def test_bodies_beyond_the_bytes_of_all_are_a_503() -> None:
    async def scenario() -> httpx.Response:
        body = json.dumps(seed_request()).encode()
        app = create_app(settings(max_uploaded_bytes=len(body) - 1), FakePainter())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
            return await client.post("/multsd", content=body)

    reply = asyncio.run(scenario())
    assert reply.status_code == 503
    assert reply.headers["Retry-After"] == "5"
