"""Several Tritons behind one Painter: each request goes to the least busy of those that are ready."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count

from multsd_client.retries import SHORTEST_DEADLINE_S
from multsd_client.tensors import ModelRequest, Picture, Update, is_work
from multsd_gateway.errors import GatewayError, ModelFailedError, ModelUnavailableError
from multsd_gateway.inference import UNKNOWN, ModelDescription, OnProgress, Painter, needed

log = logging.getLogger(__name__)

FAILURES = 3  # of an endpoint, one after the other, after which requests rather go to others
AVOIDED_SECONDS = 10.0  # after each further one


@dataclass(eq=False, slots=True)
class Endpoint:
    """One Triton. ready: as the last probe found it; turn: when it was last chosen."""

    url: str
    painter: Painter
    ready: bool = True
    in_flight: int = 0
    turn: int = field(default=-1, repr=False)
    failures: int = 0  # since its last picture
    avoided_until: float = field(default=-math.inf, repr=False)  # by the event loop's clock

    def painted(self) -> None:
        """It has painted a picture."""
        self.failures, self.avoided_until = 0, -math.inf

    def failed(self, now: float) -> None:
        """Its model has failed on a request that was valid."""
        self.failures += 1
        if self.failures >= FAILURES:
            self.avoided_until = now + AVOIDED_SECONDS


class BalancedPainter:
    """Painter over several. Each is asked every `probe_seconds` whether it is ready; one that is not gets no request.

    A request that fails because its Triton is away or full is given to another, until work on it was told of. One that
    is known to be away is no such other while any is ready: trying it costs time, and ends in an error that tells less.

    A Triton whose GPU is broken calls itself ready and fails every request at once, so that it is always the least
    busy. One on which the model failed gives the request to one other, once, for it may be the request's own fault; and
    where it fails again and again the others come first.
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
        errors: list[ModelUnavailableError] = []
        failure: ModelFailedError | None = None
        answered, clock = False, asyncio.get_running_loop().time
        began = clock()

        async def relay(update: Update) -> None:
            nonlocal answered
            answered = answered or is_work(update)  # one that waits can wait elsewhere
            if on_progress is not None:
                await on_progress(update)

        while (endpoint := self._choose(tried, request)) is not None:
            tried.append(endpoint)
            endpoint.in_flight += 1
            try:
                picture = await endpoint.painter.paint(
                    _later(request, clock() - began),
                    request_id=request_id,
                    on_progress=relay if on_progress is not None else None,
                )
                endpoint.painted()
                return picture
            except ModelUnavailableError as error:
                if answered:
                    raise
                log.warning("Triton %s: %s; trying another if one is left", endpoint.url, error)
                errors.append(error)
            except ModelFailedError as error:
                endpoint.failed(clock())
                if answered or failure is not None:
                    raise
                log.warning("Triton %s: %s; trying another if one is left", endpoint.url, error)
                failure = error
            finally:
                endpoint.in_flight -= 1
        raise failure or _most_telling(errors)

    async def missing(self, models: Sequence[str]) -> list[str]:
        self.start()
        asking = [asyncio.ensure_future(each.painter.missing(models)) for each in self.endpoints]
        fewest: list[str] | None = None
        try:
            for answer in asyncio.as_completed(asking):  # one that hangs does not keep another's answer back
                missing = await answer
                fewest = missing if fewest is None else min(fewest, missing, key=len)
                if not fewest:
                    break
        finally:
            for each in asking:
                each.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
        return list(models or needed(())) if fewest is None else fewest

    async def describe(self) -> ModelDescription:
        """Of the first that is ready, so that one answer is like another; of the next where it does not tell."""
        self.start()
        errors: list[ModelUnavailableError] = []
        for endpoint in [each for each in self.endpoints if each.ready] or self.endpoints:
            try:
                return await endpoint.painter.describe()
            except ModelUnavailableError as error:
                errors.append(error)
        raise _most_telling(errors)

    def samplers(self) -> tuple[str, ...] | None:
        """Of all that are ready together; None where one of them has not told."""
        told = [each.painter.samplers() for each in self.endpoints if each.ready]
        known = [names for names in told if names is not None]
        return tuple(dict.fromkeys(name for names in known for name in names)) if 0 < len(known) == len(told) else None

    def descriptions(self) -> tuple[ModelDescription, ...]:
        ready = [each.painter.descriptions() for each in self.endpoints if each.ready]
        return tuple(model for told in ready for model in told or (UNKNOWN,))

    async def close(self) -> None:
        for probe in self._probes:
            probe.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        await asyncio.gather(*(each.painter.close() for each in self.endpoints))

    def _choose(self, tried: Sequence[Endpoint], request: ModelRequest) -> Endpoint | None:
        """The least busy that is ready, in turn; where none is, any may be back sooner than its next probe.

        Those that fail again and again come last. Before all, one whose own limits are not below the request. None
        where each of those was tried: another would refuse for good what one of them takes later.
        """
        ready = [each for each in self.endpoints if each.ready]
        left = [each for each in ready or self.endpoints if each not in tried]
        if not left:
            return None
        able = [each for each in left if _able(each, request)]
        if not able and any(_able(each, request) for each in tried):
            return None
        now = asyncio.get_running_loop().time()
        chosen = min(able or left, key=lambda each: (each.avoided_until > now, each.in_flight, each.turn))
        chosen.turn = next(self._turns)
        return chosen

    def start(self) -> None:
        """Begin to probe, on the event loop that serves."""
        if not self._probes:
            self._probes = [asyncio.create_task(self._probe(each)) for each in self.endpoints]

    async def _probe(self, endpoint: Endpoint) -> None:
        unforeseen: type[Exception] | None = None  # the last probe's error, told once and not every second
        while True:
            error: type[Exception] | None = None
            try:
                reason = await self._fault(endpoint)
            except Exception as caught:  # an end of this task would leave the state as it is for ever
                error, reason = type(caught), f"the probe failed: {type(caught).__name__}"
                if error is not unforeseen:
                    log.exception("Triton %s: unforeseen", endpoint.url)
            unforeseen = error
            if endpoint.ready is bool(reason):
                endpoint.ready = not reason
                log.warning("Triton %s: %s", endpoint.url, reason or "ready")
            await asyncio.sleep(self._probe_seconds)

    async def _fault(self, endpoint: Endpoint) -> str:
        """Why a Triton can take no request now; empty where it can."""
        try:
            async with asyncio.timeout(self._probe_seconds):
                missing = await endpoint.painter.missing(self._models)
                if not missing:
                    with suppress(GatewayError):
                        await endpoint.painter.describe()  # kept by the painter, for samplers()
        except TimeoutError:
            return f"no answer within {self._probe_seconds:g} s"
        return f"not ready: {', '.join(missing)}" if missing else ""


