"""Rows of several canvases share the UNet's calls, in turn, and none disturbs another."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

import batching
import sampling
from batching import CallUNet, UNetBatcher, pad, share
from conditioning import Conditioning
from errors import NetworkError, SilentNetworkError
from network_calls import NetworkCalls
from row_plan import Regions
from sampling import Bootstrapping, Denoising, UNetRows
from schedulers import make_scheduler
from tests.jumping import JumpingLoop
from tests.unit.repository.tiny import CONFIG, EMBEDDING, WINDOW, answer, network
from views import make_views

Result = TypeVar("Result")

MAX_BATCH_SIZE = 4


def make_canvas(width: int, seed: int, steps: int = 3) -> Denoising:
    """A canvas of one region in as many views as `width` has: 2 rows a view."""
    views = make_views(WINDOW, width, window=WINDOW, stride=1)
    generator = torch.Generator().manual_seed(seed)
    regions = Regions(
        masks=torch.ones(1, WINDOW, width, dtype=torch.bool),
        views=views,
        window=WINDOW,
        prompt_embedding=[0],
        negative_embedding=[1],
        guidance_scale=7.5,
    )
    return Denoising(
        torch.randn(1, 4, WINDOW, width, generator=generator),
        Conditioning(torch.randn(2, 5, EMBEDDING, generator=generator)),
        scheduler=make_scheduler("ddim", CONFIG, steps),
        regions=regions,
        bootstrapping=Bootstrapping(
            torch.zeros(1, 4, WINDOW, WINDOW), torch.zeros(0, len(views), 1, dtype=torch.int64)
        ),
        generator=generator,
    )


class UNet:
    """Predictions in closed form; each call waits to be let go, if told to, and its rows are remembered."""

    def __init__(self, *, held: bool = False) -> None:
        self.calls: list[UNetRows] = []
        self.let_go = asyncio.Semaphore(0 if held else 10**9)

    async def __call__(self, rows: UNetRows) -> Tensor:
        self.calls.append(rows)
        await self.let_go.acquire()
        return predict(rows)

    @property
    def sizes(self) -> list[int]:
        return [len(call) for call in self.calls]

    def rows_of(self, canvas: Denoising) -> list[int]:
        """How many rows of each call carry the canvas's prompts."""
        embeds = canvas._conditioning.encoder_hidden_states
        return [
            sum(any(torch.equal(row, own) for own in embeds) for row in call.encoder_hidden_states)
            for call in self.calls
        ]


def predict(rows: UNetRows) -> Tensor:
    return (
        0.2 * rows.sample + torch.sin(rows.encoder_hidden_states.mean(dim=(1, 2)) + rows.timestep)[:, None, None, None]
    )


async def paint(canvas: Denoising, batcher: UNetBatcher) -> Tensor:
    while not canvas.finished:
        await batcher.complete_step(canvas)
        canvas.advance()
    return canvas.latents


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_one_canvas_alone_waits_for_nobody_and_fills_its_calls() -> None:
    unet = UNet()
    asyncio.run(paint(make_canvas(WINDOW + 4, seed=0, steps=2), UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE)))
    assert unet.sizes == [4, 4, 2] * 2


TEXT_BYTES = 5 * EMBEDDING * 4  # of a row
WEIGHT_BYTES = WINDOW**2 * 4


@pytest.mark.parametrize(
    ("room", "texts", "weights"),
    [
        (82 * (WEIGHT_BYTES + TEXT_BYTES), 82, 82),
        (82 * (WEIGHT_BYTES + TEXT_BYTES) - 1, 0, 82),
        (82 * WEIGHT_BYTES, 0, 82),
        (45 * WEIGHT_BYTES, 0, 45),
        (0, 0, 0),
    ],
)
def test_a_canvas_keeps_texts_of_all_rows_of_a_step_or_none_and_weights_of_as_many_as_have_room(
    monkeypatch: pytest.MonkeyPatch, room: int, texts: int, weights: int
) -> None:
    monkeypatch.setattr(sampling, "KEPT_BYTES", room)
    canvas = make_canvas(WINDOW + 40, seed=0, steps=2)  # 82 rows a step
    kept = canvas._step_rows
    assert len(kept._texts["encoder_hidden_states"]) == texts
    assert len(kept._weights) == weights
    assert kept._weights.nbytes + sum(each.nbytes for each in kept._texts.values()) <= room
    steps: list[list[UNetRows]] = []
    for _ in range(2):
        steps.append([canvas.take(20) for _ in range(5)])
        for rows in steps[-1]:
            canvas.give(rows, predict(rows))
        canvas.advance()
    same = [
        one.encoder_hidden_states.data_ptr() == other.encoder_hidden_states.data_ptr()
        for one, other in zip(*steps, strict=True)
    ]
    assert same == [texts > 0] * 5


