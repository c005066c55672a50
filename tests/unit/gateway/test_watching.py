"""A model whose process dies or hangs under a request: Triton keeps the stream open, so the painter has to find out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from tritonclient.grpc import service_pb2

from multsd_gateway.balancing import BalancedPainter, Endpoint
from multsd_gateway.errors import ModelUnavailableError
from multsd_gateway.inference import TritonPainter
from tests.unit.gateway.test_inference import PROGRESS, FakeTriton, _paint, _with

REFUSAL = service_pb2.ModelStreamInferResponse(error_message="INVALID_ARG: height: expected 64 to 4096, found 1")
DEAD = service_pb2.ModelStreamInferResponse(error_message="Stub process 'multidiffusion_0_0' is not healthy.")


@dataclass
class ProbedTriton(FakeTriton):
    """A stream that never ends. A probe, which has no id, is answered by `answer`, or by nothing.

    That of a refused probe ends a moment after the refusal.
    """

    answer: Any = None
    after: float = 0.0  # seconds
    tells: bool = True  # its metadata
    probes: int = 0
    ended_probes: int = 0
    several: asyncio.Event = field(default_factory=asyncio.Event)

    async def ModelStreamInfer(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            if not request.id:
                self.probes += 1
                if self.probes == 4:
                    self.several.set()
                await asyncio.sleep(self.after)
                if self.answer is not None:
                    yield self.answer
                await asyncio.sleep(0.05 if self.answer is REFUSAL else 3600)
                self.ended_probes += 1
                return
            break
        async for response in super().ModelStreamInfer(requests, context):
            yield response

    async def ModelMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        if not self.tells:
            await asyncio.sleep(3600)
        tensor = service_pb2.ModelMetadataResponse.TensorMetadata(name="height", datatype="INT32", shape=[1])
        return service_pb2.ModelMetadataResponse(inputs=[tensor])


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_of = {"_PING_SECONDS": 0.05, "_PROBE_SECONDS": 0.05, "_HUNG_SECONDS": 0.3, "_SUSPECT_SECONDS": 0.3}
    for name, seconds in seconds_of.items():
        monkeypatch.setattr(f"multsd_gateway.inference.{name}", seconds)


@pytest.mark.parametrize("answer", [DEAD, None], ids=["dead", "hung"])
def test_requests_end_and_the_model_is_not_ready(answer: Any) -> None:
    triton = ProbedTriton(responses=[PROGRESS], answer=answer, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> list[str]:
        ended = await asyncio.gather(_paint(painter), _paint(painter), return_exceptions=True)
        assert [type(error) for error in ended] == [ModelUnavailableError] * 2
        assert {str(error) for error in ended} == {"no sign of life from multidiffusion"}
        assert triton.probes == 1, "one serves all requests"
        return await painter.missing(["multidiffusion"])

    assert _with(triton, use) == ["multidiffusion"]


def test_requests_end_where_triton_does_not_even_tell_of_the_model() -> None:
    """As it does now and then when the model's process has just died."""
    triton = ProbedTriton(responses=[PROGRESS], tells=False, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> None:
        async with asyncio.timeout(10):
            with pytest.raises(ModelUnavailableError, match="no sign of life from multidiffusion"):
                await _paint(painter)

    _with(triton, use)


def test_a_model_that_refuses_probes_is_waited_for() -> None:
    triton = ProbedTriton(responses=[PROGRESS], answer=REFUSAL, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> list[str]:
        painting = asyncio.create_task(_paint(painter))
        await triton.several.wait()
        assert not painting.done()
        assert triton.ended_probes == 3, "Triton keeps some memory of a stream that does not come to its end"
        painting.cancel()
        return await painter.missing(["multidiffusion"])

    assert _with(triton, use) == []


@pytest.mark.parametrize(
    "text",
    [
        "no answer for 300 s",
        "Request timeout expired",  # of the network's queue in Triton
        "[request id: <id_unknown>] Request timeout expired",
    ],
)
def test_a_network_that_was_silent_is_not_ready_until_it_answers(text: str) -> None:
    silent = service_pb2.ModelStreamInferResponse(error_message=f"UNAVAILABLE: unet: {text}")
    triton = ProbedTriton(responses=[silent], loaded=("unet",))

    async def use(painter: TritonPainter) -> list[list[str]]:
        with pytest.raises(ModelUnavailableError):
            await _paint(painter)
        hung = await painter.missing(["unet"])
        triton.answer = REFUSAL
        return [hung, await painter.missing(["unet"])]

    assert _with(triton, use) == [["unet"], []]


def test_a_network_whose_queue_is_full_is_ready() -> None:
    full = service_pb2.ModelStreamInferResponse(error_message="UNAVAILABLE: unet: Exceeds maximum queue size")
    triton = ProbedTriton(responses=[full], loaded=("unet",))

    async def use(painter: TritonPainter) -> list[str]:
        with pytest.raises(ModelUnavailableError):
            await _paint(painter)
        return await painter.missing(["unet"])

    assert _with(triton, use) == []


MODELS = ["multidiffusion", "unet"]


async def _until(painter: TritonPainter, missing: list[str]) -> None:
    while await painter.missing(MODELS) != missing:  # noqa: ASYNC110 - the probe tells nobody
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [DEAD, None], ids=["dead", "hung"])
def test_without_any_request_a_model_that_dies_or_hangs_is_not_ready_until_it_answers(answer: Any) -> None:
    triton = ProbedTriton(answer=REFUSAL, loaded=("multidiffusion", "unet"))

    async def use(painter: TritonPainter) -> None:
        assert await painter.missing(MODELS) == []
        await asyncio.sleep(0.2)
        assert await painter.missing(MODELS) == []
        triton.answer, probes = answer, triton.probes
        await _until(painter, ["multidiffusion"])
        assert triton.probes <= probes + 3, "one that was under way, the next, and one on suspicion"
        triton.answer = REFUSAL
        await _until(painter, [])

    _with(triton, use)
    assert triton.requests == []


def test_a_balanced_triton_whose_model_dies_gets_no_request_any_more() -> None:
    triton = ProbedTriton(answer=REFUSAL, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> None:
        balanced = BalancedPainter([Endpoint("0", painter)], models=["multidiffusion"], probe_seconds=0.5)
        balanced.start()
        await asyncio.sleep(0.2)
        assert balanced.endpoints[0].ready
        triton.answer = DEAD
        while balanced.endpoints[0].ready:  # noqa: ASYNC110 - the probe tells nobody
            await asyncio.sleep(0.01)
        assert await balanced.missing(["multidiffusion"]) == ["multidiffusion"]
        await balanced.close()

    _with(triton, use)


def test_a_model_that_answers_late_keeps_nobody_waiting_and_is_ready() -> None:
    triton = ProbedTriton(answer=REFUSAL, after=0.2, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> None:
        clock = asyncio.get_running_loop().time
        ends = clock() + 1
        while (began := clock()) < ends:
            assert await painter.missing(["multidiffusion"]) == []
            assert clock() - began < 0.15, "nobody waits for the probe"
            await asyncio.sleep(0.01)

    _with(triton, use)
    assert 2 <= triton.ended_probes <= triton.probes <= 5, "one at a time, each to its end"


def test_probes_are_as_rare_as_under_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multsd_gateway.inference._PROBE_SECONDS", 60)
    triton = ProbedTriton(answer=REFUSAL, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> None:
        for _ in range(20):
            assert await painter.missing(["multidiffusion"]) == []
            await asyncio.sleep(0.01)

    _with(triton, use)
    assert triton.probes == 1


def test_networks_and_models_that_are_not_loaded_are_not_probed() -> None:
    triton = ProbedTriton(answer=DEAD, loaded=("unet",))

    async def use(painter: TritonPainter) -> None:
        for _ in range(3):
            assert await painter.missing(MODELS) == ["multidiffusion"]
            await asyncio.sleep(0.1)

    _with(triton, use)
    assert triton.probes == 0


def test_a_triton_that_goes_away_under_a_probe_says_nothing_of_the_model() -> None:
    class Leaving(ProbedTriton):
        asked = 0

        async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
            self.asked += 1
            if self.asked < 3:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")
            return await super().ModelMetadata(request, context)

    triton = Leaving(answer=REFUSAL, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> None:
        while not triton.ended_probes:
            assert await painter.missing(["multidiffusion"]) == []
            await asyncio.sleep(0.01)

    _with(triton, use)


def test_a_painter_that_is_closed_leaves_no_probe() -> None:
    triton = ProbedTriton(answer=None, loaded=("multidiffusion",))

    async def use(painter: TritonPainter) -> None:
        before = asyncio.all_tasks()
        assert await painter.missing(["multidiffusion"]) == []
        await asyncio.sleep(0.05)
        (probe,) = (each for each in asyncio.all_tasks() - before if "_lives" in repr(each))
        await painter.close()
        assert probe.cancelled()

    _with(triton, use)
