"""Who is painted, who waits and for how long, and who is refused; and how fast the UNet is taken to be."""

import asyncio
from collections.abc import Callable

import pytest

from admission import FASTER, FASTER_SECONDS, MANY_CALLS, RECENT, Admission, Look, OnPosition, Pace, rows_until
from errors import CancelledRequestError, OverloadedError

PLACES = 16
LOOK_EVERY = 0.001  # seconds


class Visitors:
    """Requests that stay inside until they are let go, in the order in which they came."""

    def __init__(self, *, running: int, waiting: int, waiting_rows: int = 100) -> None:
        self.admission = make_admission(running=running, waiting=waiting, waiting_rows=waiting_rows)
        self.inside: list[str] = []
        self.positions: list[tuple[str, int]] = []
        self._leave: dict[str, asyncio.Event] = {}

    async def _visit(self, name: str, rows: int, on_position: OnPosition, look: Look) -> None:
        async with self.admission.place(rows, on_position, look):
            self.inside.append(name)
            await self._leave[name].wait()
            self.inside.remove(name)

    async def come(
        self, name: str, rows: int = 1, on_position: OnPosition | None = None, look: Look = lambda: None
    ) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        visit = asyncio.create_task(self._visit(name, rows, on_position or self._remember(name), look))
        await settle()
        return visit

    def _remember(self, name: str) -> OnPosition:
        return lambda position: self.positions.append((name, position))

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()


def make_admission(
    *,
    running: int,
    waiting: int,
    waiting_rows: int = 100,
    pace: Pace | None = None,
    on_change: Callable[[], None] = lambda: None,
) -> Admission:
    return Admission(
        running=running,
        waiting=waiting,
        waiting_rows=waiting_rows,
        pace=pace or Pace(places=PLACES),
        look_every=LOOK_EVERY,
        on_change=on_change,
    )


def unheard(_position: int) -> None:
    """Nobody asked."""


def wanted() -> None:
    """The client is still there."""


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
            async with admission.place(1, unheard, wanted):
                raise ValueError("broken")
        async with asyncio.timeout(1), admission.place(1, unheard, wanted):
            with pytest.raises(OverloadedError):
                async with admission.place(1, unheard, wanted):
                    pass

    asyncio.run(scenario())


def test_those_that_wait_are_told_their_position_when_it_changes_and_not_again() -> None:
    async def scenario() -> list[tuple[str, int]]:
        visitors = Visitors(running=1, waiting=3)
        visits = [await visitors.come(name) for name in "abcd"]
        visits[2].cancel()
        await settle()
        await visitors.go("a")
        return visitors.positions

    assert asyncio.run(scenario()) == [("b", 0), ("c", 1), ("d", 2), ("d", 1), ("d", 0)]


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


def refused(*, running: list[int], waiting: list[int], rows: int, may_wait: int, may_wait_rows: int) -> str:
    """What a request is told beside others of so many rows each, where a row takes a second."""

    async def scenario() -> str:
        pace = Pace(places=PLACES)
        pace.saw(rows=1, seconds=1.0)
        admission = make_admission(running=len(running), waiting=may_wait, waiting_rows=may_wait_rows, pace=pace)

        async def visit(cost: int) -> None:
            async with admission.place(cost, unheard, wanted):
                await asyncio.Event().wait()

        visits = [asyncio.create_task(visit(cost)) for cost in (*running, *waiting)]
        await settle()
        with pytest.raises(OverloadedError) as caught:
            async with admission.place(rows, unheard, wanted):
                pass
        for each in visits:
            each.cancel()
        await asyncio.gather(*visits, return_exceptions=True)
        return str(caught.value).partition("try again in ")[2]

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("running", "waiting", "rows", "may_wait", "may_wait_rows", "told"),
    [
        ([30], [], 5, 0, 100, "30 s"),  # nobody may wait: it needs the place itself
        ([30], [9], 5, 1, 100, "30 s"),  # when the first ends, the next leaves the queue
        ([30], [50], 60, 9, 100, "30 s"),  # the queue is short, but full by its rows
        ([30], [10, 20, 50], 60, 9, 100, "60 s"),  # three of them have to be let in: 30, 10 and 20 rows are done
        ([30, 30], [9], 5, 1, 100, "60 s"),  # equal ones end together
        ([2, 30], [9], 5, 1, 100, "4 s"),  # a small one beside a large one has half of the calls
        ([12_000] * 8, [30] * 32, 30, 32, 8000, "96000 s"),
        ([0], [9], 5, 1, 100, "1 s"),  # it is being decoded
    ],
)
def test_a_refusal_tells_how_long_it_takes_until_there_is_room(
    running: list[int], waiting: list[int], rows: int, may_wait: int, may_wait_rows: int, told: str
) -> None:
    assert told == refused(running=running, waiting=waiting, rows=rows, may_wait=may_wait, may_wait_rows=may_wait_rows)