@pytest.mark.parametrize("room", [10**9, 60 * WEIGHT_BYTES, 0])
def test_what_is_kept_changes_no_bits_however_a_step_is_divided(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    reference = make_canvas(WINDOW + 40, seed=0, steps=4)
    monkeypatch.setattr(sampling, "KEPT_BYTES", room)
    canvas = make_canvas(WINDOW + 40, seed=0, steps=4)
    for size in (4, 5, 100, 3):
        taken = [canvas.take(size) for _ in range(-(-canvas.untaken // size))]
        whole = reference.take(100)
        assert torch.equal(torch.cat([rows.encoder_hidden_states for rows in taken]), whole.encoder_hidden_states)
        for rows in reversed(taken):
            canvas.give(rows, predict(rows))
        reference.give(whole, torch.cat([predict(rows) for rows in taken]))
        canvas.advance()
        reference.advance()
        assert torch.equal(canvas.latents, reference.latents)


def test_what_one_kind_of_step_keeps_is_gone_with_it() -> None:
    views = make_views(WINDOW, WINDOW + 4, window=WINDOW, stride=1)
    masks = torch.zeros(2, WINDOW, WINDOW + 4, dtype=torch.bool)
    masks[1, :, :5] = True
    masks[0] = ~masks[1]
    canvas = Denoising(
        torch.zeros(1, 4, WINDOW, WINDOW + 4),
        Conditioning(torch.randn(3, 5, EMBEDDING)),
        scheduler=make_scheduler("ddim", CONFIG, 3),
        regions=Regions(masks, views, WINDOW, prompt_embedding=[0, 1], negative_embedding=[2, 2], guidance_scale=7.5),
        bootstrapping=Bootstrapping(
            torch.zeros(1, 4, WINDOW, WINDOW), torch.zeros(1, len(views), 2, dtype=torch.int64)
        ),
        generator=torch.Generator(),
    )
    kept = []
    while not canvas.finished:
        rows = canvas.take(100)
        canvas.give(rows, predict(rows))
        kept.append(canvas._step_rows)
        canvas.advance()
    bootstrapped, plain, last = kept
    assert bootstrapped is not plain
    assert plain is last
    assert len(bootstrapped) > len(plain) > len(canvas._step_rows) == 0


def test_whatever_waits_when_the_unet_comes_free_shares_calls() -> None:
    async def run() -> list[int]:
        unet = UNet()
        batcher = UNetBatcher(unet, max_batch_size=16)
        await asyncio.gather(*(paint(make_canvas(WINDOW, seed, steps=3), batcher) for seed in range(8)))
        return unet.sizes

    assert asyncio.run(run()) == [16, 16, 16]  # 8 canvases of 2 rows


def test_a_newcomer_has_its_share_of_the_next_call_and_a_wide_canvas_the_rest() -> None:
    async def run() -> tuple[list[int], list[int]]:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE)
        wide, small = make_canvas(WINDOW + 20, seed=0, steps=1), make_canvas(WINDOW, seed=1, steps=3)
        tasks = [asyncio.ensure_future(paint(wide, batcher))]
        await settle()
        tasks.append(asyncio.ensure_future(paint(small, batcher)))
        await settle()
        for _ in range(50):
            unet.let_go.release()
        await asyncio.gather(*tasks)
        return unet.rows_of(wide), unet.rows_of(small)

    wide, small = asyncio.run(run())
    assert small[:5] == [0, 2, 2, 2, 0]  # a step in each call, from the first that it could join
    assert wide[:5] == [4, 2, 2, 2, 4]
    assert sum(wide) == 42


@pytest.mark.parametrize("canvases", [6, 8, 11])
def test_equal_canvases_fill_every_call_but_the_last(canvases: int) -> None:
    """Dealt out row by row they would all end a step together, and find the next call half empty."""
    unet = UNet()

    async def run() -> None:
        batcher = UNetBatcher(unet, max_batch_size=16)
        await asyncio.gather(*(paint(make_canvas(WINDOW + 1, seed, steps=20), batcher) for seed in range(canvases)))

    asyncio.run(run())  # 4 rows a step
    assert sum(unet.sizes) == canvases * 4 * 20
    assert sum(unet.sizes) / len(unet.sizes) >= 0.95 * 16


def test_a_wide_canvas_has_half_of_each_call_beside_a_stream_of_newcomers() -> None:
    """Of one step each, and more of them than a call holds."""

    async def run() -> tuple[list[int], list[int], int]:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=16)
        wide = make_canvas(WINDOW + 63, seed=0, steps=1)
        tasks = [asyncio.ensure_future(paint(wide, batcher))]
        await settle()
        for call in range(12):
            canvases = [make_canvas(WINDOW, seed=1 + 9 * call + i, steps=1) for i in range(9)]
            tasks += [asyncio.ensure_future(paint(each, batcher)) for each in canvases]
            await settle()
            unet.let_go.release()
            await settle()
        finished = sum(each.done() for each in tasks)
        for _ in range(50):
            unet.let_go.release()
        await asyncio.gather(*tasks)
        return unet.sizes, unet.rows_of(wide), finished

    sizes, wide, finished = asyncio.run(run())
    assert sizes[:12] == [16] * 12
    assert wide[:12] == [16, *[8] * 11]
    assert finished == 4 * 11  # in the other half


def test_a_wide_newcomer_is_not_passed_over_by_small_ones_that_come_after_it() -> None:
    async def run() -> list[int]:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=8)
        first, wide = make_canvas(WINDOW + 20, seed=0, steps=1), make_canvas(WINDOW + 20, seed=1, steps=1)
        tasks = [asyncio.ensure_future(paint(first, batcher))]
        await settle()
        for seed in range(2, 8):
            tasks.append(asyncio.ensure_future(paint(make_canvas(WINDOW, seed, steps=1), batcher)))
            if seed == 2:
                tasks.append(asyncio.ensure_future(paint(wide, batcher)))
        for _ in range(50):
            unet.let_go.release()
        await asyncio.gather(*tasks)
        return unet.rows_of(wide)

    assert asyncio.run(run())[:3] == [0, 2, 4]


def test_rows_of_one_each_take_turns() -> None:
    """Half of such a call is none."""

    async def run() -> list[int]:
        unet = UNet()
        batcher = UNetBatcher(unet, max_batch_size=1)
        wide = make_canvas(WINDOW + 4, seed=0, steps=1)

        async def newcomers(seed: int) -> None:
            for each in range(8):
                await paint(make_canvas(WINDOW, seed=seed + each, steps=1), batcher)

        await asyncio.gather(paint(wide, batcher), newcomers(10), newcomers(20))
        return unet.rows_of(wide)

    rows = asyncio.run(run())
    assert all(sum(rows[call : call + 3]) > 0 for call in range(25))


def test_no_canvas_is_passed_over_for_long() -> None:
    """Among wide and small ones, each has rows in at least one of any three calls in a row while it has any."""
    unet = UNet()
    canvases = [make_canvas(WINDOW + extra, seed, steps=12) for seed, extra in enumerate((30, 30, 0, 0, 1, 0))]

    async def run() -> None:
        batcher = UNetBatcher(unet, max_batch_size=16)
        await asyncio.gather(*(paint(canvas, batcher) for canvas in canvases))

    asyncio.run(run())
    for canvas in canvases:
        rows = unet.rows_of(canvas)
        last = max(call for call, count in enumerate(rows) if count)
        assert all(sum(rows[call : call + 3]) > 0 for call in range(last))


def test_a_canvas_that_comes_as_the_last_call_ends_is_served() -> None:
    """At every moment around that end, counted in turns of the event loop."""

    async def run(turns: int) -> list[int]:
        unet = UNet()
        batcher = UNetBatcher(unet, max_batch_size=16)

        async def later() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            await paint(make_canvas(WINDOW, seed=1, steps=1), batcher)

        async with asyncio.timeout(20):
            await asyncio.gather(paint(make_canvas(WINDOW, seed=0, steps=1), batcher), later())
        return unet.sizes

    assert [sum(asyncio.run(run(turns))) for turns in range(12)] == [4] * 12


def test_only_as_many_calls_run_as_the_unet_has_instances() -> None:
    async def run(calls: int) -> int:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE, calls=calls)
        tasks = [asyncio.ensure_future(paint(make_canvas(WINDOW + 9, seed, steps=1), batcher)) for seed in range(3)]
        await settle()
        running = len(unet.calls)
        for _ in range(50):
            unet.let_go.release()
        await asyncio.gather(*tasks)
        return running

    assert [asyncio.run(run(calls)) for calls in (1, 2)] == [1, 2]


