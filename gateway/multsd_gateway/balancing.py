"""Several Tritons behind one Painter: each request goes to the least busy of those that are ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from multsd_client.tensors import ModelRequest, Picture, Queued, Update
from multsd_gateway.errors import ModelUnavailableError
from multsd_gateway.inference import ModelDescription, OnProgress, Painter

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Endpoint:
    """One Triton. ready: as the last probe found it; turn: when it was last chosen."""

    url: str
    painter: Painter
    ready: bool = True
    in_flight: int = 0
    turn: int = field(default=-1, repr=False)


class BalancedPainter:
    """Painter over several. Each is asked every `probe_seconds` whether it is ready; one that is not gets no request.

    A request that fails because its Triton is away or full is given to another, if nothing was answered yet.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, models: Sequence[str], probe_seconds: float) -> None:
        self.endpoints = tuple(endpoints)
        self._models = tuple(models)
        self._probe_seconds = probe_seconds
        self._turns = count()
        self._probes: list[asyncio.Task[None]] = []

    async def paint(self, request: ModelRequest, *, request_id: str, on_progress: OnProgress | None) -> Picture:
        self.start()
        tried: list[Endpoint] = []
        answered = False

        async def relay(update: Update) -> None:
            nonlocal answered
            answered = answered or not isinstance(update, Queued)  # one that waits can wait elsewhere
            if on_progress is not None:
                await on_progress(update)

        while True:
            endpoint = self._choose(tried)
            tried.append(endpoint)
            endpoint.in_flight += 1
            try:
                return await endpoint.painter.paint(
                    request, request_id=request_id, on_progress=relay if on_progress is not None else None
                )
            except ModelUnavailableError as error:
                if answered or len(tried) == len(self.endpoints):
                    raise
                log.warning("Triton %s: %s; trying another", endpoint.url, error)
            finally:
                endpoint.in_flight -= 1

    async def missing(self, models: Sequence[str]) -> list[str]:
        self.start()
        asking = [asyncio.ensure_future(each.painter.missing(models)) for each in self.endpoints]
        fewest = list(models)
        try:
            for answer in asyncio.as_completed(asking):  # one that hangs does not keep another's answer back
                fewest = min(fewest, await answer, key=len)
                if not fewest:
                    break
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return fewest

    async def describe(self) -> ModelDescription:
        self.start()
        return await self._choose([]).painter.describe()

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await asyncio.gather(*(each.painter.close() for each in self.endpoints))

    def _choose(self, tried: Sequence[Endpoint]) -> Endpoint:
        """The least busy that is ready, in turn; where none is, any may be back sooner than its next probe."""
        left = [each for each in self.endpoints if each not in tried]
        chosen = min([each for each in left if each.ready] or left, key=lambda each: (each.in_flight, each.turn))
        chosen.turn = next(self._turns)
        return chosen

    def start(self) -> None:
        """Begin to probe, on the event loop that serves."""
        if not self._probes:
            self._probes = [asyncio.create_task(self._probe(each)) for each in self.endpoints]

    async def _probe(self, endpoint: Endpoint) -> None:
        while True:
            try:
                async with asyncio.timeout(self._probe_seconds):
                    missing = await endpoint.painter.missing(self._models)
                reason = f"not ready: {', '.join(missing)}" if missing else ""
            except TimeoutError:
                reason = f"no answer within {self._probe_seconds:g} s"
            if endpoint.ready is bool(reason):
                endpoint.ready = not reason
                log.warning("Triton %s: %s", endpoint.url, reason or "ready")
            await asyncio.sleep(self._probe_seconds)