def test_what_those_that_run_have_done_shortens_the_time_that_a_refusal_tells() -> None:
    async def scenario() -> None:
        pace = Pace(places=PLACES)
        pace.saw(rows=1, seconds=1.0)
        admission = make_admission(running=1, waiting=0, pace=pace)
        async with admission.place(100, unheard, wanted) as place:
            place.rows_left = 7
            with pytest.raises(OverloadedError, match="try again in 7 s"):
                async with admission.place(1, unheard, wanted):
                    pass

    asyncio.run(scenario())


def test_an_end_of_all_waiting_ends_none_that_run_and_none_that_come_later() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=3)
        first, *waiting = [await visitors.come(name) for name in "abc"]
        visitors.admission.end_waiting(RuntimeError("no answer"))
        later = await visitors.come("d")
        for each in waiting:
            with pytest.raises(RuntimeError, match="no answer"):
                await each
        assert visitors.inside == ["a"]
        assert visitors.admission.waiting == 1
        await visitors.go("a")
        assert visitors.inside == ["d"]
        await visitors.go("d")
        await asyncio.gather(first, later)

    asyncio.run(scenario())


def test_those_of_the_queue_come_in_as_others_end() -> None:
    assert rows_until([10, 20], [5], ends=1) == 20  # 10 each
    assert rows_until([10, 20], [5], ends=2) == 30  # and 5 each of the second and of the one that came in
    assert rows_until([10, 20], [5], ends=3) == 35
    assert rows_until([10, 20], [5], ends=9) == 35


def test_whoever_leaves_while_it_waits_gives_its_place_up() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=1)
        first = await visitors.come("a")
        gone = asyncio.Event()

        def look() -> None:
            if gone.is_set():
                raise CancelledRequestError("cancelled by the client")

        leaving = await visitors.come("b", rows=7, look=look)
        gone.set()
        with pytest.raises(CancelledRequestError):
            await asyncio.wait_for(leaving, timeout=10)
        assert visitors.admission.waiting == visitors.admission.waiting_rows == 0
        successor = await visitors.come("c")
        for name in "ac":
            await visitors.go(name)
        await asyncio.gather(first, successor)

    asyncio.run(scenario())


def test_one_that_cannot_be_told_its_position_ends_and_no_other() -> None:
    async def scenario() -> None:
        visitors = Visitors(running=1, waiting=3)

        def unreachable(position: int) -> None:
            if position == 0:  # its first is 1
                raise RuntimeError("the stream is gone")

        first, second = [await visitors.come(name) for name in "ab"]
        broken = await visitors.come("c", on_position=unreachable)
        last = await visitors.come("d")
        await visitors.go("a")
        await first
        with pytest.raises(RuntimeError, match="the stream is gone"):
            await broken
        assert visitors.inside == ["b"]
        for name in "bd":
            await visitors.go(name)
        await asyncio.gather(second, last)
        assert visitors.admission.running == visitors.admission.waiting == 0
        assert [position for name, position in visitors.positions if name == "d"] == [2, 1, 0]

    asyncio.run(scenario())