@pytest.mark.parametrize(("calls", "ahead"), [(1, 0), (2, 1)])
def test_once_nobody_waits_nothing_runs(calls: int, ahead: int) -> None:
    async def run() -> set[asyncio.Task[Any]]:
        batcher = UNetBatcher(UNet(), max_batch_size=MAX_BATCH_SIZE, calls=calls, ahead=ahead)
        await asyncio.gather(*(paint(make_canvas(WINDOW + 9, seed, steps=2), batcher) for seed in range(3)))
        await settle()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()


def calls_under_way(widths: list[int], *, max_batch_size: int, ahead: int) -> list[int]:
    """Rows of the calls that go out before the first comes back, of canvases that come in this order."""

    async def run() -> list[int]:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=max_batch_size, ahead=ahead)
        canvases = [make_canvas(WINDOW + width, seed, steps=2) for seed, width in enumerate(widths)]
        tasks = [asyncio.ensure_future(paint(canvas, batcher)) for canvas in canvases]
        await settle()
        under_way = list(unet.sizes)
        for _ in range(100):
            unet.let_go.release()
        await asyncio.gather(*tasks)
        assert sum(unet.sizes) == sum(2 * 2 * (width + 1) for width in widths)
        return under_way

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("widths", "under_way"),
    [
        ([0, 0, 0, 0, 0, 0], [8, 4]),  # six steps of two rows: half of a call is ready
        ([0, 0, 0, 0, 0], [8]),  # it is not
        ([20], [8, 8]),  # one wide canvas alone
        ([5], [8, 4]),  # what it has left fills no call, but nobody is there to fill it
        ([5, 0], [8]),  # here somebody is
        ([20, 20], [8, 8]),
        ([20, 0], [8]),  # the small one's next step would have to wait for a call more
        ([20, 0, 0, 0, 0, 0, 0], [8, 8]),
    ],
)
def test_a_call_waits_ahead_where_it_costs_nobody_much(widths: list[int], under_way: list[int]) -> None:
    assert calls_under_way(widths, max_batch_size=8, ahead=1) == under_way
    assert calls_under_way(widths, max_batch_size=8, ahead=0) == [8]


