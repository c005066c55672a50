"""Requests of the load benchmark: each ends as an Answer, whatever becomes of it."""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx

from tests.benchmarks.request_cases import Case

OnProgress = Callable[[], None]
PAINTED, REFUSED, CANCELLED, LOST = "200", "503", "cancelled", "lost"
# What the gateway says to those that it does not let in: too many requests, too many rows, too late.
REASONS = ("requests at once", "UNet rows to wait", "UNet rows are at work")


@dataclass(frozen=True)
class Answer:
    """What became of a request."""

    outcome: str  # the status, of a stream that of its error; CANCELLED by ourselves; LOST without an answer
    began: float  # by the clock of time.perf_counter
    seconds: float
    picture: str = ""  # its SHA-256
    message: str = ""  # of what went wrong
    retry_after: int | None = None
    events: tuple[str, ...] = ()  # names of a stream's events

    @property
    def accepted(self) -> bool:
        """Whether the service said that it would paint it, or nothing at all."""
        return self.outcome != REFUSED

    @property
    def refused_by_gateway(self) -> bool:
        """Whether the gateway did not let it in: it names its reason."""
        return self.outcome == REFUSED and any(reason in self.message for reason in REASONS)


@dataclass(frozen=True)
class Wish:
    """A request to make. leaves_after: seconds after which its client goes away."""

    case: Case
    seed: int
    streamed: bool = False
    leaves_after: float | None = None


async def ask(http: httpx.AsyncClient, wish: Wish, on_progress: OnProgress = lambda: None) -> Answer:
    """Make one request. on_progress: is called after every step that a stream tells of."""
    content = json.dumps(_body(wish.case) | {"seed": wish.seed})
    events: list[str] = []
    began = time.perf_counter()
    try:
        async with asyncio.timeout(wish.leaves_after):
            told = await (_streamed(http, content, events, on_progress) if wish.streamed else _plain(http, content))
    except TimeoutError:
        told = {"outcome": CANCELLED}
    except (httpx.HTTPError, ValueError, KeyError) as error:
        told = {"outcome": LOST, "message": f"{type(error).__name__}: {error}"}
    return Answer(began=began, seconds=time.perf_counter() - began, events=tuple(events), **told)


async def ask_all(http: httpx.AsyncClient, wishes: Sequence[Wish], at_once: int) -> list[Answer]:
    """Every request, so many at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(wish: Wish) -> Answer:
        async with places:
            return await ask(http, wish)

    return await asyncio.gather(*map(one, wishes))


def all_painted(answers: Sequence[Answer], what: str) -> list[Answer]:
    """The answers, where every request was painted. Raises SystemExit."""
    bad = [answer for answer in answers if answer.outcome != PAINTED]
    if bad:
        outcomes = dict(Counter(answer.outcome for answer in bad))
        raise SystemExit(f"{what}: {len(bad)} of {len(answers)} requests were not painted: {outcomes}; {bad[0]}")
    return list(answers)


def steady_rate(answers: Sequence[Answer], at_once: int) -> float:
    """Answers a second while so many requests were under way: from the end of the first lot to the last one's start.

    The first ones start together and the last ones have ever fewer beside them; neither is that concurrency.
    Raises ValueError with fewer than three times as many answers.
    """
    if len(answers) < 3 * at_once:
        raise ValueError(f"answers: expected at least {3 * at_once} for {at_once} at once, found {len(answers)}")
    ends = sorted(answer.began + answer.seconds for answer in answers)
    return (len(ends) - 2 * at_once) / (ends[-at_once - 1] - ends[at_once - 1])


def not_right(asked: Sequence[tuple[Wish, Answer]], pictures: Mapping[tuple[Case, int], str]) -> list[Answer]:
    """Answers to requests that were accepted, and not painted as the same request alone; cancelled ones are none."""
    return [
        answer
        for wish, answer in asked
        if answer.accepted
        and answer.outcome != CANCELLED
        and (answer.outcome != PAINTED or answer.picture != pictures[wish.case, wish.seed])
    ]


def waits_needed(asked: Sequence[tuple[Wish, Answer]]) -> list[float]:
    """How long each refused client would have had to wait, about: until the next like it was accepted.

    Those that nobody like them followed are left out.
    """
    ordered = sorted(asked, key=lambda each: each[1].began, reverse=True)
    next_accepted: dict[Case, float] = {}
    needed = []
    for wish, answer in ordered:
        if answer.accepted:
            next_accepted[wish.case] = answer.began
        elif wish.case in next_accepted:
            needed.append(next_accepted[wish.case] - answer.began)
    return needed


@cache
def _body(case: Case) -> dict[str, Any]:
    return case.body()


async def _plain(http: httpx.AsyncClient, content: str) -> dict[str, Any]:
    return _told(await http.post("/multsd", content=content))


async def _streamed(
    http: httpx.AsyncClient, content: str, events: list[str], on_progress: OnProgress
) -> dict[str, Any]:
    async with http.stream("POST", "/multsd/stream", content=content) as reply:
        if reply.status_code != httpx.codes.OK:
            await reply.aread()
            return _told(reply)
        async for name, data in _events(reply):
            events.append(name)
            if name == "progress":
                on_progress()
            if name == "result":
                return _painted(json.loads(data))
            if name == "error":
                error = json.loads(data)
                retry_after = error.get("retry_after")
                return {"outcome": str(error["status"]), "message": error["message"], "retry_after": retry_after}
    return {"outcome": LOST, "message": "the stream ended without a result or an error"}


async def _events(reply: httpx.Response) -> AsyncIterator[tuple[str, str]]:
    name = ""
    async for line in reply.aiter_lines():
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            yield name, value


def _told(reply: httpx.Response) -> dict[str, Any]:
    if reply.status_code == httpx.codes.OK:
        return _painted(reply.json())
    retry_after = reply.headers.get("Retry-After")
    return {
        "outcome": str(reply.status_code),
        "message": reply.json()["message"],
        "retry_after": None if retry_after is None else int(retry_after),
    }


def _painted(reply: Mapping[str, Any]) -> dict[str, Any]:
    return {"outcome": PAINTED, "picture": hashlib.sha256(reply["image"].encode()).hexdigest()}