def test_one_that_could_not_be_told_is_told_no_more_and_harms_nobody_who_leaves_then() -> None:
    async def scenario() -> list[int]:
        visitors, told = Visitors(running=2, waiting=3), list[int]()

        def unreachable(position: int) -> None:
            told.append(position)
            if position < 2:
                raise RuntimeError("the stream is gone")

        leaving = [await visitors.come(name) for name in "ab"]
        coming = [await visitors.come(name) for name in "cd"]
        broken = await visitors.come("e", on_position=unreachable)
        visitors._leave["a"].set()
        await visitors.go("b")  # in the same turn of the loop
        await asyncio.gather(*leaving)
        assert visitors.inside == ["c", "d"]
        with pytest.raises(RuntimeError, match="the stream is gone"):
            await broken
        for name in "cd":
            await visitors.go(name)
        await asyncio.gather(*coming)
        return told

    assert asyncio.run(scenario()) == [2, 1]


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
        admission = make_admission(
            running=1,
            waiting=1,
            on_change=lambda: seen.append((admission.running, admission.waiting, admission.waiting_rows)),
        )

        async def visit(rows: int) -> None:
            async with admission.place(rows, unheard, wanted):
                await asyncio.sleep(0)

        await asyncio.gather(visit(3), visit(4))
        return seen

    seen = asyncio.run(scenario())
    assert (1, 0, 0) in seen
    assert (1, 1, 4) in seen
    assert seen[-1] == (0, 0, 0)


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def seen(*calls: tuple[int, float], at_a_time: int = 1, clock: Clock | None = None) -> Pace:
    """The pace after calls of so many rows and seconds."""
    pace = Pace(places=PLACES, calls=at_a_time, clock=clock or Clock())
    for rows, seconds in calls:
        pace.saw(rows, seconds)
    return pace


def test_the_pace_is_the_mean_of_the_last_calls() -> None:
    pace = seen()
    assert pace.seconds(100) == 0
    for _ in range(200):
        pace.saw(10, 1.0)
    assert pace.seconds(100) == pytest.approx(10)
    for _ in range(20):
        pace.saw(10, 0.5)
    assert pace.seconds(100) == pytest.approx(5)


def test_one_call_that_hung_does_not_spoil_the_mean() -> None:
    assert seen((10, 60.0), *[(10, 0.1)] * 9).seconds(100) < 2 * seen(*[(10, 0.1)] * 9).seconds(100)


def test_a_slow_first_call_refuses_nothing() -> None:
    assert seen().least_seconds(1000) == 0
    assert seen((2, 60.0)).least_seconds(1000) == 0
    assert seen((2, 60.0), (2, 0.1)).least_seconds(1000) == 0
    assert seen((2, 60.0), (2, 0.1), (2, 0.1)).least_seconds(16) == pytest.approx(0.1), "the fastest of three"


def test_a_unet_that_was_slow_refuses_nothing_once_it_has_been_idle() -> None:
    clock = Clock()
    pace = seen(*[(16, 60.0)] * 20, clock=clock)
    assert pace.least_seconds(32) == pytest.approx(120)
    clock.now += RECENT + 1
    assert pace.least_seconds(32) == 0


@pytest.mark.parametrize("idle", [RECENT + 1, 60.0, FASTER_SECONDS, 12 * FASTER_SECONDS])
def test_what_takes_far_longer_than_it_ever_did_is_refused_after_an_idle_time_too(idle: float) -> None:
    """Steps of a picture of 2048x2048 pixels, 200 of 1250 rows, where a row takes 16.6 ms: 69 minutes."""
    clock = Clock()
    pace = seen(*[(16, 0.265)] * MANY_CALLS, clock=clock)
    assert pace.least_seconds(250_000) == pytest.approx(4140, rel=0.01)
    clock.now += idle
    assert pace.least_seconds(250_000) > 10
    assert pace.least_seconds(125) < 125 * 0.0166 / FASTER  # no picture that can be painted is refused


def test_a_unet_that_was_slow_whenever_it_was_seen_refuses_nothing_for_ever() -> None:
    clock = Clock()
    pace = seen(*[(16, 60.0)] * 2 * MANY_CALLS, clock=clock)
    clock.now += RECENT + 1
    assert 0 < pace.least_seconds(16) <= 60 / FASTER
    clock.now += 1000 * FASTER_SECONDS
    assert pace.least_seconds(16) < 0.01