def test_a_small_step_beside_a_wide_canvas_never_finds_more_than_one_call_before_its_own() -> None:
    async def run() -> list[int]:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=8, ahead=1)
        wide, small = make_canvas(WINDOW + 40, seed=0, steps=1), make_canvas(WINDOW, seed=1, steps=4)
        tasks = [asyncio.ensure_future(paint(wide, batcher))]
        await settle()
        tasks.append(asyncio.ensure_future(paint(small, batcher)))
        for _ in range(60):
            await settle()
            unet.let_go.release()
        await asyncio.gather(*tasks)
        return unet.rows_of(small)

    rows = asyncio.run(run())
    assert rows[:6] == [0, 0, 2, 2, 2, 2]  # two calls were under way when it came; from then on every call has its step


@pytest.mark.parametrize(("calls", "ahead"), [(1, 0), (3, 0), (1, 1), (2, 2)])
def test_shared_calls_give_every_canvas_the_bits_that_it_gets_alone(unet: Any, calls: int, ahead: int) -> None:
    """Also where calls end in another order than they began."""
    real = network(unet.to(torch.float32))

    async def slow(rows: UNetRows) -> Tensor:
        for _ in range(len(rows) * 7 % 5):
            await asyncio.sleep(0)
        return torch.cat([real(one) for one in single_rows(rows)])

    async def together() -> list[Tensor]:
        batcher = UNetBatcher(slow, max_batch_size=MAX_BATCH_SIZE, calls=calls, ahead=ahead)
        return await asyncio.gather(*(paint(make_canvas(WINDOW + seed, seed), batcher) for seed in range(5)))

    for seed, latents in enumerate(asyncio.run(together())):
        alone = answer(
            make_canvas(WINDOW + seed, seed), lambda rows: torch.cat([real(one) for one in single_rows(rows)])
        )
        assert torch.equal(latents, alone)


