"""No request of the load benchmark is lost from its count, whatever becomes of it."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from multsd_gateway import admission
from tests.benchmarks.load_requests import (
    CANCELLED,
    LOST,
    PAINTED,
    REASONS,
    REFUSED,
    Answer,
    Wish,
    all_painted,
    ask,
    ask_all,
    not_right,
    steady_rate,
    waits_needed,
)
from tests.benchmarks.request_cases import Case

SMALL = Case(64, 64, (), steps=1, bootstrapping=0, goal=0)
WIDE = Case(64, 128, (), steps=1, bootstrapping=0, goal=0)
TOO_MANY = "expected at most 96 requests at once, try again later"
PICTURE = hashlib.sha256(b"AAAA").hexdigest()
Handler = Callable[[httpx.Request], httpx.Response]


def answers(handler: Any, *wishes: Wish) -> list[Answer]:
    async def run() -> list[Answer]:
        async with httpx.AsyncClient(base_url="http://service", transport=httpx.MockTransport(handler)) as http:
            return await ask_all(http, wishes, at_once=2)

    return asyncio.run(run())


def events(*texts: str) -> Handler:
    return lambda _: httpx.Response(200, text="".join(texts))


def event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def test_a_picture_is_told_by_its_digest() -> None:
    (answer,) = answers(lambda _: httpx.Response(200, json={"image": "AAAA"}), Wish(SMALL, 0))
    assert (answer.outcome, answer.picture) == (PAINTED, PICTURE)


def test_a_stream_gives_its_picture_and_the_names_of_its_events() -> None:
    handler = events(": heartbeat\n\n", event("progress", {"step": 1}), event("result", {"image": "AAAA"}))
    (answer,) = answers(handler, Wish(SMALL, 0, streamed=True))
    assert (answer.outcome, answer.picture, answer.events) == (PAINTED, PICTURE, ("progress", "result"))


def test_steps_that_a_stream_tells_of_are_passed_on() -> None:
    told: list[None] = []

    async def run() -> None:
        transport = httpx.MockTransport(events(event("progress", {"step": 1}), event("result", {"image": "AAAA"})))
        async with httpx.AsyncClient(base_url="http://service", transport=transport) as http:
            await ask(http, Wish(SMALL, 0, streamed=True), on_progress=lambda: told.append(None))

    asyncio.run(run())
    assert len(told) == 1


def test_a_refusal_is_told_with_its_time_whether_streamed_or_not() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(503, json={"message": "too many"}, headers={"Retry-After": "7"})

    for answer in answers(refuse, Wish(SMALL, 0), Wish(SMALL, 0, streamed=True)):
        assert (answer.outcome, answer.message, answer.retry_after) == (REFUSED, "too many", 7)


def test_a_stream_that_fails_late_has_the_status_of_its_error() -> None:
    handler = events(event("error", {"status": 503, "message": "too many", "retry_after": 7}))
    (answer,) = answers(handler, Wish(SMALL, 0, streamed=True))
    assert (answer.outcome, answer.message, answer.retry_after) == (REFUSED, "too many", 7)


def drop(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset")


LOSSES: dict[str, tuple[Handler, bool]] = {
    "dropped": (drop, False),
    "no JSON": (lambda _: httpx.Response(200, text="<html>"), False),
    "no picture": (lambda _: httpx.Response(200, json={}), False),
    "refused without JSON": (lambda _: httpx.Response(502, text="bad gateway"), False),
    "stream cut off": (events(event("progress", {"step": 1})), True),
    "stream of bad JSON": (events("event: result\ndata: {\n\n"), True),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_request_without_a_proper_answer_is_counted_as_lost(loss: str) -> None:
    handler, streamed = LOSSES[loss]
    found = answers(handler, *[Wish(SMALL, seed, streamed=streamed) for seed in range(3)])
    assert [answer.outcome for answer in found] == [LOST] * 3
    assert all(answer.message for answer in found)


def test_a_client_that_leaves_is_told_apart_from_a_lost_request() -> None:
    async def silent(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    class Stalled(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield event("progress", {"step": 1}).encode()
            await asyncio.Event().wait()

    async def stalled(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Stalled())

    (plain,) = answers(silent, Wish(SMALL, 0, leaves_after=0.02))
    (streamed,) = answers(stalled, Wish(SMALL, 0, streamed=True, leaves_after=0.2))
    assert (plain.outcome, streamed.outcome, streamed.events) == (CANCELLED, CANCELLED, ("progress",))


def test_one_that_was_not_painted_ends_the_bench_and_says_so() -> None:
    painted, failed = Answer(PAINTED, 0, 1), Answer("500", 0, 1, message="a network failed")
    assert all_painted([painted], "warm-up") == [painted]
    with pytest.raises(SystemExit, match=r"warm-up: 1 of 2 requests were not painted: {'500': 1}.*a network failed"):
        all_painted([painted, failed], "warm-up")


def test_whatever_was_accepted_has_to_finish_right() -> None:
    pictures = {(SMALL, 0): "right"}
    right = Answer(PAINTED, 0, 1, picture="right")
    wrong = [Answer(PAINTED, 0, 1, picture="other"), Answer(LOST, 0, 1), Answer("504", 0, 1), Answer("500", 0, 1)]
    others = [Answer(REFUSED, 0, 1), Answer(CANCELLED, 0, 1)]
    asked = [(Wish(SMALL, 0), answer) for answer in (right, *wrong, *others)]
    assert not_right(asked, pictures) == wrong


def test_a_refusal_of_the_gateway_names_its_reason() -> None:
    assert Answer(REFUSED, 0, 1, message=TOO_MANY).refused_by_gateway
    assert not Answer(
        REFUSED, 0, 1, message="8 requests are running and 32 waiting; try again in 3 s"
    ).refused_by_gateway
    assert not Answer("500", 0, 1, message=TOO_MANY).refused_by_gateway


def test_the_reasons_are_those_of_the_gateway() -> None:
    source = Path(admission.__file__).read_text()
    assert all(reason in source for reason in REASONS)


def test_a_refused_client_would_have_waited_until_the_next_like_it_was_accepted() -> None:
    asked = [
        (Wish(SMALL, 0), Answer(REFUSED, began=1, seconds=0, message=TOO_MANY)),
        (Wish(WIDE, 0), Answer(REFUSED, began=2, seconds=0, message=TOO_MANY)),
        (Wish(SMALL, 0), Answer(REFUSED, began=3, seconds=0, message=TOO_MANY)),
        (Wish(SMALL, 0), Answer(PAINTED, began=6, seconds=1)),
        (Wish(SMALL, 0), Answer(REFUSED, began=7, seconds=0, message=TOO_MANY)),
    ]
    assert sorted(waits_needed(asked)) == [3, 5]


def test_the_rate_of_a_concurrency_is_taken_while_that_many_are_under_way() -> None:
    # Two at once, a second each, but the first two and the last two, which begin and end more slowly.
    begins = [0.0, 0.0, *(3.0 + k for k in range(5) for _ in range(2)), 8.0, 8.0]
    seconds = [3.0, 3.0, *[1.0] * 10, 9.0, 9.0]
    found = [Answer(PAINTED, began, each) for began, each in zip(begins, seconds, strict=True)]
    assert steady_rate(found, 2) == pytest.approx(2.0)


def test_a_rate_wants_enough_answers() -> None:
    with pytest.raises(ValueError, match="at least 6 for 2 at once, found 5"):
        steady_rate([Answer(PAINTED, 0.0, 1.0)] * 5, 2)