def test_what_was_slow_is_forgotten_with_the_first_calls_that_are_not() -> None:
    clock = Clock()
    pace = seen(*[(16, 60.0)] * 2 * MANY_CALLS, *[(16, 0.1)] * 3, clock=clock)
    assert pace.least_seconds(16) == pytest.approx(0.1)
    for _ in range(20):
        pace.saw(16, 0.1)
    clock.now += RECENT + 1
    assert pace.least_seconds(16) == pytest.approx(0.1 / FASTER, rel=0.01)


def test_single_calls_that_were_measured_too_short_do_not_tell_the_fastest() -> None:
    """Where two answers come at the same time the second call seems to have taken none."""
    clock = Clock()
    pace = seen(*[(16, 0.2), (16, 0.0)] * MANY_CALLS, clock=clock)
    clock.now += RECENT + 1
    assert pace.least_seconds(16) == pytest.approx(0.1 / FASTER, rel=0.01)


def test_small_calls_tell_less_than_full_ones_after_an_idle_time_too() -> None:
    """A UNet that takes 10 ms and 1 ms a row."""
    small, full, clock = (2, 0.012), (16, 0.026), Clock()
    paces = [seen(*calls, clock=clock) for calls in ([small] * 200, [small] * 200 + [full] * 50, [full, small] * 200)]
    clock.now += RECENT + 1
    least = [pace.least_seconds(16) for pace in paces]
    assert least == pytest.approx([0.0012, 0.0012, 0.0026], rel=0.01)


def test_small_calls_tell_no_more_than_what_full_ones_cannot_undercut() -> None:
    """A UNet that takes 10 ms and 1 ms a row."""
    small, full = (2, 0.012), (16, 0.026)
    assert seen(*[small] * 9).least_seconds(1600) <= 100 * 0.026
    assert seen(*[small] * 9, *[full] * 9).least_seconds(1600) == pytest.approx(100 * 0.026)
    assert seen(*[small] * 9, (16, 60.0)).least_seconds(1600) <= 100 * 0.026


def test_padded_calls_are_full_and_calls_at_a_time_share_the_rows() -> None:
    assert seen(*[(16, 0.5)] * 9, at_a_time=2).least_seconds(160) == pytest.approx(10 * 0.5 / 2)
    pace = seen()
    for _ in range(9):
        pace.saw(2, 0.5, padded=14)
    pace.saw(2, 0.1)
    assert pace.least_seconds(160) == pytest.approx(10 * 0.5)
    assert pace.seconds(160) > 160 / 2 * 0.4
    clock = Clock()
    pace = Pace(places=PLACES, clock=clock)
    for _ in range(9):
        clock.now += 0.5
        pace.answered(2, sent=clock.now - 0.5, padded=14)
    clock.now += 0.1
    pace.answered(2, sent=clock.now - 0.1)
    assert pace.least_seconds(160) == pytest.approx(10 * 0.5)


CALL, ROUNDS = 0.1, 40  # seconds


@pytest.mark.parametrize(
    ("at_a_time", "sent_and_answered"),
    [
        (1, [(k * CALL, (k + 1) * CALL) for k in range(ROUNDS)]),
        (1, [((k - 1) * CALL, (k + 1) * CALL) for k in range(ROUNDS)]),
        (2, [(k // 2 * CALL, (k // 2 + 1) * CALL) for k in range(ROUNDS)]),
        (2, [(k / 2 * CALL, (k / 2 + 1) * CALL) for k in range(ROUNDS)]),
        (2, [((k - 1) / 2 * CALL, (k / 2 + 1) * CALL) for k in range(ROUNDS)]),
    ],
    ids=["one", "one, sent ahead", "two in phase", "two out of phase", "two, sent ahead"],
)
def test_the_pace_is_that_of_all_calls_at_a_time_however_they_lie(
    at_a_time: int, sent_and_answered: list[tuple[float, float]]
) -> None:
    clock = Clock()
    pace = Pace(places=PLACES, calls=at_a_time, clock=clock)
    for sent, answered in sent_and_answered:
        clock.now = answered
        pace.answered(PLACES, sent=sent)
    expected = pytest.approx(10 * CALL / at_a_time, rel=0.01)
    assert pace.seconds(10 * PLACES) == expected
    assert pace.least_seconds(10 * PLACES) == expected


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