def single_rows(rows: UNetRows) -> list[UNetRows]:
    return [
        UNetRows(0, rows.sample[i : i + 1], rows.timestep[i : i + 1], rows.encoder_hidden_states[i : i + 1])
        for i in range(len(rows))
    ]


def run_two(unet: Callable[[UNetRows], Awaitable[Tensor]], first: Denoising) -> tuple[Any, Any]:
    """What becomes of `first` and of a sound canvas beside it."""

    async def run() -> tuple[Any, Any]:
        batcher = UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE)
        sound = make_canvas(WINDOW, seed=1)
        results = await asyncio.gather(paint(first, batcher), paint(sound, batcher), return_exceptions=True)
        return results[0], results[1]

    return asyncio.run(run())


SOUND = answer(make_canvas(WINDOW, seed=1), predict)


def test_a_call_that_fails_fails_only_the_canvas_whose_rows_fail() -> None:
    async def unet(rows: UNetRows) -> Tensor:
        if bool(rows.sample.isnan().any()):
            raise NetworkError("unet", 3, "not a number")
        return predict(rows)

    faulty = make_canvas(WINDOW + 4, seed=0)
    faulty.latents[0, 0, 0, 0] = torch.nan
    failed, sound = run_two(unet, faulty)
    assert isinstance(failed, NetworkError)
    assert torch.equal(sound, SOUND)


def test_a_network_that_does_not_answer_is_asked_no_second_time_for_the_same_rows() -> None:
    calls = []

    async def unet(rows: UNetRows) -> Tensor:
        calls.append(len(rows))
        raise SilentNetworkError("unet", 14, "no answer for 1 s")

    failed, other = run_two(unet, make_canvas(WINDOW, seed=0))
    assert isinstance(failed, SilentNetworkError)
    assert isinstance(other, SilentNetworkError)
    assert calls == [4]


SILENCE = 0.2  # seconds after which a network counts as hung


class HungUNet:
    """A UNet whose calls are answered when a test says so, and counts as hung as the service's own does."""

    def __init__(self, *, most: int = 9, seconds: float = SILENCE) -> None:
        self.asked: list[asyncio.Future[Tensor]] = []
        self.rows: list[UNetRows] = []
        self._calls = NetworkCalls(most=most, seconds=seconds)

    async def _ask(self, rows: UNetRows) -> Tensor:
        self.asked.append(asyncio.get_running_loop().create_future())
        self.rows.append(rows)
        return await self.asked[-1]

    async def __call__(self, rows: UNetRows) -> Tensor:
        try:
            return await self._calls.call(lambda: self._ask(rows))
        except TimeoutError:
            raise SilentNetworkError("unet", 14, "no answer for a while") from None

    def answer(self, call: int) -> None:
        self.asked[call].set_result(predict(self.rows[call]))


