import asyncio

import pytest

from admission import Admission
from errors import OverloadedError


class Visitors:
    """Requests that stay inside until they are let go, in the order in which they came."""

    def __init__(self, *, running: int, waiting: int) -> None:
        self._admission = Admission(running=running, waiting=waiting)
        self.inside: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}

    async def _visit(self, name: str) -> None:
        async with self._admission:
            self.inside.append(name)
            await self._leave[name].wait()
            self.inside.remove(name)

    async def come(self, name: str) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        visit = asyncio.create_task(self._visit(name))
        await settle()
        return visit

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_as_many_run_as_may_and_the_others_wait_their_turn() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=2, waiting=2)
        visits = [await visitors.come(name) for name in "abcd"]
        assert visitors.inside == ["a", "b"]
        await visitors.go("b")
        assert visitors.inside == ["a", "c"]
        for name in "acd":
            await visitors.go(name)
        await asyncio.gather(*visits)

    asyncio.run(scenario())


def test_one_beyond_is_refused_at_once() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=1)
        visits = [await visitors.come(name) for name in "ab"]
        with pytest.raises(OverloadedError, match=r"^2 requests are running or waiting"):
            await asyncio.wait_for(await visitors.come("c"), timeout=1)
        for name in "ab":
            await visitors.go(name)
        await asyncio.gather(*visits)

    asyncio.run(scenario())


def test_cancelled_waiter_leaves_its_place() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=1)
        first, waiter = [await visitors.come(name) for name in "ab"]
        waiter.cancel()
        await settle()
        assert waiter.cancelled()
        successor = await visitors.come("c")
        await visitors.go("a")
        assert visitors.inside == ["c"]
        await visitors.go("c")
        await asyncio.gather(first, successor)

    asyncio.run(scenario())


def test_failed_request_gives_its_place_back() -> None:
    async def scenario() -> None:
        admission = Admission(running=1, waiting=0)
        with pytest.raises(ValueError, match="broken"):
            async with admission:
                raise ValueError("broken")
        async with asyncio.timeout(1), admission:
            with pytest.raises(OverloadedError):
                async with admission:
                    pass

    asyncio.run(scenario())


def test_everyone_can_come_again_after_all_have_left() -> None:
    async def scenario() -> list[str]:
        visitors = Visitors(running=1, waiting=1)
        for name in "abc":
            visit = await visitors.come(name)
            await visitors.go(name)
            await visit
        await visitors.come("d")
        return visitors.inside

    assert asyncio.run(scenario()) == ["d"]
