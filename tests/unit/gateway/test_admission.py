"""Which requests are accepted, which wait and where, and when the others are told to come again."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any

import pytest

from multsd_gateway.admission import ASIDE, LOOK_SECONDS, Admission, forecast
from multsd_gateway.cost import Tritons
from multsd_gateway.errors import DeadlineExceededError, ModelUnavailableError, OverloadedError
from tests.jumping import JumpingLoop

PACE = 0.017  # seconds a row, of the demo's checkpoint on two cores
LIMIT = 300.0
LARGE, SMALL = 12_000, 400


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Service:
    """An admission with requests whose pictures are done when the test says so."""

    def __init__(
        self,
        *,
        running: int = 64,
        waiting: int = 32,
        waiting_rows: int = 8000,
        tritons: int = 1,
        capacity: int = 40,
    ) -> None:
        """capacity: requests that each Triton paints or lets wait."""
        self.clock = Clock()
        self.admission = Admission(
            running=running,
            waiting=waiting,
            waiting_rows=waiting_rows,
            tritons=lambda: Tritons(tritons, 8 * tritons, capacity * tritons),
            clock=self.clock,
        )

    async def know(self, pace: float = PACE) -> None:
        """Paint a picture at this pace."""
        async with self.admission.slot(1000, LIMIT):
            self.clock.now += pace * (1000 + ASIDE)

    async def take(
        self, stack: AsyncExitStack, rows: int, seconds: float = LIMIT, owner: str | None = None
    ) -> int | bool | None:
        """True where it is accepted, else its Retry-After."""
        try:
            await stack.enter_async_context(self.admission.slot(rows, seconds, owner=owner))
        except OverloadedError as error:
            return error.retry_after
        return True


def _run(scenario: Callable[[AsyncExitStack], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(10), AsyncExitStack() as stack:
            return await scenario(stack)

    return asyncio.run(run())


def test_who_waits_hears_of_its_place_and_is_served_in_order() -> None:
    async def scenario(_: AsyncExitStack) -> tuple[list[str], dict[str, list[int]]]:
        admission = Admission(running=1, waiting=9, waiting_rows=8000)
        ended: list[str] = []
        heard: dict[str, list[int]] = {name: [] for name in "abcd"}

        async def request(name: str, until: asyncio.Event) -> None:
            async def on_place(place: int) -> None:
                heard[name].append(place)

            async with admission.slot(1, 60, on_place):
                await until.wait()
                ended.append(name)

        gates = {name: asyncio.Event() for name in "abcd"}
        tasks = {}
        for name, gate in gates.items():
            tasks[name] = asyncio.create_task(request(name, gate))
            await asyncio.sleep(0)
        tasks["c"].cancel()  # one that waits goes away
        await asyncio.gather(tasks["c"], return_exceptions=True)
        for name in "abd":
            gates[name].set()
            await tasks[name]
        return ended, heard

    ended, heard = _run(scenario)

    assert ended == ["a", "b", "d"]
    assert heard == {"a": [], "b": [0], "c": [1], "d": [2, 1, 0]}


def test_a_place_counts_those_that_wait_in_triton_too() -> None:
    async def scenario(stack: AsyncExitStack) -> int:
        service, told = Service(running=10), asyncio.get_running_loop().create_future()
        for _ in range(10):  # eight of them are painted
            assert await service.take(stack, 1) is True

        async def on_place(place: int) -> None:
            told.set_result(place)

        async def wait() -> None:
            async with service.admission.slot(1, 60, on_place):
                raise AssertionError

        waiting = asyncio.create_task(wait())
        place = await told
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return int(place)

    assert _run(scenario) == 2


def test_of_many_large_requests_only_those_are_accepted_that_are_done_in_time() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service = Service()
        await service.know()
        return [await service.take(stack, LARGE) for _ in range(40)]

    first, *others = _run(scenario)

    assert first is True
    again = round(2 * PACE * (LARGE + ASIDE) - LIMIT + 0.5)
    assert others == [again] * 39, "once so much is done, the first stays in time beside another"


def test_before_the_pace_is_known_twice_the_rows_that_may_wait_count_as_what_is_done_in_time() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service = Service()
        return [await service.take(stack, rows) for rows in (LARGE, LARGE, SMALL, 4000, LARGE)]

    assert _run(scenario) == [True, None, True, None, None]


@pytest.mark.parametrize("known", [True, False])
def test_alone_a_request_may_cost_anything(known: bool) -> None:
    async def scenario(stack: AsyncExitStack) -> Any:
        service = Service()
        if known:
            await service.know()
        return await service.take(stack, 10 * LARGE)

    assert _run(scenario) is True


def test_one_that_is_too_large_for_its_time_is_tried_once_nobody_else_is_there() -> None:
    async def scenario(stack: AsyncExitStack) -> Any:
        service = Service()
        await service.know()
        assert await service.take(stack, SMALL) is True
        return await service.take(stack, 10 * LARGE)

    assert _run(scenario) == round(PACE * (SMALL + ASIDE) + 0.5)


def test_small_requests_are_painted_beside_a_large_one_until_it_would_be_late() -> None:
    async def scenario(stack: AsyncExitStack) -> tuple[int, Any]:
        service, accepted = Service(), 0
        await service.know()
        assert await service.take(stack, LARGE) is True
        while (answer := await service.take(stack, SMALL)) is True:
            accepted += 1
        return accepted, answer

    accepted, retry_after = _run(scenario)

    spare = LIMIT - PACE * (LARGE + ASIDE)
    assert accepted == int(spare / (PACE * (SMALL + ASIDE)))
    end = PACE * (LARGE + ASIDE + accepted * (SMALL + ASIDE))
    assert retry_after == round(end - (LIMIT - end) + 0.5), "when no more is left of the large one than it has to spare"


@pytest.mark.parametrize("large", [[17_000], [8_500, 8_500]], ids=["one", "two of half"])
def test_no_owner_keeps_the_others_out_with_requests_that_only_just_fit(large: list[int]) -> None:
    """17 000 rows take 290 of 300 s."""

    async def scenario(stack: AsyncExitStack) -> None:
        service = Service(waiting_rows=40_000)
        await service.know()
        for rows in large:
            assert await service.take(stack, rows, owner="greedy") is True
        assert await service.take(stack, 2000, owner="greedy") is not True, "its own it does not make late"
        for _ in range(3):
            assert await service.take(stack, SMALL, owner="other") is True

    _run(scenario)


def test_what_an_owner_may_count_on_no_other_takes() -> None:
    async def scenario(stack: AsyncExitStack) -> None:
        service = Service(waiting_rows=40_000)
        await service.know()
        assert await service.take(stack, 8_000, owner="modest") is True  # 137 s of 300
        assert await service.take(stack, 8_000, owner="other") is True  # together both are done after 273 s
        assert await service.take(stack, SMALL, seconds=3600, owner="third") is True
        assert await service.take(stack, 8_000, seconds=3600, owner="third") is not True

    _run(scenario)


def test_a_request_has_the_time_that_it_gives_itself() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service = Service()
        await service.know()
        assert await service.take(stack, SMALL) is True
        return [await service.take(stack, SMALL, seconds) for seconds in (10, 15)]

    assert _run(scenario) == [5, True]  # side by side they take 14.7 s


def test_retry_after_shrinks_as_the_work_gets_done() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service, told = Service(), []
        await service.know()
        assert await service.take(stack, LARGE) is True
        for _ in range(3):
            told.append(await service.take(stack, LARGE))
            service.clock.now += 60
        return told

    assert _run(scenario) == [110, 50, True]


def test_rows_that_wait_are_bounded_and_who_is_refused_may_come_once_enough_have_begun() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service = Service(waiting_rows=1000)
        await service.know(pace=0.01)
        for _ in range(8):
            assert await service.take(stack, 68) is True  # 1 s each: all are done after 8 s
        return [await service.take(stack, rows) for rows in (2000, 1)]  # anything where no other waits

    assert _run(scenario) == [True, 8]


def test_who_is_refused_for_its_rows_need_not_wait_until_all_others_have_begun() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service = Service(waiting_rows=1000)
        await service.know(pace=0.01)
        for rows in (68, 168, *[968] * 6):  # those of 1 s and of 2 s are done after 8 and 16 s
            assert await service.take(stack, rows) is True
        return [await service.take(stack, rows) for rows in (500, 500, 400, 600)]

    assert _run(scenario) == [True, True, 8, 16]


def test_each_triton_lets_as_much_wait_and_works_at_the_same_time() -> None:
    async def scenario(stack: AsyncExitStack) -> list[Any]:
        service = Service(tritons=2)
        await service.know()
        return [await service.take(stack, LARGE) for _ in range(3)]

    first, second, third = _run(scenario)

    assert first is second is True
    assert third == round(3 * PACE * (LARGE + ASIDE) - 2 * LIMIT + 0.5)


def test_past_the_bound_of_requests_retry_after_is_when_the_first_is_done() -> None:
    async def scenario(stack: AsyncExitStack) -> int | None:
        service = Service(running=2, waiting=1)
        await service.know()
        with ExitStack() as present:
            for rows in (SMALL, LARGE):
                present.enter_context(service.admission.enter())
                assert await service.take(stack, rows) is True
            present.enter_context(service.admission.enter())
            with pytest.raises(OverloadedError) as refused, service.admission.enter():
                pass
        return refused.value.retry_after

    assert _run(scenario) == round(2 * PACE * (SMALL + ASIDE) + 0.5)


def test_admission_counts_those_at_work_and_those_that_wait() -> None:
    admission = Admission(running=1, waiting=1, waiting_rows=1)

    with admission.enter(), admission.enter(), pytest.raises(OverloadedError), admission.enter():
        pass
    with admission.enter():
        pass


@pytest.mark.parametrize(("running", "capacity", "working"), [(64, 40, 40), (30, 40, 30), (64, 12, 12)])
def test_no_more_work_than_the_tritons_take_and_the_next_begins_when_one_is_done(
    running: int, capacity: int, working: int
) -> None:
    async def scenario(stack: AsyncExitStack) -> None:
        service = Service(running=running, waiting=96 - running, capacity=capacity)
        first = await stack.enter_async_context(AsyncExitStack())
        assert await service.take(first, 1) is True
        for _ in range(working - 1):
            assert await service.take(stack, 1) is True
        next_one = asyncio.create_task(service.take(stack, 1))
        await asyncio.sleep(0.01)
        assert not next_one.done()
        await first.aclose()
        assert await next_one is True

    _run(scenario)


def test_those_that_wait_begin_when_a_triton_is_back_though_nobody_ends() -> None:
    async def scenario() -> None:
        ready = 1
        admission = Admission(running=9, waiting=9, waiting_rows=8000, tritons=lambda: Tritons(ready, ready, ready))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.slot(1, 60))
            second = asyncio.create_task(stack.enter_async_context(admission.slot(1, 60)))
            await asyncio.sleep(3 * LOOK_SECONDS)
            assert not second.done()
            ready = 2
            await asyncio.sleep(2 * LOOK_SECONDS)
            assert second.done()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario())


def test_once_another_triton_is_back_as_many_begin_as_it_takes() -> None:
    async def scenario(_: AsyncExitStack) -> list[bool]:
        ready = Tritons(1, 1, 1)
        admission = Admission(running=64, waiting=32, waiting_rows=8000, tritons=lambda: ready)
        stay = asyncio.Event()

        async def request(until: asyncio.Event) -> None:
            async with admission.slot(1, 60):
                working.append(True)
                await until.wait()

        working: list[bool] = []
        gates = [asyncio.Event(), *[stay] * 4]
        tasks = [asyncio.create_task(request(gate)) for gate in gates]
        await asyncio.sleep(0.01)
        assert len(working) == 1
        ready = Tritons(3, 3, 3)
        gates[0].set()
        await asyncio.sleep(0.01)
        begun = list(working)
        stay.set()
        await asyncio.gather(*tasks)
        return begun

    assert len(_run(scenario)) == 1 + 3


def _after(ended: type[BaseException] | None, seconds: float, *, pace: float | None, times: int = 1) -> Any:
    """Retry-After beside one of 400 rows, after others of 400 ended like this after so many seconds each."""

    async def scenario(stack: AsyncExitStack) -> Any:
        service = Service()
        if pace is not None:
            await service.know(pace)
        for _ in range(times):
            with suppress(asyncio.CancelledError, DeadlineExceededError, ModelUnavailableError):
                async with service.admission.slot(SMALL, LIMIT):
                    service.clock.now += seconds
                    if ended is not None:
                        raise ended
        assert await service.take(stack, SMALL) is True
        return await service.take(stack, SMALL, 0.1)

    return _run(scenario)


@pytest.mark.parametrize("ended", [None, asyncio.CancelledError, DeadlineExceededError])
def test_the_pace_is_learnt_however_a_picture_ends(ended: type[BaseException] | None) -> None:
    assert _after(ended, LIMIT, pace=None) == LIMIT  # the one before takes as long
    assert _after(ended, 150, pace=PACE, times=2) == 150


@pytest.mark.parametrize("ended", [asyncio.CancelledError, DeadlineExceededError])
@pytest.mark.parametrize("seconds", [0, 0.1, LIMIT - 1])
def test_who_ends_before_its_time_is_over_sets_no_pace(ended: type[BaseException], seconds: float) -> None:
    assert _after(ended, seconds, pace=None) is True, "nothing is known yet"


def test_the_pace_is_learnt_when_the_gateways_own_limit_ends_the_first_picture() -> None:
    async def scenario(stack: AsyncExitStack) -> Any:
        admission = Admission(running=64, waiting=32, waiting_rows=8000)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3), admission.slot(SMALL, 0.3):
                await asyncio.sleep(3600)
        await stack.enter_async_context(admission.slot(SMALL, LIMIT))
        with pytest.raises(OverloadedError) as refused:
            await stack.enter_async_context(admission.slot(SMALL, 0.1))
        return refused.value.retry_after

    assert _run(scenario) == 1


def test_one_slow_picture_alone_does_not_change_what_is_known() -> None:
    assert _after(None, 150, pace=PACE) == 8


def test_a_request_that_gave_up_early_does_not_make_the_pace_look_better() -> None:
    assert _after(asyncio.CancelledError, 0.1, pace=PACE) == _after(ModelUnavailableError, 0.1, pace=PACE) == 8


def test_a_triton_that_was_away_tells_nothing_of_the_pace() -> None:
    assert _after(ModelUnavailableError, 150, pace=PACE) == 8
    assert _after(ModelUnavailableError, 150, pace=None) is True, "nothing is known yet"


@pytest.mark.parametrize(
    ("work", "tritons", "starts", "ends"),
    [
        ([], Tritons(1, 8, 40), [], []),
        ([3, 1], Tritons(1, 1, 40), [0, 3], [3, 4]),
        ([3, 1], Tritons(1, 2, 40), [0, 0], [4, 2]),
        ([3, 1], Tritons(2, 2, 40), [0, 0], [3, 1]),
        ([3, 1, 1], Tritons(1, 2, 40), [0, 0, 2], [5, 2, 4]),
        ([0, 2, 0], Tritons(1, 1, 40), [0, 0, 2], [0, 2, 2]),
    ],
)
def test_a_forecast_shares_tritons_evenly_and_lets_the_next_begin(
    work: list[float], tritons: Tritons, starts: list[float], ends: list[float]
) -> None:
    assert forecast(work, tritons) == (starts, ends, [0] * len(work))


def test_a_forecast_tells_what_is_left_after_a_while() -> None:
    inf = math.inf
    assert forecast([3, 1, 1], Tritons(1, 2, 40), until=1) == ([0, 0, inf], [inf, inf, inf], [2.5, 0.5, 1])
    assert forecast([3, 1, 1], Tritons(1, 2, 40), until=3) == ([0, 0, 2], [inf, 2, inf], [1.5, 0, 0.5])