def jumping(main: Coroutine[Any, Any, Result]) -> Result:
    """As asyncio.run, on a clock that no busy machine can delay."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)


def silent(results: Sequence[object]) -> bool:
    return all(isinstance(each, SilentNetworkError) for each in results)


@pytest.mark.parametrize(("calls", "ahead"), [(1, 0), (1, 1), (2, 1)])
def test_a_hung_unet_ends_all_that_wait_for_it_within_one_timeout(calls: int, ahead: int) -> None:
    """However many calls they would fill."""
    found: list[SilentNetworkError] = []

    async def run() -> tuple[list[object], int, float]:
        unet = HungUNet()
        batcher = UNetBatcher(unet, max_batch_size=16, calls=calls, ahead=ahead, on_silence=found.append)
        canvases = [make_canvas(WINDOW + width, seed) for seed, width in enumerate([30] * 8 + [0] * 8)]
        began = asyncio.get_running_loop().time()
        results = await asyncio.gather(*(paint(canvas, batcher) for canvas in canvases), return_exceptions=True)
        return list(results), len(unet.asked), asyncio.get_running_loop().time() - began

    results, asked, seconds = jumping(run())
    assert silent(results)
    assert asked <= calls + ahead
    assert seconds == pytest.approx(SILENCE)
    assert found == [results[0]]


def test_those_that_come_after_a_silence_have_a_try_of_their_own_and_end_together() -> None:
    async def run() -> tuple[list[object], list[object], Tensor, int]:
        unet = HungUNet()
        batcher = UNetBatcher(unet, max_batch_size=16)

        async def lot() -> list[object]:
            canvases = [make_canvas(WINDOW + 30, seed) for seed in range(8)]
            return list(await asyncio.gather(*(paint(each, batcher) for each in canvases), return_exceptions=True))

        first, second = await lot(), await lot()
        asked = len(unet.asked)
        unet.answer(0)  # it is awake, and what was left behind comes late
        later = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=1), batcher))
        for call in range(2, 5):
            await settle()
            unet.answer(call)
        return first, second, await later, asked

    first, second, later, asked = jumping(run())
    assert silent(first)
    assert silent(second)
    assert asked == 2
    assert torch.equal(later, SOUND)


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize(("calls", "ahead"), [(1, 1), (2, 0), (2, 1)])
def test_calls_that_a_silence_leaves_behind_keep_no_newcomer_waiting(calls: int, ahead: int, turns: int) -> None:
    """Whenever it comes, in turns of the event loop; nor does what becomes of them end it."""
    out = calls + ahead

    async def run() -> Tensor:
        unet = HungUNet(seconds=60)
        batcher = UNetBatcher(unet, max_batch_size=16, calls=calls, ahead=ahead)
        before = [asyncio.ensure_future(paint(make_canvas(WINDOW + 30, seed), batcher)) for seed in range(4)]
        await settle()
        assert len(unet.asked) == out
        unet.asked[0].set_exception(SilentNetworkError("unet", 14, "no answer for 60 s"))
        await asyncio.wait(before, return_when=asyncio.FIRST_COMPLETED)
        for _ in range(turns):
            await asyncio.sleep(0)
        later = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=1), batcher))
        await settle()
        assert silent([each.exception() for each in before if each.done()])
        assert all(each.done() for each in before)
        assert len(unet.asked) == out + 1
        for behind in unet.asked[1:out]:
            behind.set_exception(SilentNetworkError("unet", 14, "no answer for 60 s"))
        for call in range(out, out + 3):
            await settle()
            unet.answer(call)
        return await later

    assert torch.equal(asyncio.run(run()), SOUND)


def test_a_call_that_is_lost_while_later_ones_are_answered_ends_only_its_own_canvases() -> None:
    async def run() -> tuple[object, Tensor]:
        unet = HungUNet()
        batcher = UNetBatcher(unet, max_batch_size=2, calls=2)
        lost = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=0), batcher))
        await settle()
        waiting = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=1, steps=3), batcher))
        await settle()
        unet.answer(1)
        await settle()
        await asyncio.sleep(SILENCE / 2)
        unet.answer(2)
        await settle()
        (result,) = await asyncio.gather(lost, return_exceptions=True)
        assert not waiting.done()  # its last step is out
        unet.answer(3)
        return result, await waiting

    result, latents = jumping(run())
    assert silent([result])
    assert torch.equal(latents, SOUND)


def test_an_error_of_a_later_call_is_an_answer_that_tells_that_only_the_one_before_is_lost() -> None:
    async def run() -> tuple[object, object, Tensor]:
        unet = HungUNet()
        batcher = UNetBatcher(unet, max_batch_size=2, calls=2)
        lost = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=0), batcher))
        await settle()
        failing = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=2), batcher))
        await settle()
        unet.asked[1].set_exception(NetworkError("unet", 3, "out of memory"))
        await asyncio.wait([failing])
        await asyncio.sleep(SILENCE / 2)
        waiting = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=1), batcher))
        await asyncio.wait([lost])
        for call in range(2, 5):
            await settle()
            unet.answer(call)
        return lost.exception(), failing.exception(), await waiting

    silence, error, latents = jumping(run())
    assert isinstance(silence, SilentNetworkError)
    assert str(error).endswith("out of memory")
    assert torch.equal(latents, SOUND)


def test_a_unet_that_hangs_after_an_error_is_asked_for_none_that_have_ended() -> None:
    async def run() -> tuple[list[object], int]:
        unet = HungUNet()
        batcher = UNetBatcher(unet, max_batch_size=16)
        waiting = [asyncio.ensure_future(paint(make_canvas(WINDOW, seed), batcher)) for seed in range(6)]
        await settle()
        unet.asked[0].set_exception(NetworkError("unet", 3, "out of memory"))
        results = await asyncio.gather(*waiting, return_exceptions=True)
        await settle()
        return list(results), len(unet.asked)

    results, asked = jumping(run())
    assert silent(results)
    assert asked == 2  # all of them together, and the first alone


def test_padded_rows_repeat_the_last_and_leave_the_others_as_they_are() -> None:
    rows = make_canvas(WINDOW, seed=0).take(2)
    padded = pad(rows, 5)
    assert len(padded) == 5
    for name in ("sample", "timestep", "encoder_hidden_states"):
        given, found = getattr(rows, name), getattr(padded, name)
        assert torch.equal(found[:2], given)
        assert torch.equal(found[2:], given[-1:].expand_as(found[2:]))
    assert padded.text_embeds is None
    assert torch.equal(pad(rows, 2).sample, rows.sample)


def test_calls_of_one_size_give_the_bits_that_a_canvas_gets_alone_where_arithmetic_depends_on_the_size() -> None:
    """A network whose every result depends on how many rows it sees, as on a GPU: `deterministic` fixes that."""

    async def sizes_matter(rows: UNetRows) -> Tensor:
        return predict(rows) * (1 + 1e-3 * len(rows))

    async def fixed(rows: UNetRows) -> Tensor:
        return (await sizes_matter(pad(rows, MAX_BATCH_SIZE)))[: len(rows)]

    async def together(unet: CallUNet, canvases: int) -> Tensor:
        batcher = UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE)
        return (await asyncio.gather(*(paint(make_canvas(WINDOW + seed, seed), batcher) for seed in range(canvases))))[
            0
        ]

    assert torch.equal(asyncio.run(together(fixed, 1)), asyncio.run(together(fixed, 4)))
    assert not torch.equal(asyncio.run(together(sizes_matter, 1)), asyncio.run(together(sizes_matter, 4)))


def test_an_error_that_nobody_foresaw_ends_its_canvas_and_no_other() -> None:
    class Broken(Denoising):
        def take(self, count: int) -> UNetRows:
            raise RuntimeError(f"no {count} rows")

    broken = make_canvas(WINDOW, seed=0)
    broken.__class__ = Broken
    failed, sound = run_two(UNet(), broken)
    assert str(failed) == "no 2 rows"
    assert torch.equal(sound, SOUND)


def test_canvases_that_cannot_make_their_rows_keep_nobody_else_waiting() -> None:
    """Also where a whole call would have been theirs."""

    class Broken(Denoising):
        def take(self, count: int) -> UNetRows:
            raise RuntimeError(f"no {count} rows")

    async def run() -> list[Any]:
        batcher = UNetBatcher(UNet(), max_batch_size=MAX_BATCH_SIZE)
        broken = [make_canvas(WINDOW, seed) for seed in (2, 3)]
        for each in broken:
            each.__class__ = Broken
        async with asyncio.timeout(20):
            return await asyncio.gather(
                *(paint(canvas, batcher) for canvas in (*broken, make_canvas(WINDOW, seed=1))), return_exceptions=True
            )

    *failed, sound = asyncio.run(run())
    assert [str(each) for each in failed] == ["no 2 rows"] * 2
    assert torch.equal(sound, SOUND)


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_wrong_number_of_rows_ends_the_wait_and_the_batcher_goes_on(surplus: int) -> None:
    wrong = True

    async def unet(rows: UNetRows) -> Tensor:
        predictions = predict(rows)
        return torch.cat([predictions, predictions])[: len(rows) + surplus] if wrong else predictions

    async def run() -> tuple[list[Any], Tensor]:
        nonlocal wrong
        batcher = UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE)
        async with asyncio.timeout(20):
            failed = await asyncio.gather(
                *(paint(make_canvas(WINDOW, seed), batcher) for seed in range(3)), return_exceptions=True
            )
            wrong = False
            return failed, await paint(make_canvas(WINDOW, seed=1), batcher)

    failed, sound = asyncio.run(run())
    assert [str(each) for each in failed] == [f"unet: expected 2 rows, found {2 + surplus}"] * 3
    assert torch.equal(sound, SOUND)


def test_rows_that_cannot_share_a_call_get_calls_of_their_own() -> None:
    """Two canvases whose texts have different lengths, which no checkpoint's have."""
    longer = make_canvas(WINDOW, seed=0)
    longer._conditioning = Conditioning(torch.zeros(2, 9, EMBEDDING))
    finished, sound = run_two(UNet(), longer)
    assert isinstance(finished, Tensor)
    assert torch.equal(sound, SOUND)


