"""A request is tried again only where no work was told of, and when the service says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from multsd_client import AsyncClient, Client, MultsdError, ServiceUnavailableError, protocol
from multsd_client.client import LAST_WORD_S
from multsd_client.errors import DeadlineExceededError, InvalidRequestError
from multsd_client.retries import LONGEST_PAUSE_S, SHORTEST_DEADLINE_S, pause
from multsd_client.tensors import Progress, Queued
from tests.unit.client.fakes import PREVIEW, RESULT, STEPS, events, painted, refusal, service

Outcome = Callable[[], httpx.Response]


def _raise(error: Exception) -> httpx.Response:
    raise error


def _generate(
    reply: Callable[[httpx.Request], httpx.Response], body: Any, *, retries: int, blocking: bool, **listeners: Any
) -> None:
    """Ask for a picture with either client; reply: the service."""

    async def awaited() -> None:
        async with AsyncClient("http://service", retries=retries, transport=service(reply)) as client:
            await client.generate(body, **listeners)

    if blocking:
        with Client("http://service", retries=retries, transport=service(reply)) as client:
            client.generate(body, **listeners)
    else:
        asyncio.run(awaited())


def _attempts(outcomes: list[Outcome], *, retries: int, blocking: bool, told: list[Any] | None = None) -> int:
    """How many requests were sent before the last outcome; the error of the last is raised. told: gets the updates."""
    listeners: dict[str, Any] = {} if told is None else {"on_queued": told.append, "on_progress": told.append}
    left = list(outcomes)

    def reply(_request: httpx.Request) -> httpx.Response:
        return left.pop(0)()

    _generate(reply, {}, retries=retries, blocking=blocking, **listeners)
    return len(outcomes) - len(left)


FULL: Outcome = lambda: refusal(503, **{"Retry-After": "0"})  # noqa: E731
LIMITED: Outcome = lambda: refusal(429, **{"Retry-After": "0"})  # noqa: E731
FULL_EVENT = ("error", {"status": 503, "message": "full", "retry_after": 0})
WAITING = ("queued", {"position": 2})


def _cut(*told: tuple[str, dict[str, Any]]) -> httpx.Response:
    """A stream that breaks after some events."""

    class Broken(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield events(*told).content
            raise httpx.ReadError("cut")

        async def __aiter__(self) -> Any:
            for each in self:
                yield each

    return httpx.Response(200, stream=Broken())


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multsd_client.retries.FIRST_PAUSE_S", 0.0)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the clients, which take no time."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("multsd_client.client.time.sleep", pauses.append)
    monkeypatch.setattr("multsd_client.client.asyncio.sleep", sleep)
    return pauses


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_service_is_asked_again_until_it_paints(blocking: bool) -> None:
    assert _attempts([FULL, LIMITED, painted], retries=2, blocking=blocking) == 3


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_proxy_whose_service_is_away_is_asked_again(status: int, blocking: bool, slept: list[float]) -> None:
    page: Outcome = lambda: httpx.Response(status, text="<html>", headers={"Retry-After": "7"})  # noqa: E731

    assert _attempts([page, page, painted], retries=2, blocking=blocking) == 3
    assert slept == [7, 7]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("deadline_s", [30, "30"], ids=["a number", "a numeric string"])
def test_all_attempts_share_one_deadline(blocking: bool, deadline_s: object) -> None:
    sent: list[Any] = []

    def reply(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content)["deadline_s"])
        return FULL() if len(sent) < 3 else painted()

    _generate(reply, {"deadline_s": deadline_s}, retries=2, blocking=blocking)
    first, second, third = sent
    assert first == deadline_s
    assert 30 > second > third > 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_silent_service_is_waited_for_no_longer_than_the_deadline(blocking: bool) -> None:
    waits: list[float] = []

    def reply(request: httpx.Request) -> httpx.Response:
        waits.append(request.extensions["timeout"]["read"])
        return FULL() if len(waits) == 1 else painted()

    _generate(reply, {"deadline_s": 30}, retries=1, blocking=blocking)
    _generate(reply, {"deadline_s": 3000}, retries=1, blocking=blocking)
    _generate(reply, {}, retries=1, blocking=blocking)
    first, second, *others = waits
    assert 30 + LAST_WORD_S > first > second > 0
    assert others == [600, 600], "the client's own timeout"


@pytest.mark.parametrize("blocking", [True, False])
def test_nothing_is_tried_again_after_the_deadline(blocking: bool) -> None:
    def reply(_request: httpx.Request) -> httpx.Response:
        return refusal(503, **{"Retry-After": "60"})

    with pytest.raises(ServiceUnavailableError):  # at once
        _generate(reply, {"deadline_s": 30}, retries=5, blocking=blocking)


@pytest.mark.parametrize("blocking", [True, False])
def test_no_attempt_has_less_time_than_the_service_takes_for_a_deadline(blocking: bool) -> None:
    def reply(_request: httpx.Request) -> httpx.Response:
        return refusal(503, **{"Retry-After": "1"})

    with pytest.raises(ServiceUnavailableError):  # at once
        _generate(reply, {"deadline_s": 1.09}, retries=5, blocking=blocking)
    assert protocol.within({"seed": 1}, -1.0) == {"seed": 1, "deadline_s": SHORTEST_DEADLINE_S}


@pytest.mark.parametrize("blocking", [True, False])
def test_a_deadline_that_is_no_float_is_the_services_to_refuse(blocking: bool) -> None:
    with pytest.raises(InvalidRequestError):
        _generate(lambda _: refusal(400), {"deadline_s": 10**400}, retries=1, blocking=blocking)


@pytest.mark.parametrize("blocking", [True, False])
def test_after_the_last_retry_the_error_is_raised(blocking: bool) -> None:
    with pytest.raises(ServiceUnavailableError):
        _attempts([FULL, FULL, painted], retries=1, blocking=blocking)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    "outcome",
    [
        lambda: events(WAITING, *STEPS, FULL_EVENT),
        lambda: events(PREVIEW, FULL_EVENT),
        lambda: events(("error", {"status": 500, "message": "broken"})),
        lambda: _cut(WAITING, *STEPS),
        lambda: events(WAITING, *STEPS),
        lambda: refusal(400),
        lambda: refusal(500),
        lambda: refusal(504),
        lambda: _raise(httpx.ReadTimeout("slow")),
    ],
    ids=[
        *("full after progress", "full after a preview", "a failure in an event", "cut after progress"),
        "ended after progress",
        *("a refusal", "a failure", "a deadline", "a timeout"),
    ],
)
def test_what_was_worked_on_or_refused_is_not_asked_again(outcome: Outcome, blocking: bool) -> None:
    with pytest.raises(MultsdError):
        _attempts([outcome, painted], retries=5, blocking=blocking)


@pytest.mark.usefixtures("no_pause")
@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    "outcome",
    [
        *(lambda: events(FULL_EVENT), lambda: events(WAITING, FULL_EVENT)),
        *(lambda: _cut(), lambda: _cut(WAITING), lambda: events(), lambda: events(WAITING)),
    ],
    ids=[
        *("full at once", "full after a wait", "cut at once", "cut after a wait"),
        *("ended at once", "ended after a wait"),
    ],
)
def test_a_stream_that_ends_before_any_work_is_asked_for_again(outcome: Outcome, blocking: bool) -> None:
    assert _attempts([outcome, outcome, painted], retries=2, blocking=blocking) == 3


@pytest.mark.parametrize("blocking", [True, False])
def test_another_attempt_queues_anew_and_steps_are_told_once(blocking: bool) -> None:
    told: list[Any] = []

    _attempts(
        [lambda: events(WAITING, FULL_EVENT), lambda: events(WAITING, *STEPS, ("result", RESULT))],
        retries=1,
        blocking=blocking,
        told=told,
    )

    assert told == [Queued(2), Queued(2), Progress(1, 2), Progress(2, 2)]


@pytest.mark.parametrize(
    "outcome", [lambda: events(STEPS[0], FULL_EVENT), lambda: _cut(STEPS[0]), lambda: events(STEPS[0])]
)
def test_the_error_tells_whether_work_was_told_of(outcome: Outcome) -> None:
    for each, answered in ((outcome, True), (lambda: events(WAITING, FULL_EVENT), False), (FULL, False)):
        with pytest.raises(ServiceUnavailableError) as caught:
            _attempts([each], retries=0, blocking=True)
        assert caught.value.answered is answered


@pytest.mark.parametrize("blocking", [True, False])
def test_a_rate_that_is_used_up_is_waited_for_and_counts_as_no_attempt(blocking: bool, slept: list[float]) -> None:
    later: Outcome = lambda: refusal(429, **{"Retry-After": "7"})  # noqa: E731

    assert _attempts([*[later] * 20, FULL, later, painted], retries=1, blocking=blocking) == 23
    assert slept == [*[7] * 20, 0, 7]
    with pytest.raises(ServiceUnavailableError) as caught:
        _attempts([later, painted], retries=0, blocking=blocking)
    assert caught.value.limited
    with pytest.raises(ServiceUnavailableError) as caught:
        _attempts([later, FULL, later, FULL, painted], retries=1, blocking=blocking)
    assert not caught.value.limited


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}], ids=["not told", "at once"])
def test_a_rate_that_does_not_say_how_long_counts(blocking: bool, headers: dict[str, str], slept: list[float]) -> None:
    with pytest.raises(ServiceUnavailableError):
        _attempts([lambda: refusal(429, **headers)] * 9, retries=3, blocking=blocking)
    assert len(slept) == 3


@pytest.mark.parametrize("blocking", [True, False])
def test_a_rate_is_waited_for_within_the_deadline(blocking: bool) -> None:
    with pytest.raises(ServiceUnavailableError):  # at once
        _generate(lambda _: refusal(429, **{"Retry-After": "60"}), {"deadline_s": 30}, retries=5, blocking=blocking)


def test_the_pause_is_what_the_service_says_or_doubles() -> None:
    told, untold = ServiceUnavailableError("", retry_after=7), ServiceUnavailableError("")

    assert pause(told, attempt=1, retries=1) == 7
    assert [pause(untold, attempt=attempt, retries=9) for attempt in (1, 2, 3)] == [1, 2, 4]
    assert pause(ServiceUnavailableError("", retry_after=9000), attempt=1, retries=1) == LONGEST_PAUSE_S
    assert pause(told, attempt=2, retries=1) is None
    assert pause(DeadlineExceededError(""), attempt=1, retries=1) is None
    assert pause(InvalidRequestError(""), attempt=1, retries=1) is None
