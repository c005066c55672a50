"""What `make bench-gateway` times of a direct call: Triton, and not what the client prepares for it."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import pytest

from multsd_client.triton import model_request
from tests.benchmarks import gateway


class Result:
    def as_numpy(self, name: str) -> None:
        assert name == "image"


class Answers:
    """One, to one request."""

    def __init__(self, sent: AsyncIterator[Any]) -> None:
        self._sent = sent

    async def __aiter__(self) -> AsyncIterator[tuple[Result, None]]:
        request = await anext(self._sent)
        assert {tensor.name() for tensor in request["inputs"]} >= {"prompt", "masks"}
        yield Result(), None


class Client:
    def __init__(self, *_: Any, **__: Any) -> None:
        """Of no server."""

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Closed."""

    def stream_infer(self, sent: AsyncIterator[Any]) -> Answers:
        return Answers(sent)


def test_masks_are_drawn_once_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []

    def draw(*arguments: Any, **options: Any) -> Any:
        drawn.append(arguments)
        return model_request(*arguments, **options)

    async def measure(once: Any) -> list[float]:
        before = len(drawn)
        await once()
        assert len(drawn) == before == 1
        return [1.0]

    monkeypatch.setattr(gateway, "model_request", draw)
    monkeypatch.setattr(gateway, "InferenceServerClient", Client)
    monkeypatch.setattr(gateway, "measure", measure)
    assert asyncio.run(gateway.direct("nowhere")) == [1.0]