def _able(endpoint: Endpoint, request: ModelRequest) -> bool:
    return all(takes(told, request) for told in endpoint.painter.descriptions())


def takes(model: ModelDescription, request: ModelRequest) -> bool:
    """Whether a model takes a request, as far as it has told: while one is replaced by another, limits may differ."""
    texts = (*request.prompts, *request.negative_prompts)
    asked = {
        "max_steps": max(request.num_inference_steps or 0, request.bootstrapping or 0, request.preview_every or 0),
        "max_pixels": request.height * request.width,
        "max_mask_pixels": 0 if request.masks is None else request.masks.size,
        "max_regions": len(request.prompts),
        "max_prompt_bytes": max(len(text.encode()) for text in texts),
        "window": request.view_stride or 0,
    }
    known = not model.samplers or request.scheduler is None or request.scheduler in model.samplers
    return known and all(value <= model.number(name, value) for name, value in asked.items())


def _later(request: ModelRequest, seconds: float) -> ModelRequest:
    """The request with what is left of its time after so many seconds."""
    if request.deadline_s is None:
        return request
    return replace(request, deadline_s=max(request.deadline_s - seconds, SHORTEST_DEADLINE_S))


def _most_telling(errors: Sequence[ModelUnavailableError]) -> ModelUnavailableError:
    """Of those that know when to come back the soonest; else the first."""
    full = [error for error in errors if error.retry_after is not None]
    if full:
        return min(full, key=lambda error: error.retry_after or 0)
    return errors[0] if errors else ModelUnavailableError("no Triton to ask")