def test_a_worker_that_fails_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def deal(wanted: Sequence[int], places: int) -> list[int]:
        raise RuntimeError(f"{places} places for {len(wanted)}")

    async def run() -> tuple[list[Any], Tensor]:
        batcher = UNetBatcher(UNet(), max_batch_size=MAX_BATCH_SIZE)
        async with asyncio.timeout(20):
            with monkeypatch.context() as patch:
                patch.setattr(batching, "share", deal)
                failed = await asyncio.gather(
                    *(paint(make_canvas(WINDOW, seed), batcher) for seed in range(2)), return_exceptions=True
                )
            return failed, await paint(make_canvas(WINDOW, seed=1), batcher)

    failed, sound = asyncio.run(run())
    assert [type(each) for each in failed] == [RuntimeError] * 2
    assert torch.equal(sound, SOUND)


def test_predictions_that_do_not_fit_end_the_wait() -> None:
    async def unet(rows: UNetRows) -> Tensor:
        return predict(rows)[:, :, :3]

    failed, other = run_two(unet, make_canvas(WINDOW, seed=0))
    assert isinstance(failed, RuntimeError)
    assert isinstance(other, RuntimeError)


def test_a_canvas_that_is_cancelled_half_way_leaves_its_places_to_the_others() -> None:
    async def run() -> tuple[list[int], Tensor]:
        unet = UNet(held=True)
        batcher = UNetBatcher(unet, max_batch_size=MAX_BATCH_SIZE)
        wide = make_canvas(WINDOW + 20, seed=0)
        leaving = asyncio.ensure_future(paint(wide, batcher))
        staying = asyncio.ensure_future(paint(make_canvas(WINDOW, seed=1), batcher))
        await settle()
        leaving.cancel()
        for _ in range(50):
            unet.let_go.release()
        latents = await staying
        assert leaving.cancelled()
        return unet.rows_of(wide), latents

    rows, latents = asyncio.run(run())
    assert sum(rows) <= MAX_BATCH_SIZE  # those that were out already
    assert torch.equal(latents, SOUND)


@pytest.mark.parametrize(
    ("wanted", "places", "shares"),
    [
        ([], 4, []),
        ([9], 4, [4]),
        ([1, 9, 9], 7, [1, 3, 3]),
        ([9, 9, 9], 4, [2, 2, 0]),
        ([3, 3, 3, 3, 3, 3, 3], 16, [3, 3, 3, 3, 3, 1, 0]),
        ([99, 3], 16, [13, 3]),
        ([9, 1], 1, [1, 0]),
        ([1, 1], 4, [1, 1]),
        ([0, 2], 4, [0, 2]),
    ],
)
def test_places_are_dealt_out_in_turn(wanted: list[int], places: int, shares: list[int]) -> None:
    assert share(wanted, places) == shares
