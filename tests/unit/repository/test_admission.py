import asyncio

import pytest

from admission import Admission, Pace
from errors import DeadlineError, OverloadedError


class Visitors:
    """Requests that stay inside until they are let go, in the order in which they came."""

    def __init__(self, *, running: int, waiting: int, waiting_rows: int = 100) -> None:
        self.admission = make_admission(running=running, waiting=waiting, waiting_rows=waiting_rows)
        self.inside: list[str] = []
        self.positions: list[tuple[str, int]] = []
        self._leave: dict[str, asyncio.Event] = {}

    async def _visit(self, name: str, rows: int, seconds: float | None) -> None:
        def on_position(position: int) -> None:
            self.positions.append((name, position))

        async with self.admission.place(rows, on_position, seconds):
            self.inside.append(name)
            await self._leave[name].wait()
            self.inside.remove(name)

    async def come(self, name: str, rows: int = 1, seconds: float | None = None) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        visit = asyncio.create_task(self._visit(name, rows, seconds))
        await settle()
        return visit

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()


def make_admission(*, running: int, waiting: int, waiting_rows: int = 100) -> Admission:
    return Admission(running=running, waiting=waiting, waiting_rows=waiting_rows, pace=Pace())


def unheard(_position: int) -> None:
    """Nobody asked."""


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
        with pytest.raises(OverloadedError, match=r"^1 requests are running and 1 waiting; try again in 1 s"):
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
        admission = make_admission(running=1, waiting=0)
        with pytest.raises(ValueError, match="broken"):
            async with admission.place(1, unheard):
                raise ValueError("broken")
        async with asyncio.timeout(1), admission.place(1, unheard):
            with pytest.raises(OverloadedError):
                async with admission.place(1, unheard):
                    pass

    asyncio.run(scenario())


def test_those_that_wait_are_told_their_position_whenever_it_changes() -> None:
    async def scenario() -> list[tuple[str, int]]:
        visitors = Visitors(running=1, waiting=3)
        visits = [await visitors.come(name) for name in "abcd"]
        visits[2].cancel()
        await settle()
        await visitors.go("a")
        return visitors.positions

    assert asyncio.run(scenario()) == [("b", 0), ("c", 1), ("d", 2), ("b", 0), ("d", 1), ("d", 0)]


def test_rows_that_wait_are_bounded_but_one_alone_may_be_of_any_size() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=9, waiting_rows=10)
        await visitors.come("a", rows=99)
        wide = await visitors.come("b", rows=50)
        assert not wide.done()
        with pytest.raises(OverloadedError):
            await asyncio.wait_for(await visitors.come("c", rows=1), timeout=1)
        await visitors.go("a")
        assert visitors.admission.waiting_rows == 0
        small = [await visitors.come(name, rows=5) for name in "de"]
        assert not any(each.done() for each in small)
        assert visitors.admission.waiting_rows == 10

    asyncio.run(scenario())


def test_a_refusal_tells_how_long_those_that_wait_will_take() -> None:
    async def scenario() -> None:
        pace = Pace()
        pace.saw(rows=4, seconds=2.0)
        admission = Admission(running=1, waiting=1, waiting_rows=100, pace=pace)
        async with admission.place(1, unheard):
            waiting = asyncio.create_task(stay(admission, rows=30))
            await settle()
            with pytest.raises(OverloadedError, match="try again in 15 s"):
                async with admission.place(1, unheard):
                    pass
        await waiting

    async def stay(admission: Admission, rows: int) -> None:
        async with admission.place(rows, unheard):
            pass

    asyncio.run(scenario())


def test_a_wait_ends_when_its_time_is_over() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=2)
        await visitors.come("a")
        late = await visitors.come("b", rows=7, seconds=0.01)
        with pytest.raises(DeadlineError, match=r"deadline_s: still waiting after 0.01 s"):
            await late
        assert visitors.admission.waiting == visitors.admission.waiting_rows == 0

    asyncio.run(scenario())


def test_a_place_given_to_one_that_gives_up_at_that_moment_is_not_lost() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=2)
        first, waiter = [await visitors.come(name) for name in "ab"]
        visitors._leave["a"].set()
        while visitors.admission.waiting:  # noqa: ASYNC110 - it has to stop between two turns of the loop
            await asyncio.sleep(0)
        assert visitors.inside == []  # "a" has left and "b" has been let in, but does not know yet
        waiter.cancel()
        await settle()
        await asyncio.gather(first, waiter, return_exceptions=True)
        await visitors.come("c")
        assert visitors.inside == ["c"]
        assert visitors.admission.running == 1

    asyncio.run(scenario())


def test_every_change_is_told() -> None:
    async def scenario() -> list[tuple[int, int, int]]:
        seen: list[tuple[int, int, int]] = []
        admission = Admission(
            running=1,
            waiting=1,
            waiting_rows=100,
            pace=Pace(),
            on_change=lambda: seen.append((admission.running, admission.waiting, admission.waiting_rows)),
        )

        async def visit(rows: int) -> None:
            async with admission.place(rows, unheard):
                await asyncio.sleep(0)

        await asyncio.gather(visit(3), visit(4))
        return seen

    seen = asyncio.run(scenario())
    assert (1, 0, 0) in seen
    assert (1, 1, 4) in seen
    assert seen[-1] == (0, 0, 0)


def test_the_pace_follows_what_is_seen() -> None:
    pace = Pace()
    assert pace.seconds(100) == 0
    for _ in range(200):
        pace.saw(rows=10, seconds=1.0)
    assert pace.seconds(100) == pytest.approx(10, rel=0.01)


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
