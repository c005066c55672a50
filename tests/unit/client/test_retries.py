"""A request is tried again only where nothing was answered, and when the service says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest

from multsd_client import AsyncClient, Client, MultsdError, ServiceUnavailableError
from multsd_client.errors import DeadlineExceededError, InvalidRequestError
from multsd_client.retries import LONGEST_PAUSE_S, pause
from tests.unit.client.fakes import STEPS, events, painted, refusal, service

Outcome = Callable[[], httpx.Response]


def _raise(error: Exception) -> httpx.Response:
    raise error


def _attempts(outcomes: list[Outcome], *, retries: int, blocking: bool) -> int:
    """How many requests were sent before the last outcome; the error of the last is raised."""
    left = list(outcomes)

    def reply(_request: httpx.Request) -> httpx.Response:
        return left.pop(0)()

    async def awaited() -> None:
        async with AsyncClient("http://service", retries=retries, transport=service(reply)) as client:
            await client.generate({})

    if blocking:
        with Client("http://service", retries=retries, transport=service(reply)) as client:
            client.generate({})
    else:
        asyncio.run(awaited())
    return len(outcomes) - len(left)


FULL: Outcome = lambda: refusal(503, **{"Retry-After": "0"})  # noqa: E731
LIMITED: Outcome = lambda: refusal(429, **{"Retry-After": "0"})  # noqa: E731


@pytest.mark.parametrize("blocking", [True, False])
def test_a_full_service_is_asked_again_until_it_paints(blocking: bool) -> None:
    assert _attempts([FULL, LIMITED, painted], retries=2, blocking=blocking) == 3


@pytest.mark.parametrize("blocking", [True, False])
def test_after_the_last_retry_the_error_is_raised(blocking: bool) -> None:
    with pytest.raises(ServiceUnavailableError):
        _attempts([FULL, FULL, painted], retries=1, blocking=blocking)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(
    "outcome",
    [
        lambda: events(*STEPS, ("error", {"status": 503, "message": "away", "retry_after": 0})),
        lambda: refusal(400),
        lambda: refusal(500),
        lambda: refusal(504),
        lambda: _raise(httpx.ReadTimeout("slow")),
    ],
    ids=["an error after progress", "a refusal", "a failure", "a deadline", "a timeout"],
)
def test_what_was_answered_or_refused_is_not_asked_again(outcome: Outcome, blocking: bool) -> None:
    with pytest.raises(MultsdError):
        _attempts([outcome, painted], retries=5, blocking=blocking)


def test_a_connection_that_breaks_within_an_answer_is_not_tried_again() -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> httpx.Response:  # type: ignore[override]
            raise httpx.ReadError("cut")

    with pytest.raises(ServiceUnavailableError) as caught:
        _attempts([lambda: httpx.Response(200, stream=Broken()), painted], retries=5, blocking=True)
    assert caught.value.answered


def test_the_pause_is_what_the_service_says_or_doubles() -> None:
    told, untold = ServiceUnavailableError("", retry_after=7), ServiceUnavailableError("")

    assert pause(told, attempt=1, retries=1) == 7
    assert [pause(untold, attempt=attempt, retries=9) for attempt in (1, 2, 3)] == [1, 2, 4]
    assert pause(ServiceUnavailableError("", retry_after=9000), attempt=1, retries=1) == LONGEST_PAUSE_S
    assert pause(told, attempt=2, retries=1) is None
    assert pause(DeadlineExceededError(""), attempt=1, retries=1) is None
    assert pause(InvalidRequestError(""), attempt=1, retries=1) is None
